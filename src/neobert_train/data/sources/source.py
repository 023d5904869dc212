"""What a source of documents is: a list of units, each read from any point on."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from neobert_train.errors import InputError

# The cursor of a unit that has nothing more to give, also when the rest of it cannot be read.
END_OF_UNIT = 2**62


@dataclass(slots=True)
class Record:
    """One document as it was found.

    Attributes:
        text: the document, which can be written as UTF-8; empty where the source holds null.
        begin: where in its file the document begins: a byte offset, a row or a number, by format.
        next_cursor: where its unit continues after it.
        id: what the configured id column holds.
    """

    text: str
    begin: int
    next_cursor: int
    id: str | None = None


@dataclass(slots=True)
class TokenizedRecord:
    """One document that was tokenised beforehand.

    Attributes:
        ids: [num_tokens] uint16 or uint32, without special tokens.
        num_characters: of its text.
        is_blank: whether the text had nothing but white space.
        heldout_key: `compute_heldout_key` of the text.
        next_cursor: where its unit continues after it.
        id: what the id column held; None where it was not prepared.
    """

    ids: np.ndarray
    num_characters: int
    is_blank: bool
    heldout_key: int
    next_cursor: int
    id: str | None = None


@dataclass(slots=True)
class BadRecord:
    """A record, or the rest of a unit, that cannot be read.

    Attributes:
        reason: names the file and the record, and says what is wrong.
        begin: as that of a `Record`.
        next_cursor: where its unit continues after it.
        is_setting: whether it is sound, but without text under the configured column.
    """

    reason: str
    begin: int
    next_cursor: int
    is_setting: bool = False


AnyRecord = Record | TokenizedRecord | BadRecord


class SettingError(InputError):
    """The configured column or format is not that of the data; never a matter of one record."""


class Unit(Protocol):
    """A part of a source that one lane reads in one go: some rows, a byte range, a shard.

    Units of one source are disjoint and cover it. A cursor is a number that only the unit
    understands; 0 is its beginning.
    """

    def iter_records(self, cursor: int) -> Iterator[AnyRecord]:
        """The records from `cursor` on."""
        ...

    def describe(self, next_cursor: int) -> str:
        """Names the record after which the unit continues at `next_cursor`."""
        ...


class SourceUnit(Unit, Protocol):
    """A unit that is one of several parts of a file."""

    @property
    def path(self) -> str:
        """Names the file."""
        ...

    def find_size(self) -> int:
        """Bytes of the file; 0 where that cannot be known."""
        ...

    @property
    def units_per_lane(self) -> int:
        """Into how many parts files are divided, by the lanes that share them; 0 for no parts."""
        ...

    def take_part(self, part: int, parts: int) -> "SourceUnit":
        """Another part of the same file; `take_part(0, 1)` is the whole file."""
        ...

    @property
    def takes_turns(self) -> bool:
        """Whether a part takes records in turns with the others, and not a stretch of the file."""
        ...

    def find_division(self) -> "Division":
        """What decides which records belong to which part; may open the file.

        Raises:
            OSError: the file cannot be read.
        """
        ...


@dataclass(frozen=True, slots=True)
class Division:
    """Divides the records of a file into parts, by the numbers at which they begin.

    Attributes:
        ends: where pieces of the file end that stay whole if there are as many as parts (row
            groups), the last one at the end of the file; None where parts take records in turns.
    """

    ends: tuple[int, ...] | None

    def find_range(self, part: int, parts: int) -> tuple[int, int]:
        """The numbers [start, stop) at which the records of a part begin."""
        if not self.ends:
            return 0, 0
        if len(self.ends) < parts:
            return split_range(0, self.ends[-1], part, parts)
        first, last = split_range(0, len(self.ends), part, parts)
        return (self.ends[first - 1] if first else 0), self.ends[last - 1]

    def select(self, begins: np.ndarray, part: int, parts: int) -> np.ndarray:
        """Indices of the records of a part among those that begin at `begins` (ascending)."""
        if self.ends is None:
            return np.flatnonzero(begins % parts == part)
        first, last = np.searchsorted(begins, self.find_range(part, parts))
        return np.arange(first, last)


def split_range(start: int, stop: int, part: int, parts: int) -> tuple[int, int]:
    """Part number `part` of `parts` adjoining ranges of nearly equal length over [start, stop)."""
    length = stop - start
    return start + length * part // parts, start + length * (part + 1) // parts


def divide_files(files: Sequence[SourceUnit], num_lanes: int) -> list[SourceUnit]:
    """The units of whole files, as many a lane as they say.

    Args:
        files: each as one unit.
        num_lanes: lanes that share the units.
    """
    units: list[SourceUnit] = []
    for file in files:
        parts = max(1, -(-file.units_per_lane * num_lanes // len(files)))
        units += [file.take_part(part, parts) for part in range(parts)]
    return units
