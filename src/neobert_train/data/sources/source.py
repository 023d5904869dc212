"""What a source of documents is: a list of units, each read from any point on."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from neobert_train.errors import InputError

# The cursor of a unit that has nothing more to give, also when the rest of it cannot be read.
END_OF_UNIT = 2**62


@dataclass(frozen=True, slots=True)
class Record:
    """One document as it was found.

    Attributes:
        text: the document, which can be written as UTF-8; empty where the source holds null.
        next_cursor: where its unit continues after it.
    """

    text: str
    next_cursor: int


@dataclass(frozen=True, slots=True)
class BadRecord:
    """A record, or the rest of a unit, that cannot be read.

    Attributes:
        reason: names the file and the record, and says what is wrong.
        next_cursor: where its unit continues after it.
        is_setting: whether it is sound, but without text under the configured column.
    """

    reason: str
    next_cursor: int
    is_setting: bool = False


class SettingError(InputError):
    """The configured column or format is not that of the data; never a matter of one record."""


class Unit(Protocol):
    """A part of a source that one lane reads in one go: a row group, a byte range, a shard.

    Units of one source are disjoint and cover it. A cursor is a number that only the unit
    understands; 0 is its beginning.
    """

    def iter_records(self, cursor: int) -> Iterator[Record | BadRecord]:
        """The records from `cursor` on."""
        ...


def split_range(start: int, stop: int, parts: int) -> list[tuple[int, int]]:
    """`parts` adjoining ranges of nearly equal length that cover [start, stop); none is empty."""
    parts = max(1, min(parts, stop - start))
    bounds = [start + (stop - start) * part // parts for part in range(parts + 1)]
    return list(itertools.pairwise(bounds))
