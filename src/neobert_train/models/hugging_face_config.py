"""The configuration of a network of transformers: as its folder holds it, and as a run changes it."""

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import AutoConfig, PretrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from neobert_train.config.model_schema import HuggingFaceModelConfig
from neobert_train.errors import InputError
from neobert_train.models.folder import find_model_folder
from neobert_train.tokenizers.special_tokens import SpecialTokens

# Of heads for other tasks, which are not trained here.
_OF_OTHER_HEADS = ("classifier", "seq_classif", "qa_", "pooler", "summary")
_ORIGINAL_DROPOUT = "original_dropout"
# What follows from the shape, and is made again where these settings of it change.
_DERIVED = {
    "layer_types": ("num_hidden_layers",),
    "head_dim": ("hidden_size", "num_attention_heads"),
    "num_key_value_heads": ("num_attention_heads",),
}
# What some networks call the settings of the shape, where transformers does not map the names itself.
_OTHER_NAMES = {"intermediate_size": "hidden_dim"}


def make_network_config(
    config: HuggingFaceModelConfig,
    vocab_size: int,
    special: SpecialTokens | None,
    kept: Mapping[str, Any] | None,
) -> PretrainedConfig:
    """Return the configuration of the network that a run trains; its dropout is off.

    Args:
        config: which model, and what differs from it.
        vocab_size: of the tokenizer; random weights are made for it.
        special: tokens of the tokenizer, whose ids random weights are made for; None leaves the ids.
        kept: the configuration of a run that continues.

    Raises:
        InputError: there is no such model, or it lacks ids of the tokenizer.
    """
    label = f"model.name={config.name}"
    if kept is not None:
        return _restore(kept, config, label)
    folder = find_model_folder(config.name, label, with_weights=False)
    network = read_config(folder, label, config.trust_remote_code)
    if config.from_scratch:
        ids = _list_special_ids(special)
        known = {name: ids[name] for name in ids if getattr(network, name, None) is not None}
        overrides = _find_names(network, config.overrides, label)
        network = _reshape(network, overrides, {**known, "vocab_size": vocab_size})
    elif vocab_size > network.vocab_size:
        raise InputError(
            f"{label} is for {network.vocab_size:,} token ids, and the tokenizer has {vocab_size:,}: "
            f"give the one that it was trained with (tokenizer.path), or write model.from_scratch=true"
        )
    return switch_off_dropout(network)


def read_config(folder: Path, label: str, trust_remote_code: bool = False) -> PretrainedConfig:
    """Return the configuration in a folder.

    Args:
        folder: of the model.
        label: what names it in messages.
        trust_remote_code: whether code in the folder may run.

    Raises:
        InputError: it is none that transformers knows.
    """
    try:
        return AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
    except Exception as error:  # whatever transformers and the code of a model raise
        reason = (str(error).strip() or repr(error)).splitlines()[0]
        if "trust_remote_code" in str(error):
            reason = (
                "it comes with code of its own: read it, and write model.trust_remote_code=true"
            )
        raise InputError(f"{label} has no config.json that can be used: {reason}") from error


def switch_off_dropout(network: PretrainedConfig) -> PretrainedConfig:
    """Return a configuration without dropout, which keeps what its values were."""
    original = {
        name: value
        for name, value in network.to_dict().items()
        if ("dropout" in name or name.endswith("pdrop"))
        and not any(other in name for other in _OF_OTHER_HEADS)
        and isinstance(value, float)
    }
    changed = copy.deepcopy(network)
    for name in original:
        setattr(changed, name, 0.0)
    setattr(changed, _ORIGINAL_DROPOUT, original)
    return changed


def restore_dropout(network: PretrainedConfig) -> PretrainedConfig:
    """Return a configuration with the dropout that `switch_off_dropout` took out, for fine-tuning."""
    restored = copy.deepcopy(network)
    for name, value in getattr(network, _ORIGINAL_DROPOUT, {}).items():
        setattr(restored, name, value)
    if hasattr(restored, _ORIGINAL_DROPOUT):
        delattr(restored, _ORIGINAL_DROPOUT)
    return restored


def _restore(
    kept: Mapping[str, Any], config: HuggingFaceModelConfig, label: str
) -> PretrainedConfig:
    """Return the configuration that a run kept; only one with code of its own needs its model again."""
    try:
        known = CONFIG_MAPPING[kept["model_type"]]
    except KeyError:
        folder = find_model_folder(config.name, label, with_weights=False)
        known = type(read_config(folder, label, config.trust_remote_code))
    return known.from_dict(dict(kept))


def _find_names(
    network: PretrainedConfig, overrides: Mapping[str, int], label: str
) -> dict[str, int]:
    """Return settings of the shape by the names that a configuration has for them.

    Raises:
        InputError: it has none for one of them.
    """
    names = {}
    for name, value in overrides.items():
        other = _OTHER_NAMES.get(name, name)
        found = next((known for known in (name, other) if hasattr(network, known)), None)
        if found is None:
            raise InputError(
                f"model.{name}={value} has no effect on {label}, a {network.model_type}, whose "
                f"config.json does not know it: leave it out"
            )
        names[found] = value
    return names


def _reshape(
    network: PretrainedConfig, overrides: Mapping[str, int], vocabulary: Mapping[str, int]
) -> PretrainedConfig:
    """Return a configuration with another shape and vocabulary, and what follows from them."""
    changed = copy.deepcopy(network)
    for name, value in {**overrides, **vocabulary}.items():
        setattr(changed, name, value)  # by the name that its architecture has for it
    values = changed.to_dict()
    for name, settings in _DERIVED.items():
        if overrides.keys() & set(settings):
            values.pop(name, None)
    return type(network).from_dict(values)


def _list_special_ids(special: SpecialTokens | None) -> dict[str, int]:
    if special is None:
        return {}
    return {
        "pad_token_id": special.pad,
        "bos_token_id": special.cls,
        "eos_token_id": special.sep,
        "cls_token_id": special.cls,
        "sep_token_id": special.sep,
        "mask_token_id": special.mask,
    }
