"""Text files: JSON, CSV and plain text, also compressed.

Plain files of one document a line are divided into byte ranges, each read by a seek. Everything
else is read from its beginning: every part reads the file and keeps each `parts`-th document.
"""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import BinaryIO

from neobert_train.data.sources.compression import READ_ERRORS, decompress, is_compressed
from neobert_train.data.sources.delimited import DELIMITERS, read_rows
from neobert_train.data.sources.json_text import is_spread, parse_json, split_values
from neobert_train.data.sources.lines import (
    CR_ADVICE,
    Raw,
    decode,
    is_blank,
    iter_blocks,
    iter_lines,
    read_line,
    read_whole,
)
from neobert_train.data.sources.source import (
    END_OF_UNIT,
    STRETCHES_PER_LANE,
    BadRecord,
    Division,
    Format,
    Record,
    RecordError,
    SettingError,
    Unit,
)
from neobert_train.errors import InputError
from neobert_train.storage.failures import is_of_system
from neobert_train.storage.stored_files import StoredFile

_BEGINNING_BYTES = 1 << 16

Parse = Callable[[], tuple[str, str | None]]

_SPLITTERS: dict[str, Callable[[BinaryIO], Iterator[tuple[int, Raw]]]] = {
    "jsonl": iter_lines,
    "line": iter_lines,
    "blank_line": iter_blocks,
    "file": read_whole,
    "json": split_values,
}


@dataclass(frozen=True, slots=True)
class TextLayout:
    """How documents lie in a file.

    Attributes:
        kind: `jsonl`, `json`, `csv`, `tsv`, `line`, `blank_line` or `file`.
        column: key or column of the text.
        id_column: key or column of the id, if any.
    """

    kind: str
    column: str = ""
    id_column: str | None = None

    @property
    def has_lines(self) -> bool:
        """Whether a document is a line."""
        return self.kind in ("jsonl", "line")

    def split(self, stream: BinaryIO) -> Iterator[tuple[str, Parse]]:
        """Yield the place of every document, such as `line 7`, and what parses it.

        Raises:
            RecordError: the file has not the columns.
            EOFError: the file is cut off.
        """
        word = "document" if self.kind == "json" else "line"
        if self.kind in DELIMITERS:
            documents = read_rows(stream, DELIMITERS[self.kind], self.column, self.id_column)
        else:
            found = _SPLITTERS[self.kind](stream)
            documents = ((number, partial(self.parse, raw)) for number, raw in found)
        return ((f"{word} {number}", parse) for number, parse in documents)

    def parse(self, raw: Raw) -> tuple[str, str | None]:
        """Return text and id of a document; raises RecordError."""
        if self.kind in ("jsonl", "json"):
            return parse_json(raw, self.column, self.id_column, is_line=self.has_lines)
        return decode(raw).rstrip("\r\n"), None


def _to_record(
    parse: Parse, begin: int, next_cursor: int, describe_place: Callable[[], str]
) -> Record | BadRecord:
    try:
        text, id_ = parse()
        text.encode("utf-8")
        return Record(text, begin, next_cursor, id_)
    except UnicodeEncodeError as error:
        surrogate = ascii(error.object[error.start])
        reason = f"{describe_place()}: holds the lone surrogate {surrogate}"
        return BadRecord(reason, begin, next_cursor)
    except RecordError as error:
        return BadRecord(f"{describe_place()}: {error}", begin, next_cursor, error.is_setting)


@dataclass(frozen=True, slots=True)
class _TextFile(Format):
    """Documents that lie in a file as `layout` says."""

    layout: TextLayout

    def check(self, file: StoredFile, tolerance: int) -> None:
        """Read the first documents of a file, from its beginning in any case."""
        reason = f"{file.name} is empty"
        records = Unit(file, Sequential(self.layout)).iter_records(0)
        for record in itertools.islice(records, tolerance + 1):
            if isinstance(record, Record):
                is_text = self.layout.kind in ("line", "blank_line")
                if is_text and "\r" in record.text and "\n" not in record.text and not any(records):
                    raise InputError(f"{file.name}: {CR_ADVICE}, or write data.text_documents=file")
                return
            assert isinstance(record, BadRecord)
            reason = record.reason
            if record.is_setting:
                raise SettingError(reason)
        raise InputError(reason)


@dataclass(frozen=True, slots=True)
class LineRanges(_TextFile):
    """The lines of a plain file, by the part of it in which their first byte lies.

    A cursor is a byte offset.
    """

    units_per_lane = STRETCHES_PER_LANE

    def iter_records(self, unit: Unit, cursor: int) -> Iterator[Record | BadRecord]:
        """Yield the non-blank lines from `cursor` on."""
        numbers, offset = _LineNumbers(unit.file), cursor
        begin, stop = unit.find_division().find_range(unit.part, unit.parts)
        with unit.file.open() as file:
            if cursor == 0 and begin > 0:
                # A line that began before this range belongs to the one before.
                file.seek(begin - 1)
                offset = begin - 1 + read_line(file)[1]
            file.seek(offset)
            while offset < stop:
                line, num_bytes = read_line(file)
                if not num_bytes:
                    return
                start, offset = offset, offset + num_bytes
                if not is_blank(line):
                    parse = partial(self.layout.parse, line)
                    yield _to_record(parse, start, offset, partial(numbers.describe, start))

    def find_division(self, file: StoredFile) -> Division:
        """Return the division by bytes."""
        return Division((file.get_size(),))

    def describe(self, next_cursor: int) -> str:
        """Name a record as `line ending at byte 2,041`."""
        return f"line ending at byte {next_cursor:,}"


class _LineNumbers:
    """Places of lines by their offset, only for messages, so that reading needs no index.

    Offsets are asked for in ascending order; each part of a local file is looked through once.
    """

    def __init__(self, file: StoredFile) -> None:
        self._file, self._offset, self._count = file, 0, 0
        self._stream: BinaryIO | None = None  # its own, opened for the first message

    def describe(self, offset: int) -> str:
        """Name a record as `texts.jsonl, line 7`; of a remote file, which is not read again, the byte."""
        if self._file.is_remote:
            return f"{self._file.name}, line at byte {offset:,}"
        if self._stream is None:
            self._stream = self._file.open()
        while self._offset < offset:
            block = self._stream.read(min(offset - self._offset, 1 << 20))
            if not block:
                break
            self._count += block.count(b"\n")
            self._offset += len(block)
        return f"{self._file.name}, line {self._count + 1}"


@dataclass(frozen=True, slots=True)
class Sequential(_TextFile):
    """The documents of a file that is read from its beginning; parts take them in turns.

    A cursor counts documents of the file.
    """

    units_per_lane: int = 1

    def iter_records(self, unit: Unit, cursor: int) -> Iterator[Record | BadRecord]:
        """Yield the documents from `cursor` on; damage is one bad record that ends the unit."""
        number, path = -1, unit.name
        try:
            with unit.file.open() as file, decompress(path, file) as stream:
                for number, (place, parse) in enumerate(self.layout.split(stream)):
                    if number >= cursor and number % unit.parts == unit.part:
                        name = partial("{}, {}".format, path, place)
                        yield _to_record(parse, number, number + 1, name)
        except RecordError as error:  # of the first row, which names the columns
            reason = f"{path}: {error}"
            yield BadRecord(reason, number + 1, END_OF_UNIT, error.is_setting)
        except READ_ERRORS as error:
            if is_of_system(error):
                raise
            reason = f"{path}, after document {number + 1}: cannot be read ({error})"
            yield BadRecord(reason, number + 1, END_OF_UNIT)

    def describe(self, next_cursor: int) -> str:
        """Name a record as `document 7`; documents count from 1."""
        return f"document {next_cursor}"


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
    return Sequential(layout, units_per_lane=0 if layout.kind == "file" else 1)


def is_json_lines(file: StoredFile) -> bool:
    """Return whether a file of JSON holds an object in each line, and not an array or longer objects.

    Raises:
        Exception: `is_of_system` of it.
    """
    try:
        with file.open() as raw, decompress(file.path, raw) as stream:
            return not is_spread(stream.read(_BEGINNING_BYTES))
    except READ_ERRORS as error:
        if is_of_system(error):
            raise
        return True  # whoever reads it says what is wrong
