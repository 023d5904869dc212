"""Training an embedder from an encoder, from the first step or from where it stopped."""

import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError

from neobert_train.config.embed_schema import EmbedConfig
from neobert_train.errors import InputError
from neobert_train.files import write_atomically
from neobert_train.machine.devices import choose_precision
from neobert_train.models.exported import ExportedModel, open_exported
from neobert_train.run.folders import owned_folder
from neobert_train.run.metrics_file import find_latest, read_metrics
from neobert_train.tuning.embedder_folder import EmbedderFolder, Result, Start
from neobert_train.tuning.embedding_card import render_card
from neobert_train.tuning.embedding_data import Pairs, load_sets
from neobert_train.tuning.embedding_model import build_model, write_model
from neobert_train.tuning.embedding_trainer import EmbeddingTrainer, Progress, count_steps


@dataclass(frozen=True)
class Surroundings:
    """What a training has around it.

    Attributes:
        device: that computes.
        begin: called when steps begin, from when on a request to stop waits for the end of one.
        find_stop: says what asks to stop; None while nothing does.
        announce: told what is being done.
        show: told the metrics of a step, the steps of all, and the seconds that are left.
    """

    device: torch.device
    begin: Callable[[], None]
    find_stop: Callable[[], str | None]
    announce: Callable[[str], None]
    show: Callable[[dict[str, Any], int, float], None]


def train_embedder(
    config: EmbedConfig, folder: EmbedderFolder, around: Surroundings
) -> Result | None:
    """Train until the last step, and write the model; continue where an earlier start stopped.

    Args:
        config: of the training, as it was begun.
        folder: that is claimed, if it exists.
        around: what the training has around it.

    Returns:
        None where it was stopped before its end, with a checkpoint.

    Raises:
        InputError: model or data cannot be used, or the folder cannot be written; before the first step
            nothing is left behind.
        DivergedError: the loss is no number any more.
    """
    _quieten(around.device)
    began = time.monotonic()
    sets = load_sets(config, around.announce)
    checkpoint = folder.find_checkpoint()
    around.announce("loading the model")
    # What a folder of masked-language modelling lacks, such as BERT's pooler, starts at random.
    transformers.set_seed(config.seed)
    if checkpoint is None:
        with open_exported(
            config.model, f"model={config.model}", config.step, config.trust_remote_code
        ) as exported:
            model = build_model(exported, config, f"model={config.model}")
        start = _describe_start(exported, config, sets)
        step = 0
    else:
        step, path = checkpoint
        start = folder.read_start()
        _check_data(start, sets, folder)
        model = build_model(_reopen(start, path), config, str(path))
    folder.create(config, start)
    folder.cut_metrics(step)
    precision = choose_precision(config.precision, around.device)
    trainer = EmbeddingTrainer(model, config, sets, folder, precision, around.device)
    trainer.add_callback(Progress(config, folder, around.find_stop, around.show))
    if step < start.steps:
        around.announce(f"training from step {step} to {start.steps} in {precision.value}")
        around.begin()
        _fit(trainer, config, None if checkpoint is None else checkpoint[1])
        step = trainer.state.global_step
    if step < start.steps:
        return None
    loss = find_latest(read_metrics(folder.metrics_file)).get("loss")
    result = Result(step, step * config.batch_size, loss, time.monotonic() - began)
    _write_result(model, config, start, folder, result)
    return result


def _fit(trainer: EmbeddingTrainer, config: EmbedConfig, checkpoint: Path | None) -> None:
    try:
        trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    except torch.OutOfMemoryError as error:
        half = max(1, config.mini_batch_size // 2)
        raise InputError(
            f"the device has not enough memory for mini_batch_size={config.mini_batch_size}: write "
            f"mini_batch_size={half}, which changes memory and speed only, or a lower max_length"
        ) from error


def _describe_start(exported: ExportedModel, config: EmbedConfig, sets: dict[str, Pairs]) -> Start:
    digests = {name: pairs.digest for name, pairs in sets.items()}
    rows = {name: len(pairs.rows) for name, pairs in sets.items()}
    steps = count_steps(config, sets)
    return Start(exported.origin, exported.weights, exported.is_neobert, digests, rows, steps)


def _check_data(start: Start, sets: dict[str, Pairs], folder: EmbedderFolder) -> None:
    changed = [name for name, pairs in sets.items() if start.digests.get(name) != pairs.digest]
    if changed:
        raise InputError(
            f"the texts of {', '.join(changed)} are not those that the embedder in {folder.path} was "
            f"begun with: give these again, or write output=... to begin another"
        )


def _reopen(start: Start, path: Path) -> ExportedModel:
    return ExportedModel(path, start.weights, start.model, start.is_neobert)


def _write_result(
    model: Any, config: EmbedConfig, start: Start, folder: EmbedderFolder, result: Result
) -> None:
    model.to("cpu")
    with owned_folder(folder.path, {}) as draft:
        try:
            write_model(model, draft, config)
        except SafetensorError as error:
            raise folder.explain(error) from error
        needs_code = "auto_map" in json.loads((draft / "config.json").read_text(encoding="utf-8"))
        length = int(model.max_seq_length)
        card = render_card(folder.path, config, start, result, length, needs_code)
        write_atomically(draft / "README.md", card)
    folder.finish(result)


def _quieten(device: torch.device) -> None:
    """Leave the terminal to what concerns the training."""
    os.environ.setdefault(
        "DS_ACCELERATOR", device.type
    )  # accelerate imports DeepSpeed, which guesses
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
