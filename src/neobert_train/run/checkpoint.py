"""The checkpoint: weights and moments by parameter name in safetensors, the rest in JSON.

It depends neither on the number of processes nor on the ZeRO stage, and holds no pickle.
"""

import math
import os
import re
import shutil
import stat
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from neobert_train.config.saved import dump_config
from neobert_train.config.schema import CheckpointConfig, TrainConfig
from neobert_train.config.typed import Count, Finite, parse
from neobert_train.data.lane.lane import LaneState
from neobert_train.errors import InputError
from neobert_train.files import (
    DamagedFileError,
    hash_file,
    parse_json,
    read_text,
    remove,
    sync_folder,
    sync_tree,
    write_json,
)
from neobert_train.run.directory import RunDirectory
from neobert_train.tokenizers.text_tokenizer import TextTokenizer

WEIGHTS_FILE = "model.safetensors"
MOMENTS_FILE = "optimizer.safetensors"
STATE_FILE = "state.json"
CONFIG_FILE = "config.yaml"
TOKENIZER_FOLDER = "tokenizer"
MANIFEST_FILE = "manifest.json"
FORMAT_VERSION = 3


@dataclass
class DivergenceState:
    """What decides whether the next step is skipped, so that a resumed run decides alike.

    Attributes:
        skipped_steps: steps that did not change the weights, of the whole run.
        rewinds: how often the run went back to a checkpoint.
        skipped_in_a_row: steps skipped since the last one that counted.
        recent_losses: those that the next loss is compared with, oldest first.
    """

    skipped_steps: Count
    rewinds: Count
    skipped_in_a_row: Count
    recent_losses: list[Annotated[Finite, Field(ge=0.0)]]


@dataclass
class TrainingState:
    """How far a run has come.

    Attributes:
        step: optimiser steps taken.
        tokens: tokens of documents trained on, padding not counted.
        num_targets: tokens predicted.
        lanes: lane state by lane, of all lanes; from which the data continues.
        updates: of those steps, the ones that changed the weights; the others were skipped.
        seconds: spent in steps, all starts of the run together.
        heldout_loss: of the evaluation after `step`, in nats; None where there was none.
        divergence: skipped steps, and what decides about the next ones.
    """

    step: Count
    tokens: Count
    num_targets: Count
    lanes: dict[int, dict[str, Any]]
    updates: Count
    seconds: Annotated[Finite, Field(ge=0.0)]
    heldout_loss: float | None
    divergence: DivergenceState

    @classmethod
    def begin(cls, lanes: dict[int, dict[str, Any]]) -> "TrainingState":
        """Return the state before the first step."""
        return cls(0, 0, 0, lanes, 0, 0.0, None, DivergenceState(0, 0, 0, []))


@dataclass
class Checkpoint:
    """What is written: the state of training, of the model and of the optimiser.

    Attributes:
        state: counters and lanes.
        weights: fp32, by parameter name.
        moments: fp32, by `MOMENT.PARAMETER`, such as `exp_avg.decoder.weight`.
    """

    state: TrainingState
    weights: dict[str, Tensor]
    moments: dict[str, Tensor]


class UnsoundNumberError(Exception):
    """A weight or moment that no training can continue from; says which."""


def check_numbers(name: str, tensor: Tensor) -> None:
    """Raise UnsoundNumberError where a weight or moment has a value that no training gives it."""
    if tensor.dtype is not torch.float32:
        raise UnsoundNumberError(f"{name} is {tensor.dtype}, not float32")
    if not torch.isfinite(tensor).all():
        raise UnsoundNumberError(f"{name} has a value that is not finite")
    if name.partition(".")[0].endswith("_sq") and (tensor < 0).any():  # see config.choices.Moment
        raise UnsoundNumberError(f"{name} has a negative value")


def save_checkpoint(
    run: RunDirectory, checkpoint: Checkpoint, config: TrainConfig, tokenizer: TextTokenizer
) -> Path:
    """Write a checkpoint under a temporary name, sync it, then give it its name.

    Raises:
        UnsoundNumberError: it could not be continued from; nothing is written then, so that those
            before it stay.
        OSError: the disk is full or not writable; nothing bears the final name then.
    """
    for name, tensor in {**checkpoint.weights, **checkpoint.moments}.items():
        check_numbers(name, tensor)
    step = checkpoint.state.step
    folder, final = run.temporary_checkpoint(step), run.checkpoint(step)
    remove(folder)
    folder.mkdir(parents=True)
    try:
        metadata = {"format": "pt", "step": str(step)}
        save_tensors(checkpoint.weights, folder / WEIGHTS_FILE, metadata)
        save_tensors(checkpoint.moments, folder / MOMENTS_FILE, metadata)
        write_json(folder / STATE_FILE, _state_to_dict(checkpoint.state))
        (folder / CONFIG_FILE).write_text(dump_config(config), encoding="utf-8")
        tokenizer.save(
            folder / TOKENIZER_FOLDER, config.model.announce_length(config.batch.context_length)
        )
        write_json(folder / MANIFEST_FILE, {"step": step, "files": _describe_files(folder)})
        sync_tree(folder)
        if os.path.lexists(final):  # an earlier one of the same step that was found damaged
            run.remove_checkpoint(step)
        folder.rename(final)
        sync_folder(final.parent)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return final


def save_tensors(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str]) -> None:
    """Write a safetensors file with the mode of any new file; the library leaves it private.

    Raises:
        OSError: it cannot be written.
    """
    path.touch()
    mode = stat.S_IMODE(path.stat().st_mode)
    try:
        save_file(tensors, path, metadata)
    except SafetensorError as error:
        number = re.search(r"(?:os error|code:) (\d+)", str(error))  # of 0.6 and of 0.5
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from error
    path.chmod(mode)


def prune_checkpoints(run: RunDirectory, keep: CheckpointConfig, newest: int) -> None:
    """Remove the checkpoints that `keep` does not ask for.

    Args:
        run: the run directory.
        keep: which to keep.
        newest: step of the one just written, which always stays. Those of later steps are left alone
            and count for nothing: the run did not continue from them, since they are damaged.
    """
    available = [(step, folder) for step, folder in run.list_checkpoints() if step <= newest]
    kept = {step for step, _ in available[-keep.keep_last :]}
    if keep.keep_every_steps:
        kept |= {step for step, _ in available if step % keep.keep_every_steps == 0}
    if keep.keep_best:
        losses = {step: _read_heldout_loss(folder) for step, folder in available}
        measured = {step: loss for step, loss in losses.items() if loss is not None}
        if measured:
            kept.add(min(measured, key=lambda step: (measured[step], -step)))
    for step, _ in available:
        if step not in kept:
            run.remove_checkpoint(step)


def _read_heldout_loss(folder: Path) -> float | None:
    try:
        state = parse(dict[str, Any], parse_json(read_text(folder / STATE_FILE)))
        loss: float | None = parse(float | None, state.get("heldout_loss"))
    except (DamagedFileError, ValueError):
        return None
    return loss if loss is not None and math.isfinite(loss) else None


def load_state(folder: Path) -> TrainingState:
    """Read the counters and lanes of a checkpoint.

    Raises:
        InputError: they are damaged, or of another version.
    """
    try:
        return read_state(folder)
    except (DamagedFileError, ValueError) as error:
        raise InputError(f"{folder / STATE_FILE} cannot be read ({error})") from error


def read_state(folder: Path) -> TrainingState:
    """Read the counters and lanes of a checkpoint.

    Raises:
        DamagedFileError: the file is no JSON, or was written by another version.
        ValueError: a value is missing, or is none that a run comes to; says which.
    """
    raw = parse(dict[str, Any], parse_json(read_text(folder / STATE_FILE)))
    version = raw.pop("format_version", None)
    if version != FORMAT_VERSION:
        raise DamagedFileError(
            f"it was written in format {version}; this version of neobert_train reads format "
            f"{FORMAT_VERSION}"
        )
    if "masked_tokens" in raw:  # its name in version 0.1.0
        raw["num_targets"] = raw.pop("masked_tokens")
    state: TrainingState = parse(TrainingState, raw)
    problem = _find_problem(state)
    if problem is not None:
        raise ValueError(problem)
    return state


def _find_problem(state: TrainingState) -> str | None:
    """Return what contradicts itself in a state whose values are all in range."""
    if not state.lanes or sorted(state.lanes) != list(range(len(state.lanes))):
        return "lanes are missing"
    trained = 0
    for number, raw in state.lanes.items():
        lane: LaneState = parse(LaneState, raw, f"lanes.{number}")
        problem = lane.find_problem()
        if problem is not None:
            return f"lanes.{number}: {problem}"
        if lane.to_dict() != raw:
            return f"lanes.{number} is incomplete"
        if lane.num_batches != state.step:
            return f"lanes.{number} is at step {lane.num_batches}, the run at {state.step}"
        trained += sum(stream.tokens for stream in lane.streams.values())
    limits = {
        "the tokens of the lanes": (trained, state.tokens),
        "num_targets": (state.num_targets, state.tokens),
        "updates": (state.updates, state.step),
        "divergence.skipped_steps": (state.divergence.skipped_steps, state.step),
        "divergence.skipped_in_a_row": (
            state.divergence.skipped_in_a_row,
            state.divergence.skipped_steps,
        ),
    }
    for name, (number, limit) in limits.items():
        if number > limit:
            return f"{name} are {number:,}, more than {limit:,}"
    return None


def load_weights(folder: Path) -> dict[str, Tensor]:
    """Return the fp32 weights of a checkpoint by parameter name."""
    return _load_tensors(folder / WEIGHTS_FILE)


def load_moments(folder: Path) -> dict[str, Tensor]:
    """Return the fp32 moments of a checkpoint by `MOMENT.PARAMETER`."""
    return _load_tensors(folder / MOMENTS_FILE)


def _load_tensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except FileNotFoundError as error:
        raise InputError(
            f"{path} is gone: the run still trains, and keeps its newest checkpoints; repeat the "
            f"command"
        ) from error
    except (OSError, SafetensorError) as error:
        raise InputError(f"{path} cannot be read: {error}") from error


def _state_to_dict(state: TrainingState) -> dict[str, Any]:
    lanes = {str(lane): state.lanes[lane] for lane in sorted(state.lanes)}
    return {"format_version": FORMAT_VERSION, **asdict(state), "lanes": lanes}


def _describe_files(folder: Path) -> Mapping[str, Any]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        str(path.relative_to(folder)): {"bytes": path.stat().st_size, "sha256": hash_file(path)}
        for path in files
    }
