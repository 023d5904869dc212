"""Values that follow from a configuration and can therefore not be set."""

import dataclasses
import re
from typing import Any, TypeVar

from neobert_train.config.data_schema import DataConfig, MaskingConfig, MixtureWeights, SourceConfig
from neobert_train.config.schema import TrainConfig

Section = TypeVar("Section", SourceConfig, MaskingConfig)

_DURATION = re.compile(r"((?P<d>\d+)-)?((?P<h>\d+):)?(?P<m>\d+):(?P<s>\d+)")
# What the only source is called where there is no mixture.
SINGLE_SOURCE = "corpus"


def compute_num_lanes(config: TrainConfig) -> int:
    """Return micro-batches of one optimiser step over all processes."""
    return config.batch.global_batch_tokens // config.batch.micro_batch_tokens


def compute_accumulation_steps(config: TrainConfig, world_size: int) -> int:
    """Return micro-batches of one optimiser step on each process."""
    return compute_num_lanes(config) // world_size


def wants_compilation(config: TrainConfig, zero_stage: int, on_gpu: bool) -> bool:
    """Return whether blocks are to be compiled; hooks that ZeRO 3 has inside of them cannot be."""
    if zero_stage == 3 or not config.model.can_compile:
        return False
    return on_gpu if config.model.compile is None else config.model.compile


def resolve_sources(data: DataConfig) -> dict[str, SourceConfig]:
    """Return the sources by name; what a source of a mixture leaves out is as in the `data` section."""
    names = [field.name for field in dataclasses.fields(SourceConfig)]
    base = SourceConfig(**{name: getattr(data, name) for name in names})
    if not data.mixture:
        return {SINGLE_SOURCE: base}
    return {name: override(base, entry) for name, entry in data.mixture.items()}


def override(base: Section, overrides: Any) -> Section:
    """Return a section with the values that `overrides` gives for its fields; None gives none."""
    names = [field.name for field in dataclasses.fields(base)]
    given = {name: getattr(overrides, name) for name in names}
    return dataclasses.replace(
        base, **{name: value for name, value in given.items() if value is not None}
    )


def compute_weights(data: DataConfig, step: int) -> list[float]:
    """Return the weight of every source at a step, in the order of `resolve_sources`."""
    if not data.mixture:
        return [1.0]
    return [_find_weight(entry, step) for entry in data.mixture.values()]


def _find_weight(entry: MixtureWeights, step: int) -> float:
    begun = [begin for begin in entry.weight_from if begin <= step]
    return entry.weight_from[max(begun)] if begun else entry.weight


def compute_masking_rate(config: TrainConfig, step: int) -> float:
    """Return the share of tokens to predict at a step: a straight line to `final_rate`, then constant."""
    masking = config.masking
    if masking.final_rate is None:
        return masking.rate
    share = min(1.0, step / (masking.rate_steps or config.trainer.max_steps))
    return masking.rate + (masking.final_rate - masking.rate) * share


def parse_duration(text: str) -> float:
    """Return seconds of `hours:minutes:seconds`, `minutes:seconds` or `days-hours:minutes:seconds`.

    Raises:
        ValueError: it is none of them.
    """
    match = _DURATION.fullmatch(text.strip())
    if match is None:
        raise ValueError(text)
    days, hours, minutes, seconds = (int(match[name] or 0) for name in ("d", "h", "m", "s"))
    return float(((days * 24 + hours) * 60 + minutes) * 60 + seconds)
