"""Train a sentence-transformers model from an encoder, or continue one."""

import sys
import time
from typing import Any

from neobert_train.config.embed_schema import EmbedConfig
from neobert_train.errors import EXIT_FAILED, EXIT_STOPPED
from neobert_train.extras import require_packages
from neobert_train.signals import hold_stop_signals
from neobert_train.terminal import print_message, print_output
from neobert_train.training.console import format_duration
from neobert_train.training.preemption import StopRequest
from neobert_train.tuning.embedder_folder import EmbedderFolder, Result
from neobert_train.world import World

_PACKAGES = ("sentence_transformers", "accelerate")


def run(config: EmbedConfig, world: World) -> None:
    """Train until the last step, a stop signal or an error.

    Raises:
        InputError: a package is missing, or model, data or output do not fit.
        SystemExit: with code 3 after a stop signal, a checkpoint being written; with 1 where the loss is
            no number any more.
    """
    require_packages("evaluation", _PACKAGES, "embed")
    folder = EmbedderFolder(config.output)
    folder.claim()
    folder.check_settings(config)
    finished = folder.read_result()
    if finished is not None:
        print_output(f"{folder.path} is complete after {finished.steps:,} steps")
        return
    print_message("loading sentence-transformers ...")
    with hold_stop_signals():  # C code that imports a module loses what their handler raises
        from neobert_train.distributed import find_device
        from neobert_train.tuning.embedding import Surroundings, train_embedder
        from neobert_train.tuning.embedding_trainer import DivergedError

    stop = StopRequest(None, time.monotonic())
    stop.listen(world.launcher)
    around = Surroundings(
        find_device(world), stop.begin_training, lambda: stop.reason,
        lambda activity: print_message(f"{activity} ..."), show_step,
    )  # fmt: skip
    try:
        result = train_embedder(config, folder, around)
    except DivergedError as error:
        print_message(f"neobert_train: {error}")
        sys.exit(EXIT_FAILED)
    if result is None:
        step, _ = folder.find_checkpoint() or (0, None)
        print_message(
            f"neobert_train: stopped by {stop.reason}, with the checkpoint of step {step}; the same "
            f"command continues"
        )
        sys.exit(EXIT_STOPPED)
    print_output(format_summary(config, result, folder))


def format_summary(config: EmbedConfig, result: Result, folder: EmbedderFolder) -> str:
    """Return what a finished training tells."""
    loss = "" if result.loss is None else f", loss {result.loss:.4f}"
    return (
        f"Done: {result.steps:,} steps of {config.batch_size} rows{loss}\n"
        f"  metrics   {folder.metrics_file}\n"
        f"  model     {folder.path}: SentenceTransformer({str(folder.path)!r}, trust_remote_code=True)"
    )


def show_step(record: dict[str, Any], steps: int, seconds_left: float) -> None:
    """Show the metrics of a step as a line."""
    print_message(
        f"step {record['step']}/{steps}  loss {record['loss']:.4f}  "
        f"lr {record['learning_rate']:.2e}  {record['rows_per_second']:,.1f} rows/s  "
        f"{format_duration(seconds_left)} left"
    )
