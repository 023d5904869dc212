"""Dataclass fields that carry their one-line description and the range they accept."""

import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

ANY_NAME = "NAME"


@dataclass(frozen=True)
class Range:
    """Bounds of a number; `None` is unbounded. `at_*` include the bound, `above`/`below` do not."""

    at_least: float | None = None
    at_most: float | None = None
    above: float | None = None
    below: float | None = None

    def admits(self, value: float) -> bool:
        """Return whether `value` is finite and lies within every bound."""
        return (
            math.isfinite(value)
            and (self.at_least is None or value >= self.at_least)
            and (self.at_most is None or value <= self.at_most)
            and (self.above is None or value > self.above)
            and (self.below is None or value < self.below)
        )

    def __str__(self) -> str:
        bounds = [
            (self.at_least, "at least"),
            (self.above, "above"),
            (self.at_most, "at most"),
            (self.below, "below"),
        ]
        return " and ".join(f"{word} {bound:g}" for bound, word in bounds if bound is not None)


def setting(
    default: Any,
    description: str,
    *,
    at_least: float | None = None,
    at_most: float | None = None,
    above: float | None = None,
    below: float | None = None,
    entries: type[Any] | None = None,
) -> Any:
    """Return a dataclass field that a user can set.

    Args:
        default: value when nothing is given; a class or function makes a fresh value each time.
        description: one line with unit and effect, shown by `--help`.
        at_least, at_most, above, below: bounds of a number, or of every number in a list or among
            the values of a dictionary.
        entries: of a dictionary of dataclasses, by names that the user gives: their class.
    """
    metadata = {
        "description": description,
        "range": Range(at_least, at_most, above, below),
        "entries": entries,
    }
    if callable(default):
        return dataclasses.field(default_factory=default, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


@dataclass(frozen=True)
class Setting:
    """One setting of a config: its dotted key, its field and its present value."""

    key: str
    field: "dataclasses.Field[Any]"
    value: Any

    @property
    def description(self) -> str:
        """One line with unit and effect."""
        return str(self.field.metadata["description"])

    @property
    def range(self) -> Range:
        """The bounds this setting accepts."""
        bounds = self.field.metadata["range"]
        assert isinstance(bounds, Range)
        return bounds


def iter_settings(config: Any, prefix: str = "") -> Iterator[Setting]:
    """Yield every leaf setting of a config dataclass instance, in the order of definition."""
    for field in dataclasses.fields(config):
        key, value = f"{prefix}{field.name}", getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            yield from iter_settings(value, prefix=f"{key}.")
        elif field.metadata["entries"]:
            for name, entry in value.items():
                yield from iter_settings(entry, prefix=f"{key}.{name}.")
        else:
            yield Setting(key, field, value)


def iter_default_settings(defaults: Any, prefix: str = "") -> Iterator[Setting]:
    """Yield every setting that a config dataclass knows, with the value it has in `defaults`.

    Where the user gives names, `ANY_NAME` stands for them: `data.mixture.NAME.weight`.
    """
    for field in dataclasses.fields(defaults):
        key, value = f"{prefix}{field.name}", getattr(defaults, field.name)
        if dataclasses.is_dataclass(value):
            yield from iter_default_settings(value, prefix=f"{key}.")
        elif field.metadata["entries"]:
            yield from iter_default_settings(field.metadata["entries"](), f"{key}.{ANY_NAME}.")
        else:
            yield Setting(key, field, value)
