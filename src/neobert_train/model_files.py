"""Weights of a run, an exported folder or a model on the Hub, to start from or to measure."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from neobert_train.config.saved import load_train_config
from neobert_train.config.schema import ModelConfig
from neobert_train.errors import InputError
from neobert_train.files import DamagedFileError, parse_json, read_text
from neobert_train.hub import HubError, download_files, pin_revision
from neobert_train.modeling.configuration_neobert import NeoBERTConfig
from neobert_train.run.checkpoint import CONFIG_FILE, load_weights
from neobert_train.run.checkpoint_search import find_checkpoint
from neobert_train.run.directory import RunDirectory

_CONFIG_FILE, _WEIGHTS_FILE = "config.json", "model.safetensors"
_TOKENIZER_FILE = "tokenizer_config.json"
# What else a folder may hold, and how to get to one safetensors file.
_OTHER_WEIGHTS = {
    "model.safetensors.index.json": "its weights are in several files: load it with transformers, "
    "and write it with save_pretrained(FOLDER, max_shard_size='100GB')",
    "pytorch_model.bin": "pytorch_model.bin is a pickle, which is not read: load it with "
    "transformers, and write it with save_pretrained(FOLDER)",
}
# With other values than they were trained with, weights that fit compute something else.
_SHAPE = (
    "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "norm_eps",
)  # fmt: skip


def load_initial_weights(origin: str, model: ModelConfig, vocab_size: int) -> dict[str, Tensor]:
    """Return the fp32 weights that `init_from` names, by parameter name.

    Args:
        origin: a run directory, an exported folder, or a Hub name with or without `@revision`.
        model: that is to start with them.
        vocab_size: of its tokenizer.

    Raises:
        InputError: there are none, or they are those of another model.
    """
    label, run = f"init_from={origin}", RunDirectory(origin)
    if run.list_checkpoints():
        checkpoint = find_checkpoint(run)
        assert checkpoint is not None
        saved = load_train_config(checkpoint / CONFIG_FILE).model
        shape = {key: getattr(saved, key) for key in _SHAPE}
        weights = load_weights(checkpoint)
    else:
        folder = find_model_folder(origin, label)
        config, weights = read_model_config(folder, label), load_folder_weights(folder, label)
        shape = {key: getattr(config, key) for key in _SHAPE}
    _check_shape(label, shape, model)
    _check_vocabulary(label, weights, vocab_size)
    return weights


def find_model_folder(name: str, label: str) -> Path:
    """Return the folder of a model, downloaded where its name is one on the Hub.

    Args:
        name: a folder, or a Hub name with or without `@revision`.
        label: the setting that holds it, as it was written.

    Raises:
        InputError: it is neither.
    """
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder
    try:
        return download_files(name, [_CONFIG_FILE, _TOKENIZER_FILE, "*.safetensors*"])
    except HubError as error:
        raise InputError(
            f"{label} is neither a folder nor a model on the Hub that can be reached ({error})"
        ) from error


def pin_model(name: str, label: str) -> str | None:
    """Return a Hub name with the commit that it stands for now; None for a folder.

    Raises:
        InputError: it is neither.
    """
    if Path(name).expanduser().is_dir():
        return None
    return pin_revision(name, find_model_folder(name, label))


def read_model_config(folder: Path, label: str) -> NeoBERTConfig:
    """Return the configuration of a NeoBERT.

    Raises:
        InputError: the folder holds none, or that of another architecture.
    """
    file = folder / _CONFIG_FILE
    if not file.is_file():
        raise InputError(
            f"{label} holds neither checkpoints of a run nor the config.json of a model: name a run "
            f"directory, an exported folder or a Hub model"
        )
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
        architecture = _find_architecture(values)
        if architecture is None:
            return NeoBERTConfig.from_dict(values)
    except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(
            f"{file} cannot be read as the config.json of a NeoBERT: {error}"
        ) from error
    raise InputError(
        f"{label} holds a {architecture}, as its config.json says, and what is trained here is a "
        f"NeoBERT: name a run directory, an exported folder, or a Hub model such as "
        f"chandar-lab/NeoBERT"
    )


def find_context_length(folder: Path, config: NeoBERTConfig) -> int:
    """Return how many tokens of a text a model was trained with, as far as its files say.

    The tokenizer of an export is cut to that; `max_length` is what the model can take.
    """
    try:
        values = parse_json(read_text(folder / _TOKENIZER_FILE))
    except (FileNotFoundError, DamagedFileError):
        return config.max_length
    length = values.get("model_max_length") if isinstance(values, dict) else None
    return (
        min(length, config.max_length) if type(length) is int and length > 0 else config.max_length
    )


def _find_architecture(values: Mapping[str, Any]) -> str | None:
    """Return what a model is that is no NeoBERT; None for a NeoBERT."""
    if values.get("model_type") == NeoBERTConfig.model_type:
        return None
    kind = str(values.get("model_type", "model of a kind that is not named"))
    classes = values.get("architectures")
    return f"{classes[0]} (model_type {kind})" if isinstance(classes, list) and classes else kind


def load_folder_weights(folder: Path, label: str) -> dict[str, Tensor]:
    """Return the fp32 weights of a model, by parameter name.

    Raises:
        InputError: the folder holds none that can be read.
    """
    file = folder / _WEIGHTS_FILE
    if not file.is_file():
        others = [fix for name, fix in _OTHER_WEIGHTS.items() if (folder / name).is_file()]
        raise InputError(
            f"{label} holds no {_WEIGHTS_FILE}{''.join(f'; {fix}' for fix in others[:1])}"
        )
    try:
        return {name: tensor.float() for name, tensor in load_file(file).items()}
    except (OSError, SafetensorError) as error:
        raise InputError(f"{file} cannot be read: {error}") from error


def _check_shape(label: str, shape: Mapping[str, Any], model: ModelConfig) -> None:
    """Raises InputError, with the settings to write, for weights of another shape."""
    other = {key: value for key, value in shape.items() if value != getattr(model, key)}
    if other:
        settings = " ".join(f"model.{key}={value}" for key, value in other.items())
        raise InputError(f"the weights of {label} are those of another model: write {settings}")


def _check_vocabulary(label: str, weights: Mapping[str, Tensor], vocab_size: int) -> None:
    """Raises InputError for weights of another number of token ids."""
    embedding = weights.get("model.encoder.weight")
    if embedding is not None and len(embedding) != vocab_size:
        raise InputError(
            f"the weights of {label} are for {len(embedding):,} token ids, and the tokenizer has "
            f"{vocab_size:,}: write the tokenizer.path that they were trained with"
        )
