"""Which checkpoint of a run is sound, and what is wrong with the others."""

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath

from safetensors import SafetensorError, safe_open

from neobert_train.config.choices import OptimizerConfig, Role
from neobert_train.config.derived import compute_num_lanes
from neobert_train.config.saved import load_train_config
from neobert_train.config.typed import Count, parse
from neobert_train.errors import InputError
from neobert_train.files import DamagedFileError, hash_file, parse_json, read_text, to_json
from neobert_train.run.checkpoint import (
    CONFIG_FILE,
    MANIFEST_FILE,
    MOMENTS_FILE,
    STATE_FILE,
    WEIGHTS_FILE,
    TrainingState,
    UnsoundNumberError,
    check_numbers,
    read_state,
)
from neobert_train.run.directory import RunDirectory

logger = logging.getLogger(__name__)

_NEEDED_FILES = (WEIGHTS_FILE, MOMENTS_FILE, STATE_FILE, CONFIG_FILE)


@dataclass(frozen=True)
class _Entry:
    """A file as the manifest describes it."""

    bytes: Count
    sha256: str


@dataclass(frozen=True)
class _Manifest:
    """What a checkpoint consists of."""

    step: Count
    files: dict[str, _Entry]


class _DamagedError(Exception):
    """Says what is wrong with a checkpoint."""


def find_checkpoint(
    run: RunDirectory,
    step: int | None = None,
    find_misfit: Callable[[Path], str | None] | None = None,
) -> Path | None:
    """Find the newest sound checkpoint, or the one of `step`; None when the run has none.

    A damaged one is named in a warning and passed over.

    Args:
        run: the run directory.
        step: of the one wanted; None for the newest.
        find_misfit: says what else is wrong with one whose files are sound.

    Raises:
        InputError: the checkpoint of `step` is missing or damaged, or all are damaged.
    """
    if step is not None:
        return _find_step(run, step)
    damages: dict[Path, str] = {}
    while True:
        # Listed anew each time: a run that still trains removes old ones and adds new ones.
        left = [folder for _, folder in run.list_checkpoints() if folder not in damages]
        if not left:
            break
        damage = find_damage(left[-1])
        if damage is None and find_misfit is not None:
            damage = find_misfit(left[-1])
        if damage is None:
            return left[-1]
        if os.path.lexists(left[-1]):
            logger.warning(
                "the checkpoint %s is damaged and passed over: %s", left[-1], damage
            )  # fmt: skip
            damages[left[-1]] = damage
    if damages:
        raise InputError(
            "no checkpoint of the run is sound; restore one, or remove the folder to start "
            "afresh:\n  " + "\n  ".join(f"{folder}: {damage}" for folder, damage in damages.items())
        )
    return None


def _find_step(run: RunDirectory, step: int) -> Path:
    available = dict(run.list_checkpoints())
    folder = available.get(step)
    if folder is None:
        steps = ", ".join(map(str, available)) or "none"
        raise InputError(f"{run.path} has no checkpoint of step {step}; there are: {steps}")
    damage = find_damage(folder)
    if damage is not None:
        raise InputError(f"the checkpoint {folder} is damaged: {damage}")
    return folder


def find_damage(folder: Path) -> str | None:
    """Find what is wrong with a checkpoint; None when it is as it was written and can be loaded."""
    try:
        manifest = _read_manifest(folder)
        for name, entry in manifest.files.items():
            _check_file(folder / name, name, entry)
        state = _read_sound_state(folder, manifest.step)
        config = load_train_config(folder / CONFIG_FILE)
        num_lanes = compute_num_lanes(config)
        if len(state.lanes) != num_lanes:
            return (
                f"{STATE_FILE} has {len(state.lanes)} lanes, and {CONFIG_FILE} asks for {num_lanes}"
            )
        _check_tensors(folder, state, config.optimizer)
    except (_DamagedError, InputError) as error:
        return str(error)
    return None


def read_weights_digest(folder: Path) -> str:
    """Read the sha256 of a checkpoint's weights, by which they are known elsewhere.

    Raises:
        InputError: its manifest is missing or damaged.
    """
    try:
        return _read_manifest(folder).files[WEIGHTS_FILE].sha256
    except _DamagedError as error:
        raise InputError(f"the checkpoint {folder} is damaged: {error}") from error


def _read_manifest(folder: Path) -> _Manifest:
    try:
        text = read_text(folder / MANIFEST_FILE)
        manifest: _Manifest = parse(_Manifest, parse_json(text))
    except (DamagedFileError, ValueError) as error:
        raise _DamagedError(f"{MANIFEST_FILE} cannot be read ({error})") from error
    if text != to_json(asdict(manifest)):  # which the checks below would not notice
        raise _DamagedError(f"{MANIFEST_FILE} is not as it was written")
    if folder.name != f"step-{manifest.step:08d}":
        raise _DamagedError(f"{MANIFEST_FILE} is that of step {manifest.step}")
    for name in _NEEDED_FILES:
        if name not in manifest.files:
            raise _DamagedError(f"{MANIFEST_FILE} does not list {name}")
    for name in manifest.files:
        if not _lies_below(name):
            raise _DamagedError(f"{MANIFEST_FILE} lists {name!r}, which is not in the folder")
    return manifest


def _check_file(path: Path, name: str, entry: _Entry) -> None:
    try:
        if not path.is_file():
            raise _DamagedError(f"{name} is missing")
        size = path.stat().st_size
        if size != entry.bytes:
            raise _DamagedError(f"{name} has {size} bytes instead of {entry.bytes}")
        if hash_file(path) != entry.sha256:
            raise _DamagedError(
                f"{name} is not the file that {MANIFEST_FILE} was written for (sha256)"
            )
    except OSError as error:
        raise _DamagedError(f"{name} cannot be read ({error.strerror})") from error


def _read_sound_state(folder: Path, step: int) -> TrainingState:
    try:
        state = read_state(folder)
    except (DamagedFileError, ValueError) as error:
        raise _DamagedError(f"{STATE_FILE} cannot be used: {error}") from error
    if state.step != step:
        raise _DamagedError(f"{STATE_FILE} is that of step {state.step}")
    return state


def _check_tensors(folder: Path, state: TrainingState, optimizer: OptimizerConfig) -> None:
    """Look at every number: one that is not finite would be trained on, and exported.

    Args:
        folder: of the checkpoint.
        state: that it holds.
        optimizer: whose moments they are.
    """
    weights = _check_file_of_tensors(folder / WEIGHTS_FILE)
    moments = _check_file_of_tensors(folder / MOMENTS_FILE)
    if not weights:
        raise _DamagedError(f"{WEIGHTS_FILE} holds no weights")
    expected: dict[str, tuple[int, ...]] = {}
    for name, shape in weights.items():
        expected |= _find_moments(name, shape, moments, optimizer)
    if moments != (expected if state.updates else {}):  # there are none before the first update
        odd = sorted(dict(moments.items() ^ expected.items()) if state.updates else moments)[0]
        raise _DamagedError(f"{MOMENTS_FILE} does not fit {WEIGHTS_FILE} in {odd}")


def _find_moments(
    name: str,
    shape: tuple[int, ...],
    found: Mapping[str, tuple[int, ...]],
    optimizer: OptimizerConfig,
) -> dict[str, tuple[int, ...]]:
    """Return the shapes that the moments of a weight should have, by `MOMENT.PARAMETER`.

    What a weight is for does not stand in a checkpoint: of the moments that its optimiser keeps for the
    roles, they are those of which the most were found.
    """
    kinds = [
        {f"{moment.name}.{name}": moment.compute_shape(shape) for moment in moments}
        for moments in dict.fromkeys(map(optimizer.list_moments, Role))
    ]
    return max(kinds, key=lambda kind: len(kind.items() & found.items()))


def _check_file_of_tensors(path: Path) -> dict[str, tuple[int, ...]]:
    """Return the shape of every tensor by name."""
    shapes = {}
    try:
        with safe_open(path, "pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118
                tensor = tensors.get_tensor(name)
                shapes[name] = tuple(tensor.shape)
                check_numbers(name, tensor)
    except UnsoundNumberError as error:
        raise _DamagedError(f"{path.name}: {error}") from error
    except (OSError, SafetensorError) as error:
        raise _DamagedError(f"{path.name} cannot be read ({error})") from error
    return shapes


def find_misfit(
    folder: Path, shapes: Mapping[str, Sequence[int]], is_same_run: Callable[[Path], bool]
) -> str | None:
    """Find why a sound checkpoint is not one of a run; None when it is.

    Args:
        folder: of the checkpoint.
        shapes: of the model's weights, by name.
        is_same_run: whether a configuration file is one that the run could have written.
    """
    if not is_same_run(folder / CONFIG_FILE):
        return f"{CONFIG_FILE} is that of another run"
    expected = {name: list(shape) for name, shape in shapes.items()}
    with safe_open(folder / WEIGHTS_FILE, "pt") as tensors:
        found = {name: tensors.get_slice(name).get_shape() for name in tensors.keys()}  # noqa: SIM118
    for name in expected.keys() | found.keys():
        if expected.get(name) != found.get(name):
            return (
                f"{WEIGHTS_FILE} has {name} as {found.get(name)}, the model as {expected.get(name)}"
            )
    return None


def _lies_below(name: str) -> bool:
    path = PurePosixPath(name)
    return not path.is_absolute() and ".." not in path.parts and "\0" not in name
