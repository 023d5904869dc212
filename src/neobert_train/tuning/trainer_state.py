"""What a trainer of transformers needs to continue, in safetensors and JSON instead of pickles.

transformers writes optimiser, schedule and random states with `torch.save`, and has no setting for
another format. Here moments are kept by the name of their parameter, and everything else as JSON, so
that reading a checkpoint runs nothing.
"""

import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from neobert_train.errors import InputError
from neobert_train.files import DamagedFileError, read_checked_json, write_checked_json
from neobert_train.run.checkpoint import save_tensors

OPTIMIZER_FILE = "optimizer.safetensors"
SCHEDULE_FILE = "schedule.json"
RANDOM_FILE = "random.json"
_RANDOM_TENSORS_FILE = "random.safetensors"


def save_optimizer(
    folder: Path,
    optimizer: torch.optim.Optimizer,
    scheduler: Any,
    names: Mapping[Tensor, str],
) -> None:
    """Write moments as `MOMENT.PARAMETER`, and the learning rates with where the schedule stands.

    Args:
        folder: of the checkpoint.
        optimizer: whose state is kept.
        scheduler: a LambdaLR over it.
        names: of all parameters.

    Raises:
        OSError: they cannot be written.
    """
    tensors = {
        f"{moment}.{names[parameter]}": value.detach().contiguous().cpu()
        for parameter, state in optimizer.state.items()
        for moment, value in state.items()
    }
    save_tensors(tensors, folder / OPTIMIZER_FILE, {"format": "pt"})
    kept = {
        "last_epoch": scheduler.last_epoch,
        "lrs": [group["lr"] for group in optimizer.param_groups],
    }
    write_checked_json(folder / SCHEDULE_FILE, kept)


def load_optimizer(
    folder: Path,
    optimizer: torch.optim.Optimizer,
    scheduler: Any,
    names: Mapping[Tensor, str],
) -> None:
    """Restore what `save_optimizer` wrote into an optimiser over the same parameters.

    Raises:
        InputError: a file is missing, damaged, or of other parameters.
    """
    tensors = _load_tensors(folder / OPTIMIZER_FILE)
    kept = _load_json(folder / SCHEDULE_FILE)
    groups = optimizer.state_dict()["param_groups"]
    numbers = [number for group in groups for number in group["params"]]
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    places = {names[p]: (number, p) for number, p in zip(numbers, parameters, strict=True)}
    # A parameter that takes no part in the loss, such as BERT's pooler, has no moments.
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        moment, _, name = key.partition(".")
        number, parameter = places.get(name, (None, value))
        if number is None or (value.dim() and value.shape != parameter.shape):
            raise _refuse(folder / OPTIMIZER_FILE, f"{key} is not of this model")
        state.setdefault(number, {})[moment] = value
    optimizer.load_state_dict({"state": state, "param_groups": groups})
    scheduler.last_epoch = int(kept["last_epoch"])
    scheduler._step_count = scheduler.last_epoch + 1
    scheduler._last_lr = [float(lr) for lr in kept["lrs"]]
    for group, lr in zip(optimizer.param_groups, scheduler._last_lr, strict=True):
        group["lr"] = lr


def save_random_states(folder: Path) -> None:
    """Write the states of all generators that a network and the order of its data may draw from.

    Raises:
        OSError: they cannot be written.
    """
    state: Any = np.random.get_state()
    algorithm, keys, *rest = state
    values = {"python": random.getstate(), "numpy": [algorithm, keys.tolist(), *rest]}
    write_checked_json(folder / RANDOM_FILE, values, indent=None)
    tensors = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        tensors["cuda"] = torch.cuda.get_rng_state()
    save_tensors(tensors, folder / _RANDOM_TENSORS_FILE, {"format": "pt"})


def load_random_states(folder: Path) -> None:
    """Restore what `save_random_states` wrote; that of a GPU only where there is one.

    Raises:
        InputError: a file is missing or damaged.
    """
    values, tensors = _load_json(folder / RANDOM_FILE), _load_tensors(folder / _RANDOM_TENSORS_FILE)
    version, internal, gauss = values["python"]
    random.setstate((version, tuple(internal), gauss))
    algorithm, keys, *rest = values["numpy"]
    np.random.set_state((algorithm, np.array(keys, dtype=np.uint32), *rest))
    torch.set_rng_state(tensors["cpu"])
    if torch.cuda.is_available() and "cuda" in tensors:
        torch.cuda.set_rng_state(tensors["cuda"])


def _load_tensors(file: Path) -> dict[str, Tensor]:
    try:
        return load_file(file)
    except (OSError, SafetensorError) as error:
        raise _refuse(file, str(error).splitlines()[0]) from error


def _load_json(file: Path) -> dict[str, Any]:
    try:
        value = read_checked_json(file)
    except DamagedFileError as error:
        raise _refuse(file, str(error)) from error
    return dict(value)


def _refuse(file: Path, reason: str) -> InputError:
    return InputError(
        f"{file} cannot be read ({reason}): remove the folder {file.parent} to begin again from what "
        f"came before it"
    )
