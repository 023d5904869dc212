"""Weights of a run, an exported folder or a model on the Hub, to start from or to measure."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from neobert_train.config.model_schema import ModelConfig
from neobert_train.config.saved import load_train_config
from neobert_train.config.schema import TrainConfig
from neobert_train.errors import InputError
from neobert_train.files import DamagedFileError, parse_json, read_text
from neobert_train.hub import HubError, download_files, pin_revision
from neobert_train.models.encoder import Encoder
from neobert_train.models.families import FAMILIES, build_encoder, find_family
from neobert_train.run.checkpoint import CONFIG_FILE, TOKENIZER_FOLDER, load_weights
from neobert_train.run.checkpoint_search import find_checkpoint
from neobert_train.run.directory import RunDirectory
from neobert_train.tokenizers.loading import load_tokenizer
from neobert_train.tokenizers.text_tokenizer import TextTokenizer

_CONFIG_FILE, _WEIGHTS_FILE = "config.json", "model.safetensors"
_TOKENIZER_FILE = "tokenizer_config.json"
# What else a folder may hold, and how to get to one safetensors file.
_OTHER_WEIGHTS = {
    "model.safetensors.index.json": "its weights are in several files: load it with transformers, "
    "and write it with save_pretrained(FOLDER, max_shard_size='100GB')",
    "pytorch_model.bin": "pytorch_model.bin is a pickle, which is not read: load it with "
    "transformers, and write it with save_pretrained(FOLDER)",
}


@dataclass(frozen=True)
class TrainedModel:
    """A checkpoint of a run, loaded.

    Attributes:
        checkpoint: its folder.
        config: with which it was trained.
        encoder, tokenizer: as they were then.
    """

    checkpoint: Path
    config: TrainConfig
    encoder: Encoder
    tokenizer: TextTokenizer


def load_trained(run: RunDirectory, step: int | None) -> TrainedModel:
    """Load the checkpoint of a step, or (None) the newest sound one.

    Raises:
        InputError: the run has none, or it is damaged.
    """
    checkpoint = find_checkpoint(run, step)
    if checkpoint is None:
        raise InputError(f"{run.path} holds no checkpoint: check run_dir")
    config = load_train_config(checkpoint / CONFIG_FILE)
    tokenizer = load_tokenizer(str(checkpoint / TOKENIZER_FOLDER))
    encoder = build_encoder(config, tokenizer)
    load_into(encoder, load_weights(checkpoint), str(checkpoint))
    return TrainedModel(checkpoint, config, encoder, tokenizer)


def load_initial_weights(origin: str, model: ModelConfig, vocab_size: int) -> dict[str, Tensor]:
    """Return the fp32 weights that `init_from` names, by parameter name.

    Args:
        origin: a run directory, an exported folder, or a Hub name with or without `@revision`.
        model: that is to start with them.
        vocab_size: of its tokenizer.

    Raises:
        InputError: there are none, or they are those of another model.
    """
    label, run, family = f"init_from={origin}", RunDirectory(origin), FAMILIES[type(model)]
    config: Any
    if run.list_checkpoints():
        checkpoint = find_checkpoint(run)
        assert checkpoint is not None
        config, weights = (
            load_train_config(checkpoint / CONFIG_FILE).model,
            load_weights(checkpoint),
        )
        found = FAMILIES[type(config)]
    else:
        folder = find_model_folder(origin, label)
        found = find_family(folder, label)
        config, weights = found.read_config(folder), load_folder_weights(folder, label)
    if found is not family:
        raise InputError(f"{label} holds a {found.name}, and model.kind={model.kind} is another")
    _check_shape(label, config, model)
    _check_vocabulary(label, weights.get(family.embedding), vocab_size)
    return weights


def load_into(encoder: Encoder, weights: Mapping[str, Tensor], origin: str) -> None:
    """Copy weights into an encoder that has exactly these.

    Raises:
        InputError: names, shapes and numbers of tensors that do not fit.
    """
    expected = encoder.network.state_dict()
    problems = [f"{name} is missing" for name in expected if name not in weights]
    problems += [f"{name} is not in the model" for name in weights if name not in expected]
    problems += [
        f"{name} has the shape {list(weights[name].shape)}, the model {list(tensor.shape)}"
        for name, tensor in expected.items()
        if name in weights and weights[name].shape != tensor.shape
    ]
    if problems:
        shown = "\n  ".join(problems[:5])
        more = f"\n  and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise InputError(
            f"the weights of {origin} do not fit the model; set model.* as it was trained:"
            f"\n  {shown}{more}"
        )
    encoder.network.load_state_dict(dict(weights))


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


def find_context_length(folder: Path, longest: int) -> int:
    """Return how many tokens of a text a model was trained with, as far as its files say.

    Args:
        folder: of the model; the tokenizer of an export is cut to that length.
        longest: what the model can take.
    """
    try:
        values = parse_json(read_text(folder / _TOKENIZER_FILE))
    except (FileNotFoundError, DamagedFileError):
        return longest
    length = values.get("model_max_length") if isinstance(values, dict) else None
    return min(length, longest) if type(length) is int and length > 0 else longest


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


def _check_shape(label: str, config: Any, model: ModelConfig) -> None:
    """Raise InputError, with the settings to write, for weights of another shape."""
    shape = {key: getattr(config, key) for key in model.shape}
    other = {key: value for key, value in shape.items() if value != getattr(model, key)}
    if other:
        settings = " ".join(f"model.{key}={value}" for key, value in other.items())
        raise InputError(f"the weights of {label} are those of another model: write {settings}")


def _check_vocabulary(label: str, embedding: Tensor | None, vocab_size: int) -> None:
    """Raise InputError for weights of another number of token ids."""
    if embedding is not None and len(embedding) != vocab_size:
        raise InputError(
            f"the weights of {label} are for {len(embedding):,} token ids, and the tokenizer has "
            f"{vocab_size:,}: write the tokenizer.path that they were trained with"
        )
