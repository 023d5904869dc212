"""The checkpoint: weights and moments by parameter name in safetensors, the rest in JSON.

It depends neither on the number of processes nor on the ZeRO stage, and holds no pickle.
"""

import json
import logging
import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from neobert_train.config.saved import dump_config
from neobert_train.config.schema import CheckpointConfig, TrainConfig
from neobert_train.data.tokenization import TextTokenizer
from neobert_train.errors import InputError
from neobert_train.files import hash_file, sync_folder, sync_tree, to_json, write_json
from neobert_train.run_directory import RunDirectory

logger = logging.getLogger(__name__)

WEIGHTS_FILE = "model.safetensors"
MOMENTS_FILE = "optimizer.safetensors"
STATE_FILE = "state.json"
CONFIG_FILE = "config.yaml"
TOKENIZER_FOLDER = "tokenizer"
MANIFEST_FILE = "manifest.json"
_NEEDED_FILES = (WEIGHTS_FILE, MOMENTS_FILE, STATE_FILE, CONFIG_FILE)
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

    skipped_steps: int = 0
    rewinds: int = 0
    skipped_in_a_row: int = 0
    recent_losses: list[float] = field(default_factory=list)


@dataclass
class TrainingState:
    """How far a run has come.

    Attributes:
        step: optimiser steps taken.
        tokens: tokens of documents trained on, padding not counted.
        masked_tokens: tokens predicted.
        lanes: lane state by lane, of all lanes; how the data goes on.
        updates: of those steps, the ones that changed the weights; the others were skipped.
        seconds: spent in steps, all starts of the run together.
        heldout_loss: of the evaluation after `step`, in nats; None where there was none.
        divergence: skipped steps, and what decides about the next ones.
    """

    step: int
    tokens: int
    masked_tokens: int
    lanes: dict[int, dict[str, Any]]
    updates: int = 0
    seconds: float = 0.0
    heldout_loss: float | None = None
    divergence: DivergenceState = field(default_factory=DivergenceState)


@dataclass
class Checkpoint:
    """What is written: the state of training, of the model and of the optimiser.

    Attributes:
        state: counters and lanes.
        weights: fp32, by parameter name of `NeoBERTLMHead`.
        moments: fp32, `exp_avg.NAME` and `exp_avg_sq.NAME`.
    """

    state: TrainingState
    weights: dict[str, Tensor]
    moments: dict[str, Tensor]


def save_checkpoint(
    run: RunDirectory, checkpoint: Checkpoint, config: TrainConfig, tokenizer: TextTokenizer
) -> Path:
    """Write a checkpoint under a temporary name, sync it, then give it its name.

    Raises:
        OSError: the disk is full or not writable; nothing bears the final name then.
    """
    step = checkpoint.state.step
    folder, final = run.temporary_checkpoint(step), run.checkpoint(step)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        metadata = {"format": "pt", "step": str(step)}
        save_file(checkpoint.weights, folder / WEIGHTS_FILE, metadata)
        save_file(checkpoint.moments, folder / MOMENTS_FILE, metadata)
        write_json(folder / STATE_FILE, _state_to_dict(checkpoint.state))
        (folder / CONFIG_FILE).write_text(dump_config(config), encoding="utf-8")
        tokenizer.save(folder / TOKENIZER_FOLDER, config.model.max_length)
        write_json(folder / MANIFEST_FILE, {"step": step, "files": _describe_files(folder)})
        sync_tree(folder)
        if final.exists():  # an earlier one of the same step that was found damaged
            run.remove_checkpoint(step)
        folder.rename(final)
        sync_folder(final.parent)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return final


def prune_checkpoints(run: RunDirectory, keep: CheckpointConfig, newest: int) -> None:
    """Remove the checkpoints that `keep` does not ask for.

    Args:
        run: the run directory.
        keep: which to keep.
        newest: step of the one just written, which always stays. Those of later steps are left alone
            and count for nothing: the run did not go on from them, since they are damaged.
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
        loss = json.loads((folder / STATE_FILE).read_text(encoding="utf-8"))["heldout_loss"]
    except (OSError, ValueError, KeyError):
        return None
    return None if loss is None or math.isnan(loss) else float(loss)


def find_damage(folder: Path) -> str | None:
    """What is wrong with a checkpoint's files; None when all are as they were written."""
    name = MANIFEST_FILE
    try:
        text = (folder / MANIFEST_FILE).read_text(encoding="utf-8")
        manifest = json.loads(text)
        if text != to_json(manifest):  # which the checks below would not notice
            return f"{MANIFEST_FILE} is not as it was written"
        if folder.name != f"step-{manifest['step']:08d}":
            return f"{MANIFEST_FILE} is that of step {manifest['step']}"
        files = manifest["files"]
        for name in _NEEDED_FILES:
            if name not in files:
                return f"{MANIFEST_FILE} does not list {name}"
        for name, expected in files.items():
            if not _lies_below(name):
                return f"{MANIFEST_FILE} lists {name}, which is not in the folder"
            path = folder / name
            if not path.is_file():
                return f"{name} is missing"
            if path.stat().st_size != expected["bytes"]:
                return f"{name} has {path.stat().st_size} bytes instead of {expected['bytes']}"
            if hash_file(path) != expected["sha256"]:
                return f"{name} is not the file that {MANIFEST_FILE} was written for (sha256)"
    except OSError as error:
        return f"{name} cannot be read ({error.strerror})"
    except (ValueError, KeyError, TypeError) as error:
        return f"{MANIFEST_FILE} cannot be read ({error})"
    return None


def find_misfit(
    folder: Path, shapes: Mapping[str, Sequence[int]], is_same_run: Callable[[Path], bool]
) -> str | None:
    """Why a sound checkpoint is not one of a run; None when it is.

    Args:
        folder: of the checkpoint.
        shapes: of the model's weights, by name.
        is_same_run: whether a configuration file is one that the run could have written.
    """
    if not is_same_run(folder / CONFIG_FILE):
        return f"{CONFIG_FILE} is that of another run"
    for file, prefixes in ((WEIGHTS_FILE, ("",)), (MOMENTS_FILE, ("exp_avg.", "exp_avg_sq."))):
        expected = {f"{prefix}{name}": list(shapes[name]) for prefix in prefixes for name in shapes}
        with safe_open(folder / file, "pt") as tensors:
            found = {name: tensors.get_slice(name).get_shape() for name in tensors.keys()}  # noqa: SIM118
        for name in expected.keys() | found.keys() if found else ():  # no moments before a step
            if expected.get(name) != found.get(name):
                return f"{file} has {name} as {found.get(name)}, the model as {expected.get(name)}"
    return None


def find_checkpoint(
    run: RunDirectory,
    step: int | None = None,
    find_misfit: Callable[[Path], str | None] | None = None,
) -> Path | None:
    """The newest sound checkpoint, or the one of `step`; None when the run has none.

    A damaged one is named in a warning and passed over.

    Args:
        run: the run directory.
        step: of the one wanted; None for the newest.
        find_misfit: says what else is wrong with one whose files are sound.

    Raises:
        InputError: the checkpoint of `step` is missing or damaged, or all are damaged.
    """
    available = run.list_checkpoints()
    if step is not None:
        return _find_step(run, available, step)
    damages = []
    for _, folder in reversed(available):
        damage = find_damage(folder)
        if damage is None and find_misfit is not None:
            damage = find_misfit(folder)
        if damage is None:
            return folder
        logger.warning("the checkpoint %s is damaged and passed over: %s", folder, damage)
        damages.append(f"{folder}: {damage}")
    if damages:
        raise InputError(
            "no checkpoint of the run is sound; restore one, or remove the folder to start "
            "afresh:\n  " + "\n  ".join(damages)
        )
    return None


def _find_step(run: RunDirectory, available: list[tuple[int, Path]], step: int) -> Path:
    folder = dict(available).get(step)
    if folder is None:
        steps = ", ".join(str(number) for number, _ in available) or "none"
        raise InputError(f"{run.path} has no checkpoint of step {step}; there are: {steps}")
    damage = find_damage(folder)
    if damage is not None:
        raise InputError(f"the checkpoint {folder} is damaged: {damage}")
    return folder


def load_state(folder: Path) -> TrainingState:
    """The counters and lanes of a checkpoint."""
    raw = json.loads((folder / STATE_FILE).read_text(encoding="utf-8"))
    if raw["format_version"] != FORMAT_VERSION:
        raise InputError(
            f"{folder} was written in format {raw['format_version']}; this version of "
            f"neobert_train reads format {FORMAT_VERSION}"
        )
    del raw["format_version"]
    raw["lanes"] = {int(lane): state for lane, state in raw["lanes"].items()}
    raw["divergence"] = DivergenceState(**raw["divergence"])
    return TrainingState(**raw)


def load_weights(folder: Path) -> dict[str, Tensor]:
    """The fp32 weights of a checkpoint by parameter name."""
    return _load_tensors(folder / WEIGHTS_FILE)


def load_moments(folder: Path) -> dict[str, Tensor]:
    """The fp32 moments of a checkpoint by `MOMENT.PARAMETER`."""
    return _load_tensors(folder / MOMENTS_FILE)


def _load_tensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise InputError(f"{path} cannot be read: {error}") from error


def _state_to_dict(state: TrainingState) -> dict[str, Any]:
    lanes = {str(lane): state.lanes[lane] for lane in sorted(state.lanes)}
    return {"format_version": FORMAT_VERSION, **asdict(state), "lanes": lanes}


def _lies_below(name: str) -> bool:
    path = PurePosixPath(name)
    return not path.is_absolute() and ".." not in path.parts


def _describe_files(folder: Path) -> Mapping[str, Any]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        str(path.relative_to(folder)): {"bytes": path.stat().st_size, "sha256": hash_file(path)}
        for path in files
    }
