"""A configuration as YAML beside a run, and what may change when the run continues."""

import dataclasses
import re
from collections import Counter
from enum import Enum
from pathlib import Path
from typing import Any, Literal

import yaml

from neobert_train.config.checks import find_range_problems
from neobert_train.config.choices import CHOICES
from neobert_train.config.derived import resolve_sources
from neobert_train.config.schema import TrainConfig
from neobert_train.config.setting import iter_settings
from neobert_train.config.typed import parse
from neobert_train.errors import InputError
from neobert_train.files import DamagedFileError, read_text
from neobert_train.urls import hide_in_values

_MOST_BYTES = 1 << 24  # hundreds of thousands of paths
_NOT_ONE = "cannot be read as a configuration"
# What decides the model and the data of every step. The rest may differ from start to start.
_IDENTITY = (
    "seed", "batch.", "data.", "tokenizer.", "masking.", "model.", "objective.", "optimizer.kind",
)  # fmt: skip
_FREE_WITHIN_IDENTITY = (
    "data.num_workers",
    "data.prefetch_micro_batches",
    "data.on_bad_record",
    "data.prepared_dir",
    "data.max_retries",
    "data.timeout_seconds",
    "model.attention",
    "model.feed_forward",
    "model.compile",
    "model.activation_checkpointing",
)
_OF_DECAYS = ("decay_fraction", "final_lr_ratio")
_NAMES_FILES = (
    "source", "paths", "format", "dataset", "subset", "split", "revision", "data_files",
)  # fmt: skip
# Where and how a run is carried out says nothing about its results.
_UNREMARKABLE = (
    "output_dir",
    "resume",
    "init_from",
    "logging.",
    "hub.",
    "trainer.time_limit",
    "trainer.step_timeout_seconds",
    "trainer.deterministic",
    *_FREE_WITHIN_IDENTITY,
)


def dump_config(config: Any) -> str:
    """Return a typed configuration as YAML with every value, URLs without their credentials."""
    values = hide_in_values(_to_plain(config))
    text: str = yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True)
    return text


def load_train_config(path: Path) -> TrainConfig:
    """Read the typed configuration that `dump_config` wrote; what it leaves out has its default.

    The file may come from anywhere: nothing in it is looked up, neither interpolations such as
    `${oc.env:NAME}` nor tags, and aliases, which can stand for endless values, are refused.

    Raises:
        InputError: the file is missing or not a configuration of this version.
    """
    try:
        values = _read_yaml(read_text(path, _MOST_BYTES))
        if not values:
            raise ValueError("it holds no settings")
        config: TrainConfig = parse(TrainConfig, _parse_choices(values))
        for problem in find_range_problems(config):
            raise ValueError(problem)
    except RecursionError as error:
        raise InputError(f"{path} {_NOT_ONE}: it is nested too deeply") from error
    except (DamagedFileError, ValueError, OverflowError) as error:
        raise InputError(f"{path} {_NOT_ONE}: {str(error).splitlines()[0]}") from error
    return config


def _parse_choices(values: Any) -> Any:
    """Return the values with every section that is a choice as the settings of its kind.

    A section without a kind has the default one, and the scheduler that of its `name`, as runs of
    version 0.1.0 recorded it.

    Raises:
        ValueError: a kind is not known, or a value is not one of its settings.
    """
    if not isinstance(values, dict):
        return values
    parsed = dict(values)
    defaults = TrainConfig()
    for section in CHOICES.keys() & values.keys():
        given = dict(parse(dict[str, Any], values[section], section))
        is_old = section == "scheduler" and "name" in given and "kind" not in given
        if is_old:
            given["kind"] = given.pop("name")
        usual_kind = getattr(defaults, section).kind
        known = Literal[tuple(CHOICES[section])]  # type: ignore[valid-type]
        kind = parse(known, given.get("kind", usual_kind), f"{section}.kind")
        usual = _to_plain(CHOICES[section][kind]())
        if is_old:  # there was one list of settings for all kinds
            given = {
                key: value for key, value in given.items() if key in usual or key not in _OF_DECAYS
            }
        for key, value in given.items():
            if isinstance(value, dict) and isinstance(usual.get(key), dict):
                given[key] = usual[key] | value  # of a group of parameters, what its role has
        parsed[section] = parse(CHOICES[section][kind], given, section)
    return parsed


def _read_yaml(text: str) -> Any:
    """Return the value of a text in YAML.

    Raises:
        ValueError: it is none.
        RecursionError: it is nested too deeply.
    """
    try:
        return yaml.load(text, _Loader)
    except RecursionError:
        raise
    # A scalar that is not of its tag's type raises whatever int() or a dictionary raises.
    except Exception as error:
        raise ValueError(f"it is no YAML ({type(error).__name__}: {error})") from error


def _to_plain(value: Any) -> Any:
    """Return a configuration as dictionaries, lists and scalars; enums by their names."""
    if dataclasses.is_dataclass(value):
        fields = dataclasses.fields(value)
        return {field.name: _to_plain(getattr(value, field.name)) for field in fields}
    if isinstance(value, dict):
        return {key: _to_plain(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_to_plain(entry) for entry in value]
    return value.name if isinstance(value, Enum) else value


class _Dumper(yaml.SafeDumper):
    """Writes a value that occurs twice twice."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


class _Loader(yaml.SafeLoader):
    """Reads YAML without aliases and keys that occur twice, and 1e-3 as a number."""

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        keys = Counter(key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode))
        for key, count in keys.most_common(1):
            if count > 1:
                raise yaml.YAMLError(f"it holds the key {key} twice")
        return super().construct_mapping(node, deep)

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.events.AliasEvent):
            raise yaml.YAMLError("it holds aliases, which no configuration of a run does")
        return super().compose_node(parent, index)


# Unquoted, line breaks of Unicode come back as spaces.
_Dumper.add_representer(
    str,
    lambda dumper, text: dumper.represent_scalar(
        "tag:yaml.org,2002:str", text, '"' if re.search("[\x85\u2028\u2029]", text) else None
    ),
)

# YAML 1.1 wants a point in it. The dumper has to know, so that a text of this form gets quotes.
for _side in (_Dumper, _Loader):
    _side.add_implicit_resolver(
        "tag:yaml.org,2002:float", re.compile("[-+]?[0-9]+[eE][-+]?[0-9]+"), list("-+0123456789")
    )


def find_differences(saved: TrainConfig, current: TrainConfig) -> tuple[list[str], list[str]]:
    """Return settings that differ between a run and its continuation.

    Returns:
        Those that would make it another run (other data order, masks or model), and those that
        are worth a warning; each as `key: old -> new`.
    """
    fatal: list[str] = []
    notable: list[str] = []
    old = {setting.key: setting.value for setting in iter_settings(saved)}
    new = {setting.key: setting.value for setting in iter_settings(current)}
    for key in {**old, **new}:  # a source of a mixture may be in one of them only
        before, now = (hide_in_values(side.get(key)) for side in (old, new))
        if key.startswith(_UNREMARKABLE) or before == now:
            continue
        text = f"{key}: {_show(before)} -> {_show(now)}"
        (fatal if key.startswith(_IDENTITY) else notable).append(text)
    return fatal, notable


def find_changed_sources(saved: TrainConfig, current: TrainConfig) -> set[str]:
    """Return the sources whose settings no longer name the same files."""
    before, now = (resolve_sources(config.data) for config in (saved, current))
    return {
        name
        for name in {**before, **now}
        if any(
            hide_in_values(getattr(before.get(name), key, None))
            != hide_in_values(getattr(now.get(name), key, None))
            for key in _NAMES_FILES
        )
    }


def _show(value: Any) -> str:
    return str(getattr(value, "name", value))
