"""Train an experiment, or continue it where it stopped."""

import contextlib
import logging
import os
import sys
import time
import warnings

from neobert_train.config.derived import parse_duration
from neobert_train.config.quoting import to_shell
from neobert_train.config.schema import TrainConfig
from neobert_train.data.heldout import CorpusSample
from neobert_train.distributed import (
    Collectives,
    find_device_kind,
    is_lost_connection,
    share_device,
)
from neobert_train.errors import EXIT_DONE, EXIT_FAILED, EXIT_INPUT, EXIT_STOPPED, InputError
from neobert_train.export.publisher import Publisher
from neobert_train.machine.devices import compute_deterministically
from neobert_train.report.refresh import ReportRefresher
from neobert_train.run.checkpoint import TrainingState
from neobert_train.run.directory import RunDirectory
from neobert_train.run.outcome import write_outcome
from neobert_train.run.shared import check_shared
from neobert_train.signals import StopSignal
from neobert_train.terminal import print_message, print_output
from neobert_train.training.assembly import Surroundings, set_up_trainer
from neobert_train.training.console import Console, format_duration
from neobert_train.training.divergence import DivergedError
from neobert_train.training.peers import PeerWatch
from neobert_train.training.preemption import LAUNCHER_ENDED, StopRequest
from neobert_train.training.probing import format_scores
from neobert_train.training.starting_point import find_starting_point
from neobert_train.training.step_batches import StoppedError
from neobert_train.training.trainer import Trainer, find_early_end, is_complete
from neobert_train.world import World

logger = logging.getLogger(__name__)


def run(config: TrainConfig, world: World) -> None:
    """Train until `trainer.max_steps`, a stop signal, or an error.

    Raises:
        InputError: the devices, run directory, data, tokenizer or weights do not fit.
        SystemExit: with code 3 after a stop signal, the state being saved.
    """
    _quieten()
    limit = config.trainer.time_limit
    stop = StopRequest(None if limit is None else parse_duration(limit), time.monotonic())
    stop.listen(world.launcher)
    collectives = Collectives(world, find_device_kind())
    device = share_device(collectives)
    if config.trainer.deterministic:
        compute_deterministically(device)
    directory = RunDirectory(config.output_dir)
    publishes = world.is_main and config.hub.repository is not None
    publisher = Publisher(config, directory) if publishes else None
    console = Console(config.trainer.max_steps, world.is_main, config.logging.progress)
    around = Surroundings(directory, collectives, device, stop, console)
    try:
        reason = _train(config, around, publisher)
    except (Exception, StopSignal) as error:
        lost = (
            world.world_size > 1 and isinstance(error, RuntimeError) and is_lost_connection(error)
        )
        code, reason = describe_end(error, directory, lost)
        if directory.is_open:
            write_outcome(directory, code, reason)
        if publisher is not None:
            publisher.close()
        if isinstance(error, StoppedError | StopSignal | DivergedError):
            if world.is_main:
                print_message(f"neobert_train: {reason}")
            sys.exit(code)
        if lost:
            # Another process died first, and its error is the one to be seen last.
            print_message(f"rank {world.rank}: {reason}")
            os._exit(code)
        raise
    if world.is_main:
        write_outcome(directory, EXIT_DONE, reason)
    # After an error the processes part by ending, since to part in order needs all of them.
    collectives.close()
    if publisher is not None:
        publisher.finish(lambda: stop.reason)


def _train(config: TrainConfig, around: Surroundings, publisher: Publisher | None) -> str:
    """Train until the run is complete; return by what it is."""
    started, world, console = time.monotonic(), around.collectives.world, around.console
    if world.is_main and config.scheduler.warmup_steps >= config.trainer.max_steps:
        logger.warning("the run ends within the warm-up (scheduler.warmup_steps)")
    # Everything that can be wrong with what the user gave comes first, and leaves nothing behind.
    console.announce("looking at the run directory, the tokenizer and the data")
    around.collectives.on_main(around.run.claim)
    check_shared(around.run, around.collectives)
    start = find_starting_point(config, around.run, around.collectives)
    state = start.state
    if is_complete(config.trainer, state):
        if world.is_main:
            print_output(
                f"{around.run.path} is complete after {state.step} steps, {state.tokens:,} tokens"
                + describe_early_end(config, state)
            )
        return "complete" + describe_early_end(config, state)
    report = ReportRefresher(around.run.path)
    on_checkpoint = [report.refresh] if config.logging.report else []
    if publisher is not None:
        on_checkpoint.append(publisher.refresh)
    # From here on processes wait for each other on GPUs too.
    with contextlib.closing(PeerWatch(around.collectives, around.run)) as peers:
        trainer, sample = set_up_trainer(config, around, start, on_checkpoint)
        if publisher is not None:
            publisher.refresh()  # what an earlier start left
        del start  # its copy of all weights takes room on every process
        first_tokens = state.tokens
        console.begin_steps(state.step)
        _fit(trainer, peers)
    around.collectives.on_main(lambda: check_last_checkpoint(trainer))
    if world.is_main:
        report.finish()
        seconds = time.monotonic() - started
        tokens = state.tokens - first_tokens
        print_output(format_summary(around.run, trainer, sample, tokens, seconds))
    return "complete" + describe_early_end(config, state)


def _fit(trainer: Trainer, peers: PeerWatch) -> None:
    """Train, and end together with the other processes."""
    ends_together = False
    if trainer.writer is not None:
        peers.finish = trainer.writer.join
    try:
        trainer.fit()
        ends_together = True
    except (StoppedError, DivergedError, InputError):
        ends_together = True
        raise
    finally:
        peers.close()
        trainer.close()
        if ends_together:
            # Launchers kill the others half a minute after one has ended; by then the main process
            # has to have written its last checkpoint, however long that takes.
            trainer.collectives.barrier()
    trainer.watchdog.close()


def describe_end(error: BaseException, run: RunDirectory, lost: bool) -> tuple[int, str]:
    """Return the exit code of a start that ends with an error, and what it says of it.

    Args:
        error: that ends it.
        run: its directory.
        lost: whether the error is that another process is gone.
    """
    match error:
        case StoppedError() | StopSignal():
            # Nobody asked for a stop when the launcher crashed or was killed.
            code = EXIT_FAILED if str(error) == LAUNCHER_ENDED else EXIT_STOPPED
            newest = [step for step, _ in run.list_checkpoints()][-1:]
            left = f"with the checkpoint of step {newest[0]}" if newest else "without a checkpoint"
            if not run.is_open:  # what lies in the directory is another start's
                left = "before it had begun"
            return code, f"stopped by {error}, {left}; the same command continues"
        case InputError():
            return EXIT_INPUT, str(error)
        case DivergedError():
            return EXIT_FAILED, str(error)
        case RuntimeError() if lost:
            first_line = str(error).splitlines()[0]
            return EXIT_FAILED, f"ends, since another process of the run did ({first_line})"
    return EXIT_FAILED, f"{type(error).__name__}: {error}"


def describe_early_end(config: TrainConfig, state: TrainingState) -> str:
    """Return ` (SETTING is reached)` of a complete run that has not taken the last of its steps."""
    limit = find_early_end(config.trainer, state)
    return "" if limit is None else f" ({limit} is reached)"


def check_last_checkpoint(trainer: Trainer) -> None:
    """Raise InputError when the work of a finished run is not all on the disk."""
    if trainer.writer is not None and trainer.writer.failure:
        raise InputError(
            f"{trainer.writer.failure}; the same command continues from the last checkpoint"
        )


def format_summary(
    run: RunDirectory, trainer: Trainer, sample: CorpusSample, tokens: int, seconds: float
) -> str:
    """Return what a finished run tells: results, where they lie, and what to do next."""
    state, evaluation = trainer.state, trainer.latest_evaluation
    lines = [
        f"Done: {state.step} steps, {state.tokens:,} tokens; {format_duration(seconds)} and "
        f"{tokens / seconds:,.0f} tokens/s since this start, everything included."
    ]
    limit = find_early_end(trainer.config.trainer, state)
    if limit is not None:
        lines += [f"  ended by         {limit}; with a higher one the same command continues"]
    if evaluation is not None:
        means = "".join(f"{name} {mean:.1%}, " for name, mean in evaluation.means.items())
        lines += [
            f"  held-out loss    {evaluation.loss:.3f} nats per masked token "
            f"({means}perplexity {evaluation.perplexity:,.0f})",
            f"  unigram entropy  {sample.unigram_entropy:.3f} nats: the loss of a model that knows "
            f"only how frequent each token is",
        ]
    if trainer.latest_probes:
        lines += [f"  {format_scores(trainer.latest_probes)}"]
    return "\n".join(
        [
            *lines,
            f"  checkpoint       {run.checkpoint(state.step)}",
            f"  metrics          {run.metrics_file}",
            *([f"  report           {run.report_file}"] if run.report_file.exists() else []),
            f"Next: python -m neobert_train export {to_shell('run_dir', str(run.path))}",
        ]
    )


def _quieten() -> None:
    """Leave the terminal to what concerns the run."""
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\..*")
    warnings.filterwarnings("ignore", category=UserWarning, module=r"(torch|deepspeed)\..*")
