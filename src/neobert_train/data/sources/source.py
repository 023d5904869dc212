"""What a source of documents is: a list of units, each read from any point on."""

import itertools
from collections.abc import Iterator
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


def split_range(start: int, stop: int, part: int, parts: int) -> tuple[int, int]:
    """Part number `part` of `parts` adjoining ranges of nearly equal length over [start, stop)."""
    length = stop - start
    return start + length * part // parts, start + length * (part + 1) // parts


def list_parts(parts: int) -> list[tuple[int, int]]:
    """(part, parts) of every part."""
    return list(zip(range(parts), itertools.repeat(parts), strict=False))
