"""Texts of a row by the names of its columns, and what is wrong with a row that lacks one."""

import fnmatch
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from neobert_train.config.embed_schema import PairsConfig
from neobert_train.config.suggestion import find_nearest
from neobert_train.data.sources.fields import find_value, join_names, list_names, split_name
from neobert_train.data.sources.rows import describe_bad_text

ANCHOR, POSITIVE = "anchor", "positive"


class RowError(ValueError):
    """What is wrong with a row, without its place; names the column.

    Attributes:
        is_setting: whether a column is meant that no row has, which no other row will make good.
    """

    def __init__(self, message: str, is_setting: bool = False) -> None:
        super().__init__(message)
        self.is_setting = is_setting


@dataclass(frozen=True)
class Picker:
    """Takes anchor, positive and negatives out of rows.

    Attributes:
        anchor, positive: names of columns.
        negatives: names of columns, without patterns.
        num_negatives: that every row has to give.
        score, min_score: rows whose score is not above it are left out; None keeps all.
        prefix: of the settings of the set, for messages.
    """

    anchor: str
    positive: str
    negatives: tuple[str, ...]
    num_negatives: int
    score: str | None
    min_score: float | None
    prefix: str

    @classmethod
    def build(cls, config: PairsConfig, row: Mapping[str, Any], prefix: str) -> "Picker":
        """Return the picker of a set of data, by its first row.

        Raises:
            RowError: the row lacks a column.
        """
        negatives = [
            name
            for column in config.negatives
            for name in _expand(column, row, f"{prefix}negatives")
        ]
        score = (config.score, config.min_score)
        picker = cls(config.anchor, config.positive, tuple(negatives), 0, *score, prefix)
        found = len(picker.find_negatives(row))
        wanted = found if config.num_negatives is None else config.num_negatives
        if config.negatives and not found:
            raise RowError(
                f"'{negatives[0]}' holds no text: give one, or leave out {prefix}negatives"
            )
        return cls(config.anchor, config.positive, tuple(negatives), wanted, *score, prefix)

    @property
    def columns(self) -> list[str]:
        """The names of what `pick` returns: anchor, positive, and the negatives by number."""
        numbers = range(1, self.num_negatives + 1)
        return [ANCHOR, POSITIVE, *(f"negative_{number}" for number in numbers)]

    def pick(self, row: Mapping[str, Any]) -> list[str] | None:
        """Return the texts of a row, in the order of `columns`; None for one whose score is too low.

        Raises:
            RowError: a column is missing, or holds no text.
        """
        if self.score is not None and not self._is_near(row):
            return None
        texts = [
            self._find_first(row, self.anchor, f"{self.prefix}{ANCHOR}"),
            self._find_first(row, self.positive, f"{self.prefix}{POSITIVE}"),
        ]
        if self.num_negatives:
            negatives = self.find_negatives(row)
            if len(negatives) < self.num_negatives:
                raise RowError(
                    f"it has {len(negatives)} negatives, and {self.num_negatives} are wanted: write "
                    f"{self.prefix}num_negatives={max(1, len(negatives))}"
                )
            texts += negatives[: self.num_negatives]
        return texts

    def find_columns(self, row: Mapping[str, Any]) -> None:
        """Raise RowError where a row has not all columns, whatever they hold."""
        names = [(self.anchor, ANCHOR), (self.positive, POSITIVE), (self.score, "score")]
        for column, key in names:
            if column is not None:
                _find(row, column, f"{self.prefix}{key}")

    def list_unused_negatives(self, row: Mapping[str, Any]) -> list[str]:
        """Return the columns that are called negatives, where none was asked for."""
        names = [] if self.negatives else list_names(row)
        return [name for name in names if name.lower().startswith(("negative", "hard_negative"))]

    def find_negatives(self, row: Mapping[str, Any]) -> list[str]:
        """Return all negatives of a row.

        Raises:
            RowError: a column is missing, or holds something else than texts.
        """
        texts: list[str] = []
        for column in self.negatives:
            value = _find(row, column, f"{self.prefix}negatives")
            values = value if isinstance(value, list | tuple) else [value]
            texts += [_check_text(entry, column) for entry in values]
        return texts

    def _find_first(self, row: Mapping[str, Any], column: str, key: str) -> str:
        value = _find(row, column, key)
        if isinstance(value, list | tuple):
            value = value[0] if value else None
        return _check_text(value, column)

    def _is_near(self, row: Mapping[str, Any]) -> bool:
        assert self.score is not None
        assert self.min_score is not None
        value = _find(row, self.score, f"{self.prefix}score")
        try:
            return float(value) > self.min_score
        except (TypeError, ValueError):
            raise RowError(f"'{self.score}' holds {value!r}, which is no number") from None


def _expand(column: str, row: Mapping[str, Any], key: str) -> list[str]:
    """Return the columns that a pattern stands for, by number where their names end in one."""
    if not any(character in column for character in "*?["):
        return [column]
    found = [name for name in list_names(row) if fnmatch.fnmatchcase(name, column)]
    if not found:
        raise RowError(_describe_missing(column, row, key), is_setting=True)
    return sorted(found, key=lambda name: (len(name), name))


def _find(row: Mapping[str, Any], column: str, key: str) -> Any:
    """Return the value of a column; `a.b` is the key b of the object a, `a.0` an entry of the list a."""
    try:
        return find_value(row, column)
    except KeyError:
        pass
    for outer, inner in split_name(column):
        if inner.isdigit() and isinstance(values := _find_or_none(row, outer), list | tuple):
            if int(inner) < len(values):
                return values[int(inner)]
            raise RowError(f"'{outer}' has {len(values)} entries, and '{column}' is none of them")
    raise RowError(_describe_missing(column, row, key), is_setting=True)


def _find_or_none(row: Mapping[str, Any], name: str) -> Any:
    try:
        return find_value(row, name)
    except KeyError:
        return None


def _check_text(value: Any, column: str) -> str:
    problem = describe_bad_text(value)
    if problem is not None:
        raise RowError(f"'{column}' {problem}")
    assert isinstance(value, str)
    return value


def _describe_missing(column: str, row: Mapping[str, Any], key: str) -> str:
    names = list(list_names(row))
    nearest = find_nearest(column, names)
    guess = f"did you mean {key}={nearest}? " if nearest else ""
    return f"there is no column '{column}' ({key}): {guess}it has {join_names(names)}"


def describe_problems(problems: Sequence[str], total: int) -> Iterable[str]:
    """Return the first problems, and how many more there are."""
    more = total - len(problems)
    return [*problems, *([f"and {more:,} more rows"] if more > 0 else [])]
