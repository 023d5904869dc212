"""Train an experiment, or continue it where it stopped."""

import logging
import os
import sys
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from neobert_train.accounting import compute_model_size
from neobert_train.config.derived import parse_duration
from neobert_train.config.quoting import to_shell
from neobert_train.config.saved import dump_config
from neobert_train.config.schema import Precision, Resume, TrainConfig
from neobert_train.data.corpus import list_source_files, to_json
from neobert_train.data.heldout import CorpusSample
from neobert_train.data.loader import StepLoader
from neobert_train.data.sources import Unit
from neobert_train.distributed import Collectives, find_device, is_lost_connection
from neobert_train.errors import EXIT_DONE, EXIT_FAILED, EXIT_INPUT, EXIT_STOPPED, InputError
from neobert_train.export.publisher import Publisher
from neobert_train.files import write_atomically, write_checked_json
from neobert_train.machine.devices import (
    PeakMeter,
    choose_precision,
    describe_slow_bf16,
    has_native_bf16,
)
from neobert_train.machine.environment import describe_environment, find_environment_changes
from neobert_train.model import (
    DTYPES,
    build_model,
    checkpoint_activations,
    choose_attention,
    compile_blocks,
    decide_compilation,
    load_into,
)
from neobert_train.modeling.heads import NeoBERTForMaskedLM
from neobert_train.objective import MaskedLanguageModelling
from neobert_train.report.refresh import ReportRefresher
from neobert_train.run.checkpoint import load_moments
from neobert_train.run.directory import RunDirectory
from neobert_train.run.outcome import write_outcome
from neobert_train.signals import StopSignal
from neobert_train.terminal import print_message, print_output
from neobert_train.training.checkpoint_writer import CheckpointWriter
from neobert_train.training.console import Console, format_duration
from neobert_train.training.divergence import DivergedError, Guard
from neobert_train.training.engine import EngineState, build_engine, write_optimizer_state
from neobert_train.training.heldout_sample import build_heldout_batches, share_sample
from neobert_train.training.metrics_log import MetricsLog, start_wandb
from neobert_train.training.preemption import LAUNCHER_ENDED, StopRequest
from neobert_train.training.starting_point import StartingPoint, find_starting_point
from neobert_train.training.step_batches import StoppedError
from neobert_train.training.step_meter import StepMeter
from neobert_train.training.trainer import Trainer, is_complete
from neobert_train.training.watchdog import Watchdog
from neobert_train.world import World

logger = logging.getLogger(__name__)


def run(config: TrainConfig, world: World) -> None:
    """Train until `trainer.max_steps`, a stop signal, or an error.

    Raises:
        InputError: the run directory, data, tokenizer or weights do not fit.
        SystemExit: with code 3 after a stop signal, the state being saved.
    """
    _quieten()
    limit = config.trainer.time_limit
    stop = StopRequest(None if limit is None else parse_duration(limit), time.monotonic())
    stop.listen(world.launcher)
    device = find_device(world)
    collectives = Collectives(world, device)
    directory = RunDirectory(config.output_dir)
    publishes = world.is_main and config.hub.repository is not None
    publisher = Publisher(config, directory) if publishes else None
    try:
        _train(config, directory, collectives, device, stop, publisher)
    except (Exception, StopSignal) as error:
        code, reason = describe_end(error, directory)
        if directory.is_open:
            write_outcome(directory, code, reason)
        if publisher is not None:
            publisher.close()
        if isinstance(error, StoppedError | StopSignal | DivergedError):
            if world.is_main:
                print_message(f"neobert_train: {reason}")
            sys.exit(code)
        if isinstance(error, RuntimeError) and is_lost_connection(error) and world.world_size > 1:
            # Another process died first, and its error is the one to be seen last.
            print_message(f"rank {world.rank}: ends, since another process of the run did")
            os._exit(code)
        raise
    if world.is_main:
        write_outcome(directory, EXIT_DONE, "complete")
    # After an error the processes part by ending, since to part in order needs all of them.
    collectives.close()
    if publisher is not None:
        publisher.finish(lambda: stop.reason)


def _train(
    config: TrainConfig,
    run: RunDirectory,
    collectives: Collectives,
    device: torch.device,
    stop: StopRequest,
    publisher: Publisher | None,
) -> None:
    started, world = time.monotonic(), collectives.world
    if world.is_main and config.scheduler.warmup_steps >= config.trainer.max_steps:
        logger.warning("the run ends within the warm-up (scheduler.warmup_steps)")
    # Everything that can be wrong with what the user gave comes first, and leaves nothing behind.
    console = Console(config.trainer.max_steps, world.is_main, config.logging.progress)
    console.announce("looking at the run directory, the tokenizer and the data")
    collectives.on_main(run.claim)
    start = find_starting_point(config, run, collectives)
    state, tokenizer, units = start.state, start.tokenizer, start.units
    if is_complete(config.trainer, state):
        if world.is_main:
            print_output(
                f"{run.path} is complete after {state.step} steps, {state.tokens:,} tokens"
            )
        return
    asked, config = config, settle_precision(config, collectives, device)
    model, attention = build_starting_model(config, start, collectives, device)
    console.announce("looking for held-out documents")
    sample = share_sample(config, run, start, collectives)
    evaluation_batches = collectives.on_all(
        lambda: build_heldout_batches(config, sample, tokenizer)
    )
    environment = describe_environment(world, attention, config.trainer.precision, start.revisions)
    collectives.on_main(lambda: open_run_directory(asked, run, environment, sample, units))
    console.announce(describe_setup(asked, config, attention, world, device))
    compiles = decide_compilation(config, device) and compile_blocks(model, device)
    engine = build_starting_engine(config, start, model, world, device)
    state.lanes = {lane: state.lanes[lane] for lane in world.lanes(len(state.lanes))}
    report = ReportRefresher(run.path)
    on_checkpoint = [report.refresh] if config.logging.report else []
    if publisher is not None:
        publisher.refresh()  # what an earlier start left
        on_checkpoint.append(publisher.refresh)
    is_main = world.is_main
    trainer = Trainer(
        config=config,
        engine=engine,
        loader=StepLoader(start.pin(config), units, state.lanes, pin_memory=device.type == "cuda"),
        collectives=collectives,
        state=state,
        meter=StepMeter(
            config,
            collectives,
            compute_model_size(config.model, tokenizer.vocab_size),
            build_peak_meter(config, world, device),
            warned_of_unknown=bool(sample.unknown_shares),
        ),
        evaluation_batches=evaluation_batches,
        run=run,
        guard=Guard(config, collectives, run, tokenizer, state.divergence),
        writer=CheckpointWriter(run, config, tokenizer, on_checkpoint) if is_main else None,
        metrics=start_metrics(config, run, state.step) if is_main else None,
        console=console,
        watchdog=Watchdog(world.rank, config.trainer.step_timeout_seconds),
        stop=stop,
        begins=start.checkpoint is None,
    )
    del start  # its copy of all weights takes room on every process
    first_tokens = state.tokens
    first = f"continuing after step {state.step}" if state.step else "taking the first step"
    console.announce(first + (", which compiles the blocks" if compiles else ""))
    console.begin_steps(state.step)
    _fit(trainer)
    collectives.on_main(lambda: check_last_checkpoint(trainer))
    if is_main:
        report.finish()
        seconds = time.monotonic() - started
        print_output(format_summary(run, trainer, sample, state.tokens - first_tokens, seconds))


def _fit(trainer: Trainer) -> None:
    """Train, and end together with the other processes."""
    ends_together = False
    try:
        trainer.fit()
        ends_together = True
    except (StoppedError, DivergedError, InputError):
        ends_together = True
        raise
    finally:
        trainer.close()
        if ends_together:
            # Launchers kill the others half a minute after one has ended; by then the main process
            # has to have written its last checkpoint, however long that takes.
            trainer.collectives.barrier()
    trainer.watchdog.close()


def build_starting_model(
    config: TrainConfig, start: StartingPoint, collectives: Collectives, device: torch.device
) -> tuple[NeoBERTForMaskedLM, str]:
    """The model with the weights it begins with, and the attention backend it is settled on.

    Raises:
        InputError: the weights do not fit, or the backend cannot run; on every process.
    """
    model, weights = build_model(config, start.tokenizer), start.weights
    if weights is not None:
        origin = str(start.checkpoint or config.init_from)
        collectives.on_all(lambda: load_into(model, weights, origin))
    return model, collectives.on_all(lambda: choose_attention(config, model, device))


def build_starting_engine(
    config: TrainConfig,
    start: StartingPoint,
    model: NeoBERTForMaskedLM,
    world: World,
    device: torch.device,
) -> Any:
    """A DeepSpeed engine around the model, with the optimiser where it was."""
    if config.model.activation_checkpointing:
        checkpoint_activations(model)
    engine = build_engine(config, MaskedLanguageModelling(model), world, device)
    updates = start.state.updates
    if start.checkpoint is not None and updates:
        assert start.weights is not None
        moments = load_moments(start.checkpoint)
        write_optimizer_state(engine, EngineState(start.weights, moments, updates))
    return engine


def describe_end(error: BaseException, run: RunDirectory) -> tuple[int, str]:
    """Return the exit code of a start that ends with an error, and what it says of it."""
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
    return EXIT_FAILED, f"{type(error).__name__}: {error}"


def settle_precision(
    config: TrainConfig, collectives: Collectives, device: torch.device
) -> TrainConfig:
    """Return the configuration with the precision that all processes train in.

    bf16 is chosen for `auto` where every process has instructions for it. Where it was asked for
    without them, a warning says what it costs.
    """
    wanted = config.trainer.precision
    own = choose_precision(wanted, device, config.deepspeed.zero_stage)
    (num_fp32,) = collectives.sum([own is Precision.fp32])
    precision = Precision.fp32 if num_fp32 else Precision.bf16
    if collectives.world.is_main and precision is Precision.bf16 and not has_native_bf16(device):
        logger.warning("%s; write trainer.precision=auto", describe_slow_bf16(device))
    return replace(config, trainer=replace(config.trainer, precision=precision))


def describe_setup(
    asked: TrainConfig,
    config: TrainConfig,
    attention: str,
    world: World,
    device: torch.device,
) -> str:
    """What a run is about to use, and why it computes in the precision it does.

    Args:
        asked: the configuration as given.
        config: the same with its precision settled.
        attention: the backend.
        world: this process among all.
        device: of this process.
    """
    place = f"{torch.get_num_threads()} CPU threads" if device.type == "cpu" else "one GPU"
    processes = "1 process" if world.world_size == 1 else f"{world.world_size} processes"
    precision = config.trainer.precision.value
    if asked.trainer.precision is Precision.auto:
        reason = "has" if has_native_bf16(device) else "lacks"
        precision += (
            f" (trainer.precision=auto; the {device.type.upper()} {reason} bf16 instructions)"
        )
    return f"setting up {processes} with {place} each: {precision}, {attention} attention"


def build_peak_meter(config: TrainConfig, world: World, device: torch.device) -> PeakMeter:
    """What knows the peak of this process's device; warns of a GPU whose peak is not known."""
    peak = PeakMeter(device, DTYPES[config.trainer.precision])
    if world.is_main and device.type == "cuda" and peak.read() is None:
        logger.warning(
            "train/mfu is left out: the peak rate of this kind of GPU is not known (the known ones "
            "are in accounting.DEVICES)"
        )
    return peak


def open_run_directory(
    config: TrainConfig,
    run: RunDirectory,
    environment: dict[str, Any],
    sample: CorpusSample,
    units: Mapping[str, Sequence[Unit]],
) -> None:
    """Make the run directory and write down what is about to happen in it.

    Raises:
        InputError: it cannot be written to, or another process came first.
    """
    run.create()
    before = run.read_environments() if run.holds_run() else []
    if before:
        for difference in find_environment_changes(before[-1], environment):
            logger.warning("continuing in another environment: %s", difference)
    try:
        write_atomically(run.config_file, dump_config(config))
        write_checked_json(run.environment_file, [*before, environment])
        begins = not run.holds_run() or not run.sources_file.exists()
        if begins or config.resume is Resume.changed:
            files = to_json(list_source_files(units))
            write_checked_json(run.sources_file, files, indent=None)
        if sample.heldout:
            sample.save(run.heldout_file)
    except OSError as error:
        raise run.explain(error) from error


def start_metrics(config: TrainConfig, run: RunDirectory, step: int) -> MetricsLog:
    """Open the metrics of a run that continues after `step`.

    Raises:
        InputError: they are damaged or cannot be written.
    """
    begun = run.read_environments()[0]["started"]
    try:
        return MetricsLog(run.metrics_file, step, start_wandb(config, run.path, begun))
    except OSError as error:
        raise run.explain(error) from error


def check_last_checkpoint(trainer: Trainer) -> None:
    """Raises InputError when the work of a finished run is not all on the disk."""
    if trainer.writer is not None and trainer.writer.failure:
        raise InputError(
            f"{trainer.writer.failure}; the same command continues from the last checkpoint"
        )


def format_summary(
    run: RunDirectory, trainer: Trainer, sample: CorpusSample, tokens: int, seconds: float
) -> str:
    """What a finished run tells: results, where they lie, and what to do next."""
    state, evaluation = trainer.state, trainer.latest_evaluation
    lines = [
        f"Done: {state.step} steps, {state.tokens:,} tokens; {format_duration(seconds)} and "
        f"{tokens / seconds:,.0f} tokens/s since this start, everything included."
    ]
    if evaluation is not None:
        lines += [
            f"  held-out loss    {evaluation.loss:.3f} nats per masked token "
            f"(accuracy {evaluation.accuracy:.1%}, perplexity {evaluation.perplexity:,.0f})",
            f"  unigram entropy  {sample.unigram_entropy:.3f} nats: the loss of a model that knows "
            f"only how frequent each token is",
        ]
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
