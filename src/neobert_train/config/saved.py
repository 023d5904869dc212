"""A configuration as YAML beside a run, and what may change when the run goes on."""

from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from neobert_train.config.schema import TrainConfig
from neobert_train.config.setting import iter_settings
from neobert_train.errors import InputError
from neobert_train.urls import hide_in_values

# What decides the model and the data of every step. The rest may differ from start to start.
_IDENTITY = ("seed", "batch.", "data.", "tokenizer.", "masking.", "model.")
_FREE_WITHIN_IDENTITY = (
    "data.num_workers",
    "data.prefetch_micro_batches",
    "data.on_bad_record",
    "data.prepared_dir",
    "data.max_retries",
    "data.timeout_seconds",
    "model.attention",
    "model.compile",
    "model.activation_checkpointing",
)
# Where and how a run is carried out says nothing about its results.
_UNREMARKABLE = (
    "output_dir",
    "resume",
    "init_from",
    "logging.",
    "trainer.time_limit",
    "trainer.step_timeout_seconds",
    *_FREE_WITHIN_IDENTITY,
)


def dump_config(config: Any) -> str:
    """A typed configuration as YAML with every value, URLs without their credentials."""
    values = OmegaConf.to_container(OmegaConf.structured(config), enum_to_str=True)
    return OmegaConf.to_yaml(OmegaConf.create(hide_in_values(values)))


def load_train_config(path: Path) -> TrainConfig:
    """The typed configuration that `dump_config` wrote.

    Raises:
        InputError: the file is missing or not a configuration of this version.
    """
    try:
        saved = OmegaConf.load(path)
        if not isinstance(saved, DictConfig) or not saved:
            raise InputError(f"{path} cannot be read as a configuration: it holds no settings")
        config = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(TrainConfig), saved))
    except (OSError, UnicodeDecodeError, yaml.YAMLError, OmegaConfBaseException) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"{path} cannot be read as a configuration: {reason}") from error
    assert isinstance(config, TrainConfig)
    return config


def find_differences(saved: TrainConfig, current: TrainConfig) -> tuple[list[str], list[str]]:
    """Settings that differ between a run and its continuation.

    Returns:
        Those that would make it another run (other data order, masks or model), and those that
        are worth a warning; each as `key: old -> new`.
    """
    fatal: list[str] = []
    notable: list[str] = []
    old = {setting.key: setting.value for setting in iter_settings(saved)}
    new = {setting.key: setting.value for setting in iter_settings(current)}
    for key in {**old, **new}:  # a source of a mixture may be in one of them alone
        before, now = (hide_in_values(side.get(key)) for side in (old, new))
        if key.startswith(_UNREMARKABLE) or before == now:
            continue
        text = f"{key}: {_show(before)} -> {_show(now)}"
        (fatal if key.startswith(_IDENTITY) else notable).append(text)
    return fatal, notable


def _show(value: Any) -> str:
    return str(getattr(value, "name", value))
