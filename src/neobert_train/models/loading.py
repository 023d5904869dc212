"""Weights of a run, an exported folder or a model on the Hub, to start from or to measure."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from neobert_train.config.model_schema import ModelConfig
from neobert_train.config.quoting import to_shell
from neobert_train.config.saved import load_train_config
from neobert_train.config.schema import TrainConfig
from neobert_train.errors import InputError
from neobert_train.models.encoder import Encoder, get_parameters
from neobert_train.models.families import FAMILIES, build_encoder, describe_model, find_family
from neobert_train.models.folder import find_model_folder
from neobert_train.run.checkpoint import (
    CONFIG_FILE,
    TOKENIZER_FOLDER,
    UnsoundNumberError,
    check_numbers,
    load_weights,
)
from neobert_train.run.checkpoint_search import find_checkpoint
from neobert_train.run.directory import RunDirectory
from neobert_train.tokenizers.loading import load_tokenizer
from neobert_train.tokenizers.text_tokenizer import TextTokenizer


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

    def write(self, folder: Path) -> None:
        """Write weights, configuration, code and tokenizer, as `Encoder.write` does, for its context."""
        self.encoder.write(folder, self.tokenizer, self.config.batch.context_length)


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
    encoder = build_encoder(config, tokenizer, run.read_network())
    load_into(encoder, load_weights(checkpoint), str(checkpoint))
    return TrainedModel(checkpoint, config, encoder, tokenizer)


def load_initial_weights(
    key: str, origin: str, model: ModelConfig, vocab_size: int
) -> dict[str, Tensor]:
    """Return the fp32 weights that a setting names, by parameter name.

    Args:
        key: of the setting.
        origin: a run directory, an exported folder, or a Hub name with or without `@revision`.
        model: that is to start with them.
        vocab_size: of its tokenizer.

    Raises:
        InputError: there are none, or they are those of another model.
    """
    label, run, family = f"{key}={origin}", RunDirectory(origin), FAMILIES[type(model)]
    config: Any
    if run.list_checkpoints():
        checkpoint = find_checkpoint(run)
        assert checkpoint is not None
        config, weights = (
            load_train_config(checkpoint / CONFIG_FILE).model,
            load_weights(checkpoint),
        )
        if FAMILIES[type(config)] is not family:
            raise InputError(
                f"{label} is a run with model.kind={config.kind}, and model.kind={model.kind} is another"
            )
    else:
        folder = find_model_folder(origin, label)
        # A kind that names its network says by itself what a folder lacks.
        found = family if model.source else find_family(folder, label)
        if found is not family:
            raise InputError(
                f"{label} holds a {describe_model(folder, label)}, and model.kind={model.kind} is "
                f"another: write model=hugging_face {to_shell('model.name', origin)} to train it further"
            )
        config, weights = found.read_config(folder), found.read_weights(folder, label, model)
    for name, tensor in weights.items():
        try:
            check_numbers(name, tensor)
        except UnsoundNumberError as error:
            raise InputError(f"the weights of {label} cannot be trained: {error}") from error
    _check_shape(label, config, model)
    _check_vocabulary(label, weights.get(family.embedding), vocab_size)
    return weights


def load_into(encoder: Encoder, weights: Mapping[str, Tensor], origin: str) -> None:
    """Copy weights into an encoder that has exactly these.

    Raises:
        InputError: names, shapes and numbers of tensors that do not fit.
    """
    expected = get_parameters(encoder.network)
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
    with torch.no_grad():
        for name, tensor in expected.items():
            tensor.copy_(weights[name])


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
