"""The families of encoders, by the kind that a configuration chooses and by what a folder holds."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from neobert_train.config.model_schema import ModelConfig, NeoBERTModelConfig
from neobert_train.config.schema import TrainConfig
from neobert_train.errors import InputError
from neobert_train.models.encoder import Encoder
from neobert_train.models.neobert import MODEL_TYPE, NeoBERTEncoder, read_network_config
from neobert_train.tokenizers.text_tokenizer import TextTokenizer

_CONFIG_FILE = "config.json"


@dataclass(frozen=True)
class Family:
    """Encoders of one architecture.

    Attributes:
        name: of the architecture.
        model_type: as its `config.json` says.
        build: an encoder with random weights, of the settings of a kind and a tokenizer.
        load: an encoder from a folder, named by a label in messages.
        read_config: the network's own configuration in a folder; it has `max_length` and the settings
            of `ModelConfig.shape`.
        embedding: name of the table of token embeddings among the weights.
    """

    name: str
    model_type: str
    build: Callable[[Any, TextTokenizer], Encoder]
    load: Callable[[Path, str], Encoder]
    read_config: Callable[[Path], Any]
    embedding: str


FAMILIES: dict[type[ModelConfig], Family] = {
    NeoBERTModelConfig: Family(
        name="NeoBERT",
        model_type=MODEL_TYPE,
        build=NeoBERTEncoder.build,
        load=NeoBERTEncoder.load,
        read_config=read_network_config,
        embedding="model.encoder.weight",
    ),
}


def build_encoder(config: TrainConfig, tokenizer: TextTokenizer) -> Encoder:
    """Return an encoder with initial weights that depend on the seed only, alike on every process."""
    torch.manual_seed(config.seed)
    return FAMILIES[type(config.model)].build(config.model, tokenizer)


def find_family(folder: Path, label: str) -> Family:
    """Return the family of the model in a folder.

    Raises:
        InputError: the folder holds no model, or one of another architecture.
    """
    file = folder / _CONFIG_FILE
    if not file.is_file():
        raise InputError(
            f"{label} holds neither checkpoints of a run nor the config.json of a model: name a run "
            f"directory, an exported folder or a Hub model"
        )
    names = " or ".join(family.name for family in FAMILIES.values())
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
        kind = values.get("model_type")
        classes = values.get("architectures")
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        raise InputError(
            f"{file} cannot be read as the config.json of a {names}: {error}"
        ) from error
    for family in FAMILIES.values():
        if family.model_type == kind:
            return family
    found = "model of a kind that is not named" if kind is None else str(kind)
    if isinstance(classes, list) and classes:
        found = f"{classes[0]} (model_type {found})"
    raise InputError(
        f"{label} holds a {found}, as its config.json says, and what is trained here is a {names}: name "
        f"a run directory, an exported folder, or a Hub model such as chandar-lab/NeoBERT"
    )
