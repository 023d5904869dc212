"""JSON: text and id of an object, and the objects of a file that holds them in any layout."""

import itertools
import json
import re
from collections.abc import Iterator
from functools import partial
from typing import BinaryIO

from neobert_train.data.sources.fields import describe_kind, find_id, find_text
from neobert_train.data.sources.lines import BYTE_ORDER_MARK, CR_ADVICE, Collector, Raw, decode
from neobert_train.data.sources.source import RecordError

_READ_BYTES = 1 << 20

# The rest of a string, and all that ends or opens something outside of strings.
_REST_OF_STRING = re.compile(rb'(?:[^"\\]++|\\.)*+', re.DOTALL)
_QUOTE_OR_BRACKET = re.compile(rb'["{}\[\]]')
_PLAIN_VALUE = re.compile(rb'[^\s,"{}\[\]]++')


def parse_json(
    raw: Raw, column: str, id_column: str | None, is_line: bool
) -> tuple[str, str | None]:
    """Return text and id of a JSON object.

    Args:
        raw: the object.
        column, id_column: keys of text and id.
        is_line: whether it is a line of its file.

    Raises:
        RecordError: it is no JSON object with a text.
    """
    text = decode(raw)
    try:
        record = json.loads(text)
    except json.JSONDecodeError as error:
        cause = error.msg.removesuffix(" at")
        advice = _advise(text, error, is_line)
        raise RecordError(f"not JSON ({cause} at column {error.colno}){advice}") from error
    except (ValueError, RecursionError) as error:  # a number or a nesting beyond Python's limits
        raise RecordError(f"not readable as JSON ({error})") from error
    if not isinstance(record, dict):
        is_array = is_line and isinstance(record, list)
        advice = ": write data.format=json for an array" if is_array else ""
        kind = describe_kind(record)
        raise RecordError(f"holds {kind}, not an object with a '{column}' key{advice}")
    return find_text(record, column), find_id(record, id_column)


def _advise(text: str, error: json.JSONDecodeError, is_line: bool) -> str:
    """Return what to do about text that is not one JSON value."""
    text, is_longer = text.strip(), error.msg == "Extra data"
    if is_longer and "\r" in text:
        return f": {CR_ADVICE}"
    if is_line and is_longer and error.doc[error.pos] in "{[":
        return ": write data.format=json for values that follow one another"
    if is_line and text[:1] in ("{", "[") and text[-1] in "{[,":
        return ": write data.format=json for values that take several lines"
    # The line end that closes a line is inside a string where the rest of the line is missing.
    if error.msg.startswith("Invalid control character") and error.pos >= len(error.doc.rstrip()):
        return ": it ends within a string"
    if error.msg.startswith("Invalid control character"):
        return ": write \\t and \\n for tabs and line ends in strings"
    return ""


def is_spread(start: bytes) -> bool:
    """Return whether a file that begins like this holds values that `split_values` finds, and not lines."""
    start = start.removeprefix(BYTE_ORDER_MARK).lstrip()
    return start.startswith(b"[") or start.partition(b"\n")[0].strip() == b"{"


def split_values(stream: BinaryIO) -> Iterator[tuple[int, Raw]]:
    """Yield the JSON values of a file, with their numbers from 1.

    They follow one another or are the elements of arrays, over any number of lines. Only strings
    and brackets are looked at, so that what is wrong inside a value stays inside it.

    Raises:
        EOFError: the file ends inside a value or an array.
    """
    return enumerate(_iter_values(stream), 1)


def _iter_values(stream: BinaryIO) -> Iterator[Raw]:
    scanner, held = _Scanner(), b""
    start = stream.read(_READ_BYTES).removeprefix(BYTE_ORDER_MARK)
    for read in itertools.chain([start], iter(partial(stream.read, _READ_BYTES), b"")):
        block = held + read
        # What a backslash at the end of a block escapes comes with the next.
        num_backslashes = len(block) - len(block.rstrip(b"\\"))
        held = b"\\" * (num_backslashes % 2)
        yield from scanner.scan(block.removesuffix(held))
    yield from scanner.finish()


class _Scanner:
    """Finds where values end, from one block of a file to the next."""

    def __init__(self) -> None:
        self._value = Collector()
        self._outside = 0  # depth between values: 1 within an array that holds them
        self._depth, self._in_string = 0, False

    def scan(self, block: bytes) -> Iterator[Raw]:
        """Yield the values that end in a block, which ends with no half of an escape."""
        place = 0
        while place < len(block):
            begin = place
            if self._in_string:
                rest = _REST_OF_STRING.match(block, place)
                assert rest is not None
                self._in_string = rest.end() == len(block)
                place = min(rest.end() + 1, len(block))
            elif self._depth > self._outside:
                found = _QUOTE_OR_BRACKET.search(block, place)
                place = found.end() if found else len(block)
                self._meet(found[0] if found else b"")
            elif found := _PLAIN_VALUE.match(block, place):
                place = found.end()
                self._value.add(found[0])
                continue
            else:
                place += 1
                yield from self._stand_between(block[begin:place])
                continue
            self._value.add(block[begin:place])
            if not self._in_string and self._depth == self._outside:
                yield self._value.take()

    def _stand_between(self, mark: bytes) -> Iterator[Raw]:
        """Go past a byte between two values; yield a number or word that it ends."""
        if self._value.num_bytes:
            yield self._value.take()
        if mark == b"[" and not self._outside:
            self._outside = self._depth = 1
        elif mark == b"]" and self._outside:
            self._outside = self._depth = 0
        elif mark in b"]}":
            self._value.add(mark)  # is no value, which its reader says
        elif mark in b'"[{':
            self._value.add(mark)
            self._meet(mark)

    def _meet(self, mark: bytes) -> None:
        if mark == b'"':
            self._in_string = True
        elif mark:
            self._depth += 1 if mark in b"[{" else -1

    def finish(self) -> Iterator[Raw]:
        """Yield the value that ends with the file."""
        if self._in_string or self._depth > self._outside:
            raise EOFError("the file ends inside a value")
        if self._value.num_bytes:
            yield self._value.take()
        if self._outside:
            raise EOFError("the file ends inside an array")
