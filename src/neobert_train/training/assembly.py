"""From a configuration and a starting point to a trainer that is ready for its next step."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from neobert_train.config.model_schema import has_quack
from neobert_train.config.saved import dump_config
from neobert_train.config.schema import Precision, Resume, TrainConfig
from neobert_train.data.corpus import list_source_files, to_json
from neobert_train.data.heldout import CorpusSample
from neobert_train.data.loader import StepLoader
from neobert_train.data.sources import Unit
from neobert_train.distributed import Collectives
from neobert_train.files import write_atomically, write_checked_json
from neobert_train.machine.devices import (
    PeakMeter,
    choose_precision,
    describe_slow_bf16,
    has_native_bf16,
)
from neobert_train.machine.environment import describe_environment, find_environment_changes
from neobert_train.models.compilation import decide_compilation
from neobert_train.models.encoder import DTYPES, Encoder, measure_size
from neobert_train.models.families import build_encoder
from neobert_train.models.loading import load_into
from neobert_train.models.size import ModelSize
from neobert_train.objectives.building import build_objective
from neobert_train.run.checkpoint import load_moments
from neobert_train.run.directory import RunDirectory
from neobert_train.training.checkpoint_writer import CheckpointWriter
from neobert_train.training.console import Console
from neobert_train.training.divergence import Guard
from neobert_train.training.engine import Engine, EngineState
from neobert_train.training.heldout_sample import build_heldout_batches, share_sample
from neobert_train.training.metrics_log import MetricsLog, start_wandb
from neobert_train.training.preemption import StopRequest
from neobert_train.training.probing import build_probe_texts
from neobert_train.training.starting_point import StartingPoint
from neobert_train.training.step_meter import StepMeter
from neobert_train.training.trainer import Trainer
from neobert_train.training.watchdog import Watchdog
from neobert_train.world import World

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Surroundings:
    """What a run takes place in.

    Attributes:
        run: its directory.
        collectives: of its processes.
        device: of this process.
        stop: requests to stop.
        console: shows progress.
    """

    run: RunDirectory
    collectives: Collectives
    device: torch.device
    stop: StopRequest
    console: Console


def set_up_trainer(
    config: TrainConfig,
    around: Surroundings,
    start: StartingPoint,
    on_checkpoint: Sequence[Callable[[], None]],
) -> tuple[Trainer, CorpusSample]:
    """Build what trains, open the run directory, and return the trainer and the held-out documents.

    Args:
        config: of the run.
        around: what the run takes place in.
        start: where it begins.
        on_checkpoint: called after every checkpoint.

    Raises:
        InputError: the weights, the attention kernel or the run directory do not fit.
    """
    run, collectives = around.run, around.collectives
    device, console = around.device, around.console
    world, state, tokenizer, units = collectives.world, start.state, start.tokenizer, start.units
    asked, config = config, settle_precision(config, collectives, device)
    encoder, attention = build_starting_encoder(config, start, collectives, device)
    console.announce("looking for held-out documents")
    sample = share_sample(config, run, start, collectives)
    evaluation_batches = collectives.on_all(
        lambda: build_heldout_batches(config, sample, tokenizer, pads=device.type == "cuda")
    )
    feed_forward = "quack" if has_quack(config.model) else "torch"
    environment = describe_environment(
        world, attention, feed_forward, config.trainer.precision, start.revisions
    )
    network = encoder.describe_network()
    collectives.on_main(lambda: open_run_directory(asked, run, environment, sample, units, network))
    console.announce(describe_setup(asked, config, attention, world, device))
    compiles = decide_compilation(config, device) and encoder.compile(device)
    engine = build_starting_engine(config, start, encoder, collectives, device)
    state.lanes = {lane: state.lanes[lane] for lane in world.lanes(len(state.lanes))}
    is_main = world.is_main
    first = f"continuing after step {state.step}" if state.step else "taking the first step"
    console.announce(first + (", which compiles the blocks" if compiles else ""))
    trainer = Trainer(
        config=config,
        engine=engine,
        loader=StepLoader(start.pin(config), units, state.lanes, pin_memory=device.type == "cuda"),
        collectives=collectives,
        state=state,
        meter=build_meter(config, collectives, measure_size(encoder), device, sample),
        evaluation_batches=evaluation_batches,
        probe_texts=collectives.on_all(lambda: build_probe_texts(config, tokenizer)),
        run=run,
        guard=Guard(config, collectives, run, tokenizer, state.divergence),
        writer=CheckpointWriter(run, config, tokenizer, on_checkpoint) if is_main else None,
        metrics=start_metrics(config, run, state.step) if is_main else None,
        console=console,
        watchdog=Watchdog(world.rank, config.trainer.step_timeout_seconds),
        stop=around.stop,
        begins=start.checkpoint is None,
    )
    return trainer, sample


def build_starting_encoder(
    config: TrainConfig, start: StartingPoint, collectives: Collectives, device: torch.device
) -> tuple[Encoder, str]:
    """Return the encoder with the weights it begins with, and its attention kernel.

    Raises:
        InputError: the weights do not fit, or the kernel cannot run; on every process.
    """
    pinned, weights = start.pin(config), start.weights
    encoder = collectives.on_all(lambda: build_encoder(pinned, start.tokenizer, start.network))
    if weights is not None:
        origin = str(start.checkpoint or config.init_from or config.model.origin)
        collectives.on_all(lambda: load_into(encoder, weights, origin))
    dtype = DTYPES[config.trainer.precision]
    return encoder, collectives.on_all(lambda: encoder.settle_kernels(config.model, device, dtype))


def build_starting_engine(
    config: TrainConfig,
    start: StartingPoint,
    encoder: Encoder,
    collectives: Collectives,
    device: torch.device,
) -> Engine:
    """Return an engine that trains the encoder, with the optimiser where it was.

    Raises:
        InputError: the optimiser's state cannot be read; on every process.
    """
    checkpoint, updates = start.checkpoint, start.state.updates
    moments = None
    if checkpoint is not None and updates:
        moments = collectives.on_all(lambda: load_moments(checkpoint))
    if config.model.activation_checkpointing:
        encoder.checkpoint_activations()
    objective = build_objective(config.objective, encoder)
    engine = Engine(config, objective, collectives.world, device)
    if moments is not None:
        assert start.weights is not None
        engine.restore(EngineState(start.weights, moments, updates))
    return engine


def settle_precision(
    config: TrainConfig, collectives: Collectives, device: torch.device
) -> TrainConfig:
    """Return the configuration with the precision that all processes train in.

    bf16 is chosen for `auto` where every process has instructions for it. Where it was asked for
    without them, a warning says what it costs.
    """
    wanted = config.trainer.precision
    own = choose_precision(wanted, device)
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
    """Return what a run is about to use, and why it computes in the precision it does.

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
    kernels = f"{attention} attention" + (", quack" if has_quack(config.model) else "")
    return f"setting up {processes} with {place} each: {precision}, {kernels}"


def build_meter(
    config: TrainConfig,
    collectives: Collectives,
    size: ModelSize,
    device: torch.device,
    sample: CorpusSample,
) -> StepMeter:
    """Return what turns steps into metrics; warns of a GPU whose peak rate is not known."""
    peak = PeakMeter(device, DTYPES[config.trainer.precision])
    if collectives.world.is_main and device.type == "cuda" and peak.read() is None:
        logger.warning(
            "train/mfu is left out: the peak rate of this kind of GPU is not known (the known ones "
            "are in machine/peak.py)"
        )
    return StepMeter(config, collectives, size, peak, bool(sample.unknown_shares))


def open_run_directory(
    config: TrainConfig,
    run: RunDirectory,
    environment: dict[str, Any],
    sample: CorpusSample,
    units: Mapping[str, Sequence[Unit]],
    network: Mapping[str, Any],
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
        if network:
            write_checked_json(run.network_file, network)
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
