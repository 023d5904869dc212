"""What a source of documents is: a list of units, each read from any point on."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from neobert_train.errors import InputError
from neobert_train.storage.failures import describe_system_error, is_of_system

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


class RecordError(ValueError):
    """What is wrong with one record, without its place.

    Attributes:
        is_setting: as that of a `BadRecord`.
    """

    def __init__(self, reason: str, is_setting: bool = False) -> None:
        super().__init__(reason)
        self.is_setting = is_setting


@dataclass(frozen=True, slots=True)
class Division:
    """Divides the records of a file into parts, by the numbers at which they begin.

    Attributes:
        ends: where pieces of the file end that stay whole if there are as many as parts (row
            groups), the last one at the end of the file; None where parts take records in turns.
    """

    ends: tuple[int, ...] | None

    def find_range(self, part: int, parts: int) -> tuple[int, int]:
        """Return the numbers [start, stop) at which the records of a part begin."""
        if not self.ends:
            return 0, 0
        if len(self.ends) < parts:
            return split_range(0, self.ends[-1], part, parts)
        first, last = split_range(0, len(self.ends), part, parts)
        return (self.ends[first - 1] if first else 0), self.ends[last - 1]

    def select(self, begins: np.ndarray, part: int, parts: int) -> np.ndarray:
        """Return indices of the records of a part among those that begin at `begins` (ascending)."""
        if self.ends is None:
            return np.flatnonzero(begins % parts == part)
        first, last = np.searchsorted(begins, self.find_range(part, parts))
        return np.arange(first, last)


def split_range(start: int, stop: int, part: int, parts: int) -> tuple[int, int]:
    """Return part number `part` of `parts` adjoining ranges of nearly equal length over [start, stop)."""
    length = stop - start
    return start + length * part // parts, start + length * (part + 1) // parts


class Format(ABC):
    """How records are found in a file; frozen and picklable.

    A cursor is a number that only the format understands; 0 is the beginning of every unit. What
    is not overridden is that of rows which parts take in turns.

    Attributes:
        units_per_lane: into how many parts files are divided, per lane that shares them. Several
            where a part is a stretch of the file that is read by itself. One where records are
            found only from the beginning of the file, so that parts take them in turns. None (0)
            of a file that is one document.
    """

    __slots__ = ()
    units_per_lane: int = 1

    @abstractmethod
    def iter_records(self, unit: "Unit", cursor: int) -> Iterator[AnyRecord]:
        """Yield the records of a part of a file from `cursor` on.

        Damage is one bad record in the place of all that it hides.

        Raises:
            Exception: `is_of_system` of it.
        """

    def find_division(self, file: Any) -> Division:
        """Return what decides which records belong to which part; may open the file.

        Raises:
            OSError: the file cannot be read.
        """
        return Division(None)

    def describe(self, next_cursor: int) -> str:
        """Name the record of a file after which a unit continues at `next_cursor`."""
        return f"row {next_cursor}"

    def check(self, file: Any, tolerance: int) -> None:  # noqa: B027 - others may have nothing to do
        """Read the beginning of a file, so that what is wrong with all of it shows early.

        Shards of datasets and of `prepare` are looked at when they are listed, and not here.

        Args:
            file: which one.
            tolerance: bad records to look past for a sound one.

        Raises:
            SettingError: a configured column does not exist or holds no text.
            Exception: `is_of_system` of it, which says nothing about the file.
            InputError: the file cannot be read, is empty, or its first records are bad.
        """


# Parts of a file that are read by themselves even out what lanes read in an epoch, and are read
# side by side.
STRETCHES_PER_LANE = 4


@dataclass(frozen=True, slots=True)
class Unit:
    """A part of a file that one lane reads in one go; the units of a source cover it once.

    Attributes:
        file: what it is a part of, such as a `StoredFile`; has a `name` and a `version`.
        format: how records are found in the file.
        part, parts: which part of how many.
    """

    file: Any
    format: Format
    part: int = 0
    parts: int = 1

    @property
    def name(self) -> str:
        """Path or URL of the file, for messages."""
        return str(self.file.name)

    def iter_records(self, cursor: int) -> Iterator[AnyRecord]:
        """Yield the records from `cursor` on.

        Raises:
            InputError: the system or the network fails, which says nothing about the records.
        """
        try:
            yield from self.format.iter_records(self, cursor)
        except InputError:
            raise
        except Exception as error:
            if not is_of_system(error):
                raise
            raise describe_system_error(error, self.name) from error

    def find_division(self) -> Division:
        """Return what decides which records of the file belong to which part; may open it.

        Raises:
            OSError: the file cannot be read.
        """
        return self.format.find_division(self.file)

    def describe(self, next_cursor: int) -> str:
        """Name the record after which the unit continues at `next_cursor`."""
        return f"{self.name}, {self.format.describe(next_cursor)}"

    def divide(self, parts: int) -> list["Unit"]:
        """Return the units that divide the file into so many parts."""
        return [replace(self, part=part, parts=parts) for part in range(parts)]


def divide_files(files: Sequence[Unit], num_lanes: int) -> list[Unit]:
    """Divide files into as many units per lane as their formats say.

    Args:
        files: each as one unit.
        num_lanes: lanes that share the units.
    """
    units: list[Unit] = []
    for file in files:
        parts = max(1, -(-file.format.units_per_lane * num_lanes // len(files)))
        units += file.divide(parts)
    return units
