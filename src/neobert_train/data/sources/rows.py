"""Whole rows of files that users bring: JSON lines, parquet, CSV and TSV.

Training reads one text of a row, and seeks; here a row is taken with all its columns, from the first to
the last. Fields of CSV and TSV are texts: what looks like a number may be a name, such as 007.
"""

import csv
import io
import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from neobert_train.config.data_schema import FileFormat
from neobert_train.data.sources.delimited import DELIMITERS
from neobert_train.data.sources.fields import describe_kind
from neobert_train.data.sources.formats import FORMATS, find_format
from neobert_train.errors import InputError
from neobert_train.storage.stored_files import StoredFile

# Place of a row for messages, and the row.
Row = tuple[str, Mapping[str, Any]]


def iter_file_rows(file: StoredFile) -> Iterator[Row]:
    """Yield the rows of a file, each with its place, such as `pairs.jsonl, line 3`.

    Raises:
        InputError: the file cannot be read, or a row of it is damaged; names the place.
    """
    kind = find_format(file.path)
    assert kind in READERS
    try:
        with file.open() as stream:
            for place, row in READERS[kind](stream):
                yield f"{file.name}, {place}", row
    except InputError:
        raise
    except _DamagedRowError as error:
        raise InputError(f"{file.name}, {error}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{file.name} is not UTF-8: save it as UTF-8") from error
    except (OSError, pa.ArrowException, csv.Error, ValueError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(f"{file.name} cannot be read: {reason}") from error


def list_row_suffixes() -> list[str]:
    """Return the ends of the names of files that are read."""
    return [suffix for suffix, known in FORMATS.items() if known in READERS]


def describe_bad_text(value: Any) -> str | None:
    """Say what is wrong with a value that has to be a text; None where nothing is."""
    if value is None or (isinstance(value, str) and not value.strip()):
        return "is empty: give a text, or take the row out"
    if not isinstance(value, str):
        return f"holds {describe_kind(value)}, not a text: name another column"
    try:
        value.encode()
    except UnicodeEncodeError:
        return "holds half of a surrogate pair, which is no text: correct it, or take the row out"
    return None


class _DamagedRowError(Exception):
    """A row that cannot be read; says which and why."""


def _read_json_lines(stream: BinaryIO) -> Iterator[Row]:
    for number, line in enumerate(stream, 1):
        if not line.strip():
            continue
        place = f"line {number}"
        try:
            row = json.loads(line.decode("utf-8-sig"))
        except (ValueError, RecursionError) as error:
            reason = str(error).splitlines()[0]
            raise _DamagedRowError(
                f"{place} is not JSON ({reason}): give one object a line"
            ) from error
        if not isinstance(row, dict):
            kind = describe_kind(row)
            raise _DamagedRowError(
                f'{place} holds {kind}, not an object such as {{"text": ...}}: give one object a line'
            )
        yield place, row


def _read_parquet(stream: BinaryIO) -> Iterator[Row]:
    number = 0
    for batch in pq.ParquetFile(stream).iter_batches(batch_size=1024):
        for row in batch.to_pylist():
            number += 1
            yield f"row {number}", row


def _make_table_reader(delimiter: str) -> Callable[[BinaryIO], Iterator[Row]]:
    def read(stream: BinaryIO) -> Iterator[Row]:
        with io.TextIOWrapper(stream, encoding="utf-8-sig", newline="") as text:
            rows = csv.reader(text, delimiter=delimiter, strict=True)
            names = next(rows, [])
            twice = next((name for name in names if names.count(name) > 1), None)
            if twice is not None:
                raise _DamagedRowError(
                    f"the first line names the column {twice!r} twice: rename one"
                )
            for number, values in enumerate(rows, 1):
                if not values:
                    continue
                if len(values) != len(names):
                    raise _DamagedRowError(
                        f"row {number} (line {rows.line_num}) has {len(values)} columns, and the first "
                        f"line names {len(names)}: quote texts that hold {delimiter!r}"
                    )
                yield f"row {number}", dict(zip(names, values, strict=True))

    return read


READERS: dict[FileFormat | None, Callable[[BinaryIO], Iterator[Row]]] = {
    FileFormat.jsonl: _read_json_lines,
    FileFormat.parquet: _read_parquet,
    FileFormat.csv: _make_table_reader(DELIMITERS["csv"]),
    FileFormat.tsv: _make_table_reader(DELIMITERS["tsv"]),
}
