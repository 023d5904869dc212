"""CSV and TSV: rows, whose quoted fields may hold line ends, and a first row of column names."""

import csv
import itertools
import re
from collections.abc import Callable, Iterator
from functools import partial
from typing import BinaryIO

from neobert_train.data.sources.fields import join_names
from neobert_train.data.sources.lines import (
    CR_ADVICE,
    MOST_DOCUMENT_BYTES,
    Collector,
    Raw,
    TooLong,
    decode,
    is_blank,
    read_line,
)
from neobert_train.data.sources.source import RecordError

DELIMITERS = {"csv": ",", "tsv": "\t"}

csv.field_size_limit(MOST_DOCUMENT_BYTES)  # Python's own is 128 KiB
_REST_OF_QUOTED = re.compile(rb'(?:[^"]++|"")*+"')


def read_rows(
    stream: BinaryIO, delimiter: str, column: str, id_column: str | None
) -> Iterator[tuple[int, Callable[[], tuple[str, str | None]]]]:
    """Yield the rows after the first, each as the line it begins in and what parses it.

    Parsing gives text and id, or raises RecordError.

    Raises:
        RecordError: the first row has not the columns.
        EOFError: the file ends inside a quoted field.
    """
    rows = split_rows(stream, delimiter.encode())
    for _, first in rows:
        names = _parse_row(first, delimiter)
        break
    else:
        return
    place = _find_column(names, column, "column")
    id_place = None if id_column is None else _find_column(names, id_column, "id_column")
    for line, raw in rows:
        yield line, partial(_parse, raw, delimiter, len(names), place, id_place)


def split_rows(stream: BinaryIO, delimiter: bytes) -> Iterator[tuple[int, Raw]]:
    """Yield the rows that are not blank, with the numbers of the lines they begin in.

    Raises:
        EOFError: the file ends inside a quoted field.
    """
    row, first, is_quoted = Collector(), 0, False
    for number in itertools.count(1):
        line, num_bytes = read_line(stream)
        if not num_bytes:
            if is_quoted:
                raise EOFError(f"the file ends inside the quoted field that begins in line {first}")
            return
        if not is_quoted and is_blank(line):
            continue
        first = first if is_quoted else number
        row.add(line)
        is_quoted = not isinstance(line, TooLong) and _ends_quoted(line, delimiter, is_quoted)
        if not is_quoted:
            yield first, row.take()


def _ends_quoted(line: bytes, delimiter: bytes, is_quoted: bool) -> bool:
    """Return whether a line ends inside a quoted field, given whether it begins there."""
    if not is_quoted and b'"' not in line:
        return False
    place = 0
    while True:
        if is_quoted or line.startswith(b'"', place):
            field = _REST_OF_QUOTED.match(line, place if is_quoted else place + 1)
            if field is None:
                return True
            place, is_quoted = field.end(), False
        place = line.find(delimiter, place) + 1
        if not place:
            return False


def _parse_row(raw: Raw, delimiter: str) -> list[str]:
    text = decode(raw)
    try:
        return next(csv.reader([text], delimiter=delimiter, strict=True))
    except csv.Error as error:
        is_cr = "\r" in text.rstrip("\r\n") and "\n" not in text.rstrip("\r\n")
        raise RecordError(CR_ADVICE if is_cr else f"not a row ({error})") from error


def _find_column(names: list[str], name: str, setting: str) -> int:
    if names.count(name) != 1:
        count = "no column" if name not in names else f"{names.count(name)} columns"
        advice = f"write data.{setting}=... with one of {join_names(names)}"
        other = next((mark for mark in ("\t", ";", "|") if mark in names[0]), None)
        if len(names) == 1 and other:
            advice = f"its fields seem to be separated by {other!r}: "
            advice += "write data.format=tsv" if other == "\t" else "write it with commas"
        raise RecordError(f"has {count} '{name}': {advice}", is_setting=True)
    return names.index(name)


def _parse(
    raw: Raw, delimiter: str, num_columns: int, place: int, id_place: int | None
) -> tuple[str, str | None]:
    fields = _parse_row(raw, delimiter)
    if len(fields) != num_columns:
        raise RecordError(f"has {len(fields)} fields, not {num_columns} as the first row")
    return fields[place], None if id_place is None else fields[id_place] or None
