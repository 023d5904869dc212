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
from pathlib import Path
from typing import Any

import zstandard

from neobert_train.data.sources.source import (
    END_OF_UNIT,
    BadRecord,
    Record,
    SettingError,
    split_range,
)
from neobert_train.errors import InputError

COMPRESSED_SUFFIXES = (".gz", ".zst")

_READ_ERRORS = (OSError, EOFError, zlib.error, zstandard.ZstdError)
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


class _RecordError(ValueError):
    """What is wrong with one record, without the place."""


class _SettingRecordError(_RecordError):
    """The record is sound, but not what data.column says."""


def _parse_json(line: bytes, column: str) -> str:
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
    return value or ""


def _parse_text(document: bytes, column: str) -> str:
    return _decode(document).rstrip("\r\n")


def _decode(raw: bytes) -> str:
    raw = raw.removeprefix(_BYTE_ORDER_MARK)
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise _RecordError(f"not UTF-8 (byte 0x{raw[error.start]:02x})") from error


def _to_record(
    raw: bytes, kind: str, column: str, next_cursor: int, describe_place: Callable[[], str]
) -> Record | BadRecord:
    parse = _parse_json if kind == "jsonl" else _parse_text
    try:
        text = parse(raw, column)
        text.encode("utf-8")
        return Record(text, next_cursor)
    except UnicodeEncodeError as error:
        surrogate = ascii(error.object[error.start])
        return BadRecord(f"{describe_place()}: holds the lone surrogate {surrogate}", next_cursor)
    except _RecordError as error:
        is_setting = isinstance(error, _SettingRecordError)
        return BadRecord(f"{describe_place()}: {error}", next_cursor, is_setting)


@dataclass(frozen=True, slots=True)
class LineRangeUnit:
    """Lines whose first byte lies in [start, stop) of a plain file; a cursor is a byte offset.

    `kind` is `jsonl` or `line`.
    """

    path: str
    kind: str
    column: str
    start: int
    stop: int

    def iter_records(self, cursor: int) -> Iterator[Record | BadRecord]:
        """The non-blank lines from `cursor` on."""
        offset, numbers = max(cursor, self.start), _LineNumbers(self.path)
        try:
            with open(self.path, "rb") as file:
                if cursor == 0 and offset > 0:
                    # A line that began before this range belongs to the one before.
                    file.seek(offset - 1)
                    offset += len(file.readline()) - 1
                file.seek(offset)
                while offset < self.stop:
                    line = file.readline()
                    if not line:
                        return
                    start, offset = offset, offset + len(line)
                    if line.strip():
                        place = partial(numbers.describe, start)
                        yield _to_record(line, self.kind, self.column, offset, place)
        except OSError as error:
            yield BadRecord(f"{self.path}: cannot be read ({error})", END_OF_UNIT)


class _LineNumbers:
    """Numbers of lines by their offset, for messages alone, so that reading needs no index.

    Offsets are asked for in ascending order; each part of the file is looked through once.
    """

    def __init__(self, path: str) -> None:
        self._path, self._offset, self._count = path, 0, 0

    def describe(self, offset: int) -> str:
        """Such as `texts.jsonl, line 7`."""
        with open(self._path, "rb") as file:
            file.seek(self._offset)
            while self._offset < offset:
                block = file.read(min(offset - self._offset, 1 << 20))
                if not block:
                    break
                self._count += block.count(b"\n")
                self._offset += len(block)
        return f"{self._path}, line {self._count + 1}"


@dataclass(frozen=True, slots=True)
class SequentialUnit:
    """Every `parts`-th document of a file that is read from its beginning.

    `kind` is `jsonl`, `line`, `blank_line` or `file`; a cursor counts documents of the file.
    """

    path: str
    kind: str
    column: str
    part: int = 0
    parts: int = 1

    def iter_records(self, cursor: int) -> Iterator[Record | BadRecord]:
        """The documents from `cursor` on; a damaged stream is one bad record that ends the unit."""
        number = -1
        try:
            with _open_stream(self.path) as stream:
                for number, (line, raw) in enumerate(_SPLITTERS[self.kind](stream)):
                    if number >= cursor and number % self.parts == self.part:
                        place = partial("{}, line {}".format, self.path, line)
                        yield _to_record(raw, self.kind, self.column, number + 1, place)
        except _READ_ERRORS as error:
            reason = f"{self.path}, after document {number + 1}: cannot be read ({error})"
            yield BadRecord(reason, END_OF_UNIT)


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


def _open_stream(path: str) -> Any:
    if path.endswith(".gz"):
        return gzip.open(path, "rb")
    if path.endswith(".zst"):
        return io.BufferedReader(_ZstdFile(path))
    return open(path, "rb")


class _ZstdFile(io.RawIOBase):
    """Reads zstandard frames, and raises EOFError where the last one is cut off.

    The library's own reader takes a truncated file for a short one.
    """

    def __init__(self, path: str) -> None:
        self._file = open(path, "rb")  # noqa: SIM115
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

    def close(self) -> None:
        self._file.close()
        super().close()


def list_text_units(
    path: str, kind: str, column: str, parts: int
) -> list[LineRangeUnit] | list[SequentialUnit]:
    """The units of a JSON Lines (`kind="jsonl"`) or text file, divided into up to `parts`."""
    if kind == "file":
        return [SequentialUnit(path, kind, column)]
    if kind == "blank_line" or path.endswith(COMPRESSED_SUFFIXES):
        return [SequentialUnit(path, kind, column, part, parts) for part in range(parts)]
    size = Path(path).stat().st_size
    return [LineRangeUnit(path, kind, column, *bounds) for bounds in split_range(0, size, parts)]


def check_text_file(path: str, kind: str, column: str, tolerance: int) -> None:
    """Read the beginning of a file, so that what is wrong with all of it shows before training.

    Args:
        path, kind, column: as in `list_text_units`.
        tolerance: bad records to look past for a sound one.

    Raises:
        SettingError: none of its first records has the column.
        InputError: the file is empty, or its first records are bad.
    """
    reason = f"{path} is empty"
    for record in itertools.islice(
        SequentialUnit(path, kind, column).iter_records(0), tolerance + 1
    ):
        if isinstance(record, Record):
            return
        reason = record.reason
        if record.is_setting:
            raise SettingError(reason)
    if kind == "jsonl" and ("not JSON" in reason or "holds a list" in reason):
        reason += "; JSON Lines has one object a line, so convert a JSON array first"
    raise InputError(reason)
