"""The only Hydra edge: command line -> typed configuration -> `commands/<name>.py`.

Nothing here imports torch, so `--help`, `--cfg job` and a wrong setting answer in about a second.
"""

import contextlib
import gc
import importlib
import io
import itertools
import os
import sys
import traceback
from collections.abc import Sequence
from types import TracebackType
from typing import Any, NoReturn

import hydra
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from neobert_train.config.checks import find_problems, find_range_problems
from neobert_train.config.command_schema import SCHEMAS
from neobert_train.config.overrides import CommandLine, iter_help_lines
from neobert_train.config.store import (
    compose_config,
    describe_config_error,
    find_config_path,
    find_group_choices,
    normalise_override,
    register_schemas,
    to_typed,
    wants_hydra,
)
from neobert_train.config.tasks import SUMMARIES
from neobert_train.errors import EXIT_DONE, EXIT_FAILED, EXIT_INPUT, EXIT_STOPPED, InputError
from neobert_train.machine.threads import limit_spinning
from neobert_train.signals import StopSignal, hold_stop_signals, raise_stop_signals
from neobert_train.sweep import SWEEP_FLAGS, plan_sweep, run_sweep
from neobert_train.terminal import print_message, print_output, protect_streams, show_warnings
from neobert_train.urls import hide_credentials, show_value
from neobert_train.world import World, strip_launcher_arguments

DEFAULT_COMMAND = "train"
# With these a user brings groups of their own, or flags take a word that is no override.
_FLAGS_LEFT_TO_HYDRA = ("--config-", "-cd", "-cn", "-cp", "--package", "-p", "--info", "-i")
_HYDRA_FLAGS = (*_FLAGS_LEFT_TO_HYDRA, "--cfg", "-c", "--shell", "-sc", "--experimental", "-e")
_FLAGS_WITH_A_WORD = (*_FLAGS_LEFT_TO_HYDRA, "--cfg", "-c")
COMMAND_SUMMARIES = {
    "train": "train an experiment, or continue it where it stopped (the default)",
    "prepare": "tokenise once what an experiment reads, into memory-mapped shards",
    "inspect_data": "show the documents and masked text of the global batch of a step",
    "train_tokenizer": "train a WordPiece, Unigram or byte-level BPE tokenizer on a source",
    "evaluate": "compare models on tasks, or measure one on text",
    "embed": "train a sentence-transformers model from an encoder, on pairs of texts",
    "export": "write a folder that transformers loads, and push it to the Hub",
    "plan": "parameters, FLOPs, memory and hours of an experiment on named hardware",
    "doctor": "what this machine has, what a run would use, and what would stop it",
    "status": "how the latest start of a run ended; its exit code is that of the run",
}


def main() -> None:
    """Run the command named on the command line; exits with a code of `errors.py`."""
    world = World()
    try:
        world = World.from_environment()
        command, arguments = split_command(strip_launcher_arguments(sys.argv[1:]))
        if any(argument in ("--help", "-h") for argument in arguments):
            print_output(format_help(command, arguments))
            return
        config = check_overrides(command, arguments)
        if wants_sweep(arguments):
            sys.exit(start_sweep(command, arguments, world))
        run_command(command, arguments, world, config)
    except InputError as error:
        exit_with_input_error(error, world)
    except StopSignal as stop:
        if world.is_main:
            print_message(f"neobert_train: stopped by {stop}")
        sys.exit(EXIT_STOPPED)
    except Exception:
        sys.excepthook(*sys.exc_info())
        sys.exit(EXIT_FAILED)


def run_program() -> NoReturn:
    """Run `main` as a process of its own, and exit with its code whatever torch still does.

    gloo's threads let go of a tensor a moment after the collective it was in, and need the
    interpreter for that: one that is being closed meanwhile aborts, and the code is lost
    (pytorch/pytorch issue 190489). So where torch was loaded the interpreter is not closed, nor
    after a signal to stop, when threads may still be in long calls.
    """
    protect_streams()
    raise_stop_signals()
    limit_spinning()
    sys.excepthook = _print_traceback
    code: str | int | None = EXIT_DONE
    try:
        main()
    except SystemExit as error:
        code = EXIT_DONE if error.code is None else error.code
    if ("torch" in sys.modules or code == EXIT_STOPPED) and isinstance(code, int):
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def exit_with_input_error(error: InputError, world: World) -> NoReturn:
    """Show the error once and leave with the exit code of wrong input."""
    if world.is_main:
        print_message(f"neobert_train: {error}")
    sys.exit(EXIT_INPUT)


def split_command(arguments: Sequence[str]) -> tuple[str, list[str]]:
    """Return the command and the rest; without a command, training.

    Raises:
        InputError: a first word that is neither a command nor an override, or a command elsewhere.
    """
    for previous, argument in itertools.pairwise(arguments):
        if argument in SCHEMAS and not previous.startswith(_FLAGS_WITH_A_WORD):
            raise InputError(f"{argument} is a command: write it before everything else")
    if not arguments or "=" in arguments[0] or arguments[0].startswith(("-", "+", "~")):
        return DEFAULT_COMMAND, list(arguments)
    command, *rest = arguments
    if command not in SCHEMAS:
        raise InputError(
            f"there is no command '{command}': choose among {', '.join(SCHEMAS)}, "
            f"or write key=value to change a setting"
        )
    return command, rest


def check_overrides(command: str, arguments: Sequence[str]) -> Any | None:
    """Report every mistake of the command line at once, before Hydra stops at the first.

    Returns:
        The typed configuration; None of a sweep, which has several, and where flags let Hydra look for
        groups elsewhere.

    Raises:
        InputError: listing all mistakes.
    """
    if any(argument.startswith(_FLAGS_LEFT_TO_HYDRA) for argument in arguments):
        return None
    for argument in arguments:
        if argument.startswith("-") and "=" in argument and not argument.startswith(_HYDRA_FLAGS):
            raise InputError(
                f"{show_value(argument)} is no flag: write {show_value(argument.lstrip('-'))}"
            )
    overrides = [
        argument
        for previous, argument in zip(["", *arguments], arguments, strict=False)
        if not argument.startswith("-") and previous not in ("--cfg", "-c")
    ]
    sweeps = any(flag in arguments for flag in SWEEP_FLAGS)
    line = CommandLine(command, overrides, sweeps)
    problems, sound = line.find_problems()
    if problems:
        try:
            config = to_typed(command, compose_config(command, sound))
            problems += find_range_problems(config)
        except InputError:
            pass  # without the mistaken ones the rest need not compose
        raise InputError.from_problems(problems)
    if sweeps:
        return None
    config = line.config or line.compose()
    problems = find_range_problems(config)
    if problems:
        raise InputError.from_problems(problems)
    return config


def wants_sweep(arguments: Sequence[str]) -> bool:
    """Return whether several runs are asked for, and no launcher or sweeper of Hydra's is to start them."""
    if any(argument.startswith(("hydra/", "hydra.")) for argument in arguments):
        return False
    return any(flag in arguments for flag in SWEEP_FLAGS)


def start_sweep(command: str, arguments: Sequence[str], world: World) -> int:
    """Run all combinations of the values given; the exit code.

    Raises:
        InputError: the sweep cannot run.
    """
    overrides = [argument for argument in arguments if argument not in SWEEP_FLAGS]
    flags = [argument for argument in overrides if argument.startswith("-")]
    if flags:
        raise InputError(f"{SWEEP_FLAGS[0]} does not go with {flags[0]}: leave it out")
    if world.world_size > 1:
        raise InputError(
            f"{SWEEP_FLAGS[0]} starts its runs one by one on a single process: under a launcher, "
            "start the launcher once for each of them"
        )
    return run_sweep(command, plan_sweep(command, overrides))


def run_command(command: str, arguments: Sequence[str], world: World, config: Any | None) -> None:
    """Check the values of a configuration, and hand it to the command's `run`.

    Hydra's main function, which composes twice more, is left its flags and its own settings.

    Args:
        command: its name.
        arguments: of the command line, without it.
        world: of this process.
        config: what `check_overrides` has made of the arguments.
    """
    # Without the command and what a launcher adds, as Hydra and `doctor` read it; flags come first, since
    # Hydra reads overrides in one place only.
    words = sorted(map(normalise_override, arguments), key=is_override)
    sys.argv = [sys.argv[0], *words]
    asks_hydra = any(argument.startswith("-") or "hydra" in argument for argument in arguments)
    if asks_hydra or wants_hydra():
        run_with_hydra(command, arguments, world)
    else:
        start_command(command, config, world)


def is_override(argument: str) -> bool:
    """Return whether an argument is neither a flag nor the word that belongs to one."""
    return argument.startswith("~") or ("=" in argument and not argument.startswith("-"))


def run_with_hydra(command: str, arguments: Sequence[str], world: World) -> None:
    """Do the same by Hydra's main function."""
    os.environ["HYDRA_FULL_ERROR"] = "1"  # errors reach us instead of ending the process with 1
    register_schemas(command)

    @hydra.main(config_path=find_config_path(command), config_name=command, version_base=None)
    def run(composed: DictConfig) -> None:
        try:  # inside, because Hydra prints the overrides with every exception that reaches it
            start_command(command, to_typed(command, composed), world)
        except InputError as error:
            exit_with_input_error(error, world)
        except Exception:
            sys.excepthook(*sys.exc_info())
            sys.exit(EXIT_FAILED)

    try:
        if any(argument.partition("=")[0] in ("--cfg", "-c") for argument in arguments):
            with contextlib.redirect_stdout(io.StringIO()) as shown:
                run()
            print_output(hide_credentials(shown.getvalue()).rstrip())
        else:
            run()
    except (
        HydraException,
        OmegaConfBaseException,
        ValueError,
    ) as error:  # of flags that exclude others
        raise InputError(describe_config_error(error)) from error


def start_command(command: str, config: Any, world: World) -> None:
    """Check the values of a configuration, and run the command with it.

    Raises:
        InputError: it cannot run; names all that is wrong with the settings.
    """
    problems = find_problems(config, world.world_size)
    if problems:
        raise InputError.from_problems(problems)
    show_warnings()
    load_command(command)(config, world)


def load_command(command: str) -> Any:
    """Return the `run(config, world)` of a command; imported late because it may bring in torch.

    Signals to stop wait until then: C code that imports a module loses what their handler raises. So do
    garbage collections: the libraries make 700,000 objects that stay, and to look through them again
    and again takes a fifth of the imports.
    """
    with hold_stop_signals():
        gc.disable()
        try:
            return importlib.import_module(f"neobert_train.commands.{command}").run
        finally:
            gc.freeze()  # so that later ones leave them out as well
            gc.enable()


def format_help(command: str, arguments: Sequence[str]) -> str:
    """Return what `--help` prints: commands, groups and every setting with its default.

    With other arguments, as in `--help scheduler=wsd`, the settings are as these set them.

    Raises:
        InputError: the arguments are wrong.
    """
    overrides = list(filter(is_override, arguments))
    config = check_overrides(command, overrides)
    groups = find_group_choices(command)
    lines = ["python -m neobert_train [COMMAND] [key=value ...]", "", "Commands:"]
    lines += [f"  {name:15} {summary}" for name, summary in COMMAND_SUMMARIES.items()]
    if groups:
        lines += [
            "",
            "Choices (name=choice; what no default has with a plus, as in +experiment=smoke):",
        ]
        lines += [f"  {group}: {', '.join(names)}" for group, names in groups.items()]
        lines += ["  --help scheduler=wsd shows the settings that a choice brings with it."]
    if command == "evaluate":
        lines += ["", "Tasks (tasks=[NAME,NAME]):"]
        lines += [f"  {name:20} {summary}" for name, summary in SUMMARIES.items()]
    lines += ["", f"Settings of {command} (key=value):", *iter_help_lines(config)]
    lines += [
        "",
        "-m runs every combination of several values, as in -m optimizer.lr=3e-4,6e-4 seed=1,2.",
        "--cfg job prints the settings that a command line gives; --hydra-help shows Hydra's flags.",
    ]
    return "\n".join(lines)


def _print_traceback(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    """Print an uncaught exception as Python does, without what may be secret in URLs."""
    print_message("".join(traceback.format_exception(kind, error, trace)).rstrip())


if __name__ == "__main__":
    run_program()
