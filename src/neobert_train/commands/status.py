"""How the latest start of a run ended; for people, and for scripts that start it again."""

import sys

from neobert_train.config.command_schema import StatusConfig
from neobert_train.config.saved import load_train_config
from neobert_train.errors import EXIT_FAILED, InputError
from neobert_train.lock import find_holder
from neobert_train.run.directory import RunDirectory
from neobert_train.run.outcome import read_outcome
from neobert_train.terminal import print_output
from neobert_train.world import World


def run(config: StatusConfig, world: World) -> None:
    """Print how the latest start ended, and exit with its code; 1 where it trains or was killed.

    Raises:
        InputError: there is no run, or a file of it is damaged.
        SystemExit: with the exit code of the start.
    """
    directory = RunDirectory(config.output_dir)
    if not directory.config_file.exists():
        raise InputError(f"{directory.path} holds no run: check output_dir")
    holder = find_holder(directory.lock_file, config.wait_seconds)
    outcome = read_outcome(directory)
    if holder is not None:
        state = f"{holder} is training"
    elif outcome is None:
        state = "its latest start was killed, or ended without being able to say why"
    else:
        state = f"{outcome.reason}, {outcome.ended}"
    steps = [step for step, _ in directory.list_checkpoints()]
    max_steps = load_train_config(directory.config_file).trainer.max_steps
    newest = f"checkpoint of step {steps[-1]}" if steps else "no checkpoint"
    print_output(f"{directory.path}: {state}; {newest} of {max_steps}")
    sys.exit(EXIT_FAILED if holder is not None or outcome is None else outcome.exit_code)
