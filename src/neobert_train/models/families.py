"""The families of encoders, by the kind that a configuration chooses and by what a folder holds."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

from neobert_train.config.model_schema import (
    HuggingFaceModelConfig,
    ModelConfig,
    NeoBERTModelConfig,
)
from neobert_train.config.schema import TrainConfig
from neobert_train.config.typed import parse
from neobert_train.errors import InputError
from neobert_train.models.encoder import Encoder, get_parameters
from neobert_train.models.folder import CONFIG_FILE, load_folder_weights
from neobert_train.models.hugging_face import HuggingFaceEncoder
from neobert_train.models.neobert import MODEL_TYPE, NeoBERTEncoder, read_network_config
from neobert_train.tokenizers.text_tokenizer import TextTokenizer


@dataclass(frozen=True)
class Family:
    """Encoders that are built and loaded alike.

    Attributes:
        name: for messages.
        build: an encoder with random weights, of the settings of a kind, a tokenizer, and what
            `Encoder.describe_network` gave a run that continues (None for one that begins).
        load: an encoder from a folder, named by a label in messages, whose code may run or not.
        read_weights: fp32 weights by parameter name from a folder, named by a label, for the settings of
            a kind.
        read_config: the network's own configuration in a folder, with the settings of
            `ModelConfig.shape`.
        embedding: name of the table of token embeddings among the weights; empty where it is not known.
    """

    name: str
    build: Callable[[Any, TextTokenizer, Mapping[str, Any] | None], Encoder]
    load: Callable[[Path, str, bool], Encoder]
    read_weights: Callable[[Path, str, Any], dict[str, Tensor]]
    read_config: Callable[[Path], Any]
    embedding: str = ""


def _read_hugging_face_weights(
    folder: Path, label: str, model: HuggingFaceModelConfig
) -> dict[str, Tensor]:
    encoder = HuggingFaceEncoder.load(folder, label, model.trust_remote_code)
    return {name: tensor.detach() for name, tensor in get_parameters(encoder.network).items()}


FAMILIES: dict[type[ModelConfig], Family] = {
    NeoBERTModelConfig: Family(
        name="NeoBERT",
        build=NeoBERTEncoder.build,
        load=lambda folder, label, _: NeoBERTEncoder.load(folder, label),
        read_weights=lambda folder, label, _: load_folder_weights(folder, label),
        read_config=read_network_config,
        embedding="model.encoder.weight",
    ),
    HuggingFaceModelConfig: Family(
        name="model of transformers",
        build=HuggingFaceEncoder.build,
        load=HuggingFaceEncoder.load,
        read_weights=_read_hugging_face_weights,
        read_config=lambda _: None,
    ),
}


def build_encoder(
    config: TrainConfig, tokenizer: TextTokenizer, kept: Mapping[str, Any] | None = None
) -> Encoder:
    """Return an encoder with initial weights that depend on the seed only, alike on every process.

    Args:
        config: of the run.
        tokenizer: of the run.
        kept: what `Encoder.describe_network` gave a run that continues.

    Raises:
        InputError: there is no such network, or documents are longer than it can take.
    """
    torch.manual_seed(config.seed)
    encoder = FAMILIES[type(config.model)].build(config.model, tokenizer, kept)
    if config.batch.context_length > encoder.max_length:
        raise InputError(
            f"batch.context_length={config.batch.context_length} exceeds what the model can take: "
            f"write batch.context_length={encoder.max_length}"
        )
    return encoder


def find_family(folder: Path, label: str, trust_remote_code: bool | None = None) -> Family:
    """Return the family of the model in a folder.

    Args:
        folder: of the model.
        label: the setting that names it, as it was written.
        trust_remote_code: whether code that lies in the folder may run; None where nobody can say so.

    Raises:
        InputError: the folder holds no model, or one of another architecture.
    """
    config = _read_config(folder, label)
    kind, own_code = config.get("model_type"), config.get("auto_map")
    if kind == MODEL_TYPE:
        return FAMILIES[NeoBERTModelConfig]
    if isinstance(kind, str) and kind in MODEL_FOR_MASKED_LM_MAPPING_NAMES:
        return FAMILIES[HuggingFaceModelConfig]
    if own_code and trust_remote_code:
        return FAMILIES[HuggingFaceModelConfig]
    if own_code and trust_remote_code is False:
        raise InputError(
            f"{label} holds a {describe_model(folder, label)}, which comes with code of its own: read it, "
            f"and write trust_remote_code=true"
        )
    raise InputError(
        f"{label} holds a {describe_model(folder, label)}, as its config.json says, which is neither a "
        f"NeoBERT nor a masked-language model of transformers: name a run directory, an exported "
        f"folder, or a Hub model such as chandar-lab/NeoBERT"
    )


def describe_model(folder: Path, label: str) -> str:
    """Return the class of the model in a folder, as its `config.json` says."""
    config = _read_config(folder, label)
    kind, classes = config.get("model_type"), config.get("architectures")
    found = "model of a kind that is not named" if kind is None else str(kind)
    if isinstance(classes, list) and classes:
        found = f"{classes[0]} (model_type {found})"
    return found


def _read_config(folder: Path, label: str) -> dict[str, Any]:
    file = folder / CONFIG_FILE
    if not file.is_file():
        raise InputError(
            f"{label} holds neither checkpoints of a run nor the config.json of a model: name a run "
            f"directory, an exported folder or a Hub model"
        )
    try:
        config: dict[str, Any] = parse(dict[str, Any], json.loads(file.read_text(encoding="utf-8")))
        return config
    except (OSError, ValueError, RecursionError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(
            f"{file} cannot be read as the config.json of a model: {reason}"
        ) from error
