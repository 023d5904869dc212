"""Lines, and documents made of lines, none of which needs more memory than a bound."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

from neobert_train.data.sources.source import RecordError

# A longer document is a bad record. Nothing is written that long; a damaged or malicious file may
# hold it all the same, gzip a terabyte in a gigabyte.
MOST_DOCUMENT_BYTES = 1 << 29
_READ_BYTES = 1 << 20

BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_UTF_16_MARKS = (b"\xff\xfe", b"\xfe\xff")
CR_ADVICE = "its lines end in CR, without LF: convert them, as `tr '\\r' '\\n'` does"


@dataclass(frozen=True, slots=True)
class TooLong:
    """Stands for the bytes of a document beyond the bound, which were passed over."""

    num_bytes: int


Raw = bytes | TooLong


def decode(raw: Raw) -> str:
    """Return the text of a document, without byte order mark.

    Raises:
        RecordError: it is no UTF-8, or was too long to keep.
    """
    if isinstance(raw, TooLong):
        raise RecordError(describe_length(raw.num_bytes))
    if raw.startswith(_UTF_16_MARKS):
        raise RecordError("UTF-16, not UTF-8: convert it, as `iconv -f UTF-16 -t UTF-8` does")
    raw = raw.removeprefix(BYTE_ORDER_MARK)
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise RecordError(f"not UTF-8 (byte 0x{raw[error.start]:02x})") from error


def describe_length(num_bytes: int) -> str:
    """Say that a document is beyond the bound."""
    most = f"{MOST_DOCUMENT_BYTES:,}"
    return f"too long: {num_bytes:,} bytes, and a document may have {most}"


class Collector:
    """Collects the bytes of a document up to the bound, and counts those beyond it."""

    def __init__(self) -> None:
        self._kept, self.num_bytes = bytearray(), 0

    def add(self, piece: Raw) -> None:
        """Add the next bytes."""
        self.num_bytes += piece.num_bytes if isinstance(piece, TooLong) else len(piece)
        if isinstance(piece, TooLong) or self.num_bytes > MOST_DOCUMENT_BYTES:
            self._kept = bytearray()
        else:
            self._kept += piece

    def take(self) -> Raw:
        """Return what was collected, and begin anew."""
        raw = (
            bytes(self._kept) if self.num_bytes <= MOST_DOCUMENT_BYTES else TooLong(self.num_bytes)
        )
        self._kept, self.num_bytes = bytearray(), 0
        return raw


def read_line(stream: BinaryIO) -> tuple[Raw, int]:
    """Return the next line with its line end, and its length in bytes; 0 at the end."""
    line = stream.readline(_READ_BYTES)
    if len(line) < _READ_BYTES or line.endswith(b"\n"):
        return line, len(line)
    whole = Collector()
    while line:
        whole.add(line)
        line = b"" if line.endswith(b"\n") else stream.readline(_READ_BYTES)
    num_bytes = whole.num_bytes
    return whole.take(), num_bytes


def is_blank(line: Raw) -> bool:
    """Return whether a line holds nothing but white space."""
    return not isinstance(line, TooLong) and not line.strip()


def iter_lines(stream: BinaryIO) -> Iterator[tuple[int, Raw]]:
    """Yield the lines that are not blank, with their numbers from 1."""
    for number in itertools.count(1):
        line, num_bytes = read_line(stream)
        if not num_bytes:
            return
        if not is_blank(line):
            yield number, line


def iter_blocks(stream: BinaryIO) -> Iterator[tuple[int, Raw]]:
    """Yield what lies between blank lines, with the number of its first line from 1."""
    block, first = Collector(), 0
    for number in itertools.count(1):
        line, num_bytes = read_line(stream)
        if num_bytes and not is_blank(line):
            first = first or number
            block.add(line)
        elif first:
            yield first, block.take()
            first = 0
        if not num_bytes:
            return


def read_whole(stream: BinaryIO) -> Iterator[tuple[int, Raw]]:
    """Yield the whole file as one document that begins in line 1."""
    whole = Collector()
    while piece := stream.read(_READ_BYTES):
        whole.add(piece)
    yield 1, whole.take()
