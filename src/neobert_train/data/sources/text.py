"""JSON Lines and plain text, also compressed with gzip or zstandard.

Plain files of one document a line are divided into byte ranges, each read by a seek. Everything
else is read from its beginning: every part reads the file and keeps each `parts`-th document.
"""

import gzip
import io
import itertools
import json
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, BinaryIO

import zstandard

from neobert_train.data.sources.source import (
    END_OF_UNIT,
    STRETCHES_PER_LANE,
    BadRecord,
    Division,
    Record,
    SettingError,
    Unit,
)
from neobert_train.data.storage import StorageError, StoredFile
from neobert_train.errors import InputError

COMPRESSED_SUFFIXES = (".gz", ".zst")

_READ_ERRORS = (OSError, EOFError, zlib.error, zstandard.ZstdError)
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


class _RecordError(ValueError):
    """What is wrong with one record, without the place."""


class _SettingRecordError(_RecordError):
    """The record is sound, but not what data.column says."""


@dataclass(frozen=True, slots=True)
class TextLayout:
    """How documents lie in a file.

    Attributes:
        kind: `jsonl`, `line`, `blank_line` or `file`.
        column: JSON key of the text.
        id_column: JSON key of the id, if any.
    """

    kind: str
    column: str = ""
    id_column: str | None = None

    @property
    def has_lines(self) -> bool:
        """Whether a document is a line."""
        return self.kind in ("jsonl", "line")

    def parse(self, raw: bytes) -> tuple[str, str | None]:
        """Text and id of a document; raises `_RecordError`."""
        if self.kind == "jsonl":
            return _parse_json(raw, self.column, self.id_column)
        return _decode(raw).rstrip("\r\n"), None


def _parse_json(line: bytes, column: str, id_column: str | None) -> tuple[str, str | None]:
    text = _decode(line)
    try:
        record = json.loads(text)
    except json.JSONDecodeError as error:
        raise _RecordError(f"not JSON ({error.msg} at column {error.colno})") from error
    except (ValueError, RecursionError) as error:  # a number or a nesting beyond Python's limits
        raise _RecordError(f"not readable as JSON ({error})") from error
    if not isinstance(record, dict):
        raise _RecordError(f"holds a {type(record).__name__}, not an object with a '{column}' key")
    if column not in record:
        raise _SettingRecordError(
            f"has no key '{column}': write data.column=... with one of {', '.join(record)}"
        )
    value = record[column]
    if value is not None and not isinstance(value, str):
        raise _SettingRecordError(
            f"'{column}' holds a {type(value).__name__}, not text: write data.column=... with another "
            f"key where it is not the text"
        )
    id_ = record.get(id_column) if id_column else None
    return value or "", None if id_ is None else str(id_)


def _decode(raw: bytes) -> str:
    raw = raw.removeprefix(_BYTE_ORDER_MARK)
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise _RecordError(f"not UTF-8 (byte 0x{raw[error.start]:02x})") from error


def _to_record(
    raw: bytes,
    layout: TextLayout,
    begin: int,
    next_cursor: int,
    describe_place: Callable[[], str],
) -> Record | BadRecord:
    try:
        text, id_ = layout.parse(raw)
        text.encode("utf-8")
        return Record(text, begin, next_cursor, id_)
    except UnicodeEncodeError as error:
        surrogate = ascii(error.object[error.start])
        reason = f"{describe_place()}: holds the lone surrogate {surrogate}"
        return BadRecord(reason, begin, next_cursor)
    except _RecordError as error:
        is_setting = isinstance(error, _SettingRecordError)
        return BadRecord(f"{describe_place()}: {error}", begin, next_cursor, is_setting)


@dataclass(frozen=True, slots=True)
class LineRanges:
    """The lines of a plain file, by the part of it in which their first byte lies.

    A cursor is a byte offset.
    """

    layout: TextLayout
    units_per_lane = STRETCHES_PER_LANE

    def iter_records(self, unit: Unit, cursor: int) -> Iterator[Record | BadRecord]:
        """Yield the non-blank lines from `cursor` on.

        Raises:
            StorageError: the network gave out.
        """
        numbers, offset = _LineNumbers(unit.file), cursor
        try:
            begin, stop = unit.find_division().find_range(unit.part, unit.parts)
            with unit.file.open() as file:
                if cursor == 0 and begin > 0:
                    # A line that began before this range belongs to the one before.
                    file.seek(begin - 1)
                    offset = begin + len(file.readline()) - 1
                file.seek(offset)
                while offset < stop:
                    line = file.readline()
                    if not line:
                        return
                    start, offset = offset, offset + len(line)
                    if line.strip():
                        place = partial(numbers.describe, start)
                        yield _to_record(line, self.layout, start, offset, place)
        except StorageError:
            raise
        except OSError as error:
            yield BadRecord(f"{unit.path}: cannot be read ({error})", offset, END_OF_UNIT)

    def find_division(self, file: StoredFile) -> Division:
        """Return the division by bytes."""
        return Division((file.get_size(),))

    def describe(self, next_cursor: int) -> str:
        """Such as `line ending at byte 2,041`."""
        return f"line ending at byte {next_cursor:,}"

    def check(self, file: StoredFile, tolerance: int) -> None:
        """Read the beginning of a file; see `StoredFormat`."""
        _check_beginning(file, self.layout, tolerance)


class _LineNumbers:
    """Numbers of lines by their offset, for messages alone, so that reading needs no index.

    Offsets are asked for in ascending order; each part of the file is looked through once.
    """

    def __init__(self, file: StoredFile) -> None:
        self._file, self._offset, self._count = file, 0, 0

    def describe(self, offset: int) -> str:
        """Such as `texts.jsonl, line 7`."""
        with self._file.open() as file:
            file.seek(self._offset)
            while self._offset < offset:
                block = file.read(min(offset - self._offset, 1 << 20))
                if not block:
                    break
                self._count += block.count(b"\n")
                self._offset += len(block)
        return f"{self._file.path}, line {self._count + 1}"


@dataclass(frozen=True, slots=True)
class Sequential:
    """The documents of a file that is read from its beginning; parts take them in turns.

    A cursor counts documents of the file.
    """

    layout: TextLayout

    @property
    def units_per_lane(self) -> int:
        """One, or none of a file that is one document."""
        return 0 if self.layout.kind == "file" else 1

    def iter_records(self, unit: Unit, cursor: int) -> Iterator[Record | BadRecord]:
        """Yield the documents from `cursor` on; damage is one bad record that ends the unit.

        Raises:
            StorageError: the network gave out.
        """
        number, path = -1, unit.path
        try:
            with unit.file.open() as file, _decompress(path, file) as stream:
                for number, (line, raw) in enumerate(_SPLITTERS[self.layout.kind](stream)):
                    if number >= cursor and number % unit.parts == unit.part:
                        place = partial("{}, line {}".format, path, line)
                        yield _to_record(raw, self.layout, number, number + 1, place)
        except StorageError:
            raise
        except _READ_ERRORS as error:
            reason = f"{path}, after document {number + 1}: cannot be read ({error})"
            yield BadRecord(reason, number + 1, END_OF_UNIT)

    def find_division(self, file: StoredFile) -> Division:
        """Return the division in turns."""
        return Division(None)

    def describe(self, next_cursor: int) -> str:
        """Such as `document 7`; documents count from 1."""
        return f"document {next_cursor}"

    def check(self, file: StoredFile, tolerance: int) -> None:
        """Read the beginning of a file; see `StoredFormat`."""
        _check_beginning(file, self.layout, tolerance)


def _iter_lines(stream: Iterable[bytes]) -> Iterator[tuple[int, bytes]]:
    return ((number, line) for number, line in enumerate(stream, 1) if line.strip())


def _iter_blocks(stream: Iterable[bytes]) -> Iterator[tuple[int, bytes]]:
    numbered = enumerate(stream, 1)
    for is_text, lines in itertools.groupby(numbered, key=lambda item: bool(item[1].strip())):
        if is_text:
            number, first = next(lines)
            yield number, first + b"".join(line for _, line in lines)


def _iter_whole(stream: Any) -> Iterator[tuple[int, bytes]]:
    yield 1, b"".join(stream)


_SPLITTERS: dict[str, Callable[[Any], Iterator[tuple[int, bytes]]]] = {
    "jsonl": _iter_lines,
    "line": _iter_lines,
    "blank_line": _iter_blocks,
    "file": _iter_whole,
}


def is_compressed(path: str) -> bool:
    """Whether the name ends as those of gzip and zstandard files do."""
    return path.lower().endswith(COMPRESSED_SUFFIXES)


def _decompress(path: str, file: BinaryIO) -> Any:
    if path.lower().endswith(".gz"):
        return gzip.open(file, "rb")
    if path.lower().endswith(".zst"):
        return io.BufferedReader(_ZstdFile(file))
    return file


class _ZstdFile(io.RawIOBase):
    """Reads zstandard frames, and raises EOFError where the last one is cut off.

    The library's own reader takes a truncated file for a short one.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._frame = zstandard.ZstdDecompressor().decompressobj()
        self._begun, self._data = False, memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._data:
            block = self._frame.unused_data if self._frame.eof else b""
            if self._frame.eof:
                self._frame = zstandard.ZstdDecompressor().decompressobj()
                self._begun = False
            block = block or self._file.read(1 << 16)
            if not block:
                if self._begun:
                    raise EOFError("the compressed file ends before its end-of-stream marker")
                return 0
            self._begun = True
            self._data = memoryview(self._frame.decompress(block))
        count = min(len(buffer), len(self._data))
        buffer[:count], self._data = self._data[:count], self._data[count:]
        return count


def choose_text_format(
    path: str, layout: TextLayout, can_seek: bool = True
) -> LineRanges | Sequential:
    """Choose how a file of JSON Lines or text is read.

    Args:
        path, layout: of the file.
        can_seek: whether its storage can be read from the middle.
    """
    if can_seek and layout.has_lines and not is_compressed(path):
        return LineRanges(layout)
    return Sequential(layout)


def _check_beginning(file: StoredFile, layout: TextLayout, tolerance: int) -> None:
    reason = f"{file.path} is empty"
    records = Unit(file, Sequential(layout)).iter_records(0)
    for record in itertools.islice(records, tolerance + 1):
        if isinstance(record, Record):
            return
        assert isinstance(record, BadRecord)
        reason = record.reason
        if record.is_setting:
            raise SettingError(reason)
    if layout.kind == "jsonl" and ("not JSON" in reason or "holds a list" in reason):
        reason += "; JSON Lines has one object a line, so convert a JSON array first"
    raise InputError(reason)
