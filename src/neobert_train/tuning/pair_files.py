"""Rows of the files that users bring: JSON lines, parquet, CSV and TSV."""

import csv
import io
import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from neobert_train.config.data_schema import FileFormat
from neobert_train.config.embed_schema import PairsConfig
from neobert_train.data.sources.formats import FORMATS, find_format
from neobert_train.data.sources.listing import describe_left_out, list_paths
from neobert_train.errors import InputError
from neobert_train.storage.stored_files import Network, StoredFile

# Place of a row for messages, and the row.
Row = tuple[str, Mapping[str, Any]]


def list_pair_files(config: PairsConfig, prefix: str) -> list[StoredFile]:
    """Return the files of a set of data.

    Args:
        config: of the set.
        prefix: of its settings, for messages.

    Raises:
        InputError: a path names nothing to read.
    """
    listing = list_paths(config.paths, Network(), lambda path: find_format(path) in READERS)
    problems = list(listing.problems)
    for file in listing.files:
        if find_format(file.path) not in READERS:
            suffixes = [suffix for suffix, known in FORMATS.items() if known in READERS]
            problems.append(f"{file.name}: its name must end in {', '.join(suffixes)}")
    if listing.left_out and not listing.files:
        problems.append(f"nothing is read: {describe_left_out(listing.left_out)}")
    if problems:
        raise InputError.from_problems([f"{prefix}paths: {problem}" for problem in problems])
    return listing.files


def iter_file_rows(file: StoredFile) -> Iterator[Row]:
    """Yield the rows of a file, each with its place, such as `pairs.jsonl, line 3`.

    Raises:
        InputError: the file cannot be read, or a row of it is damaged; names the place.
    """
    kind = find_format(file.path)
    assert kind is not None
    try:
        with file.open() as stream:
            for place, row in READERS[kind](stream):
                yield f"{file.name}, {place}", row
    except InputError:
        raise
    except _DamagedRowError as error:
        raise InputError(f"{file.name}, {error}") from error
    except (OSError, pa.ArrowException, UnicodeDecodeError, csv.Error, ValueError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(f"{file.name} cannot be read: {reason}") from error


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
            kind = type(row).__name__
            raise _DamagedRowError(
                f'{place} holds a {kind}, not an object such as {{"anchor": ...}}'
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
            names = next(rows, None)
            for number, values in enumerate(rows, 1):
                if not values:
                    continue
                if len(values) != len(names or ()):
                    raise _DamagedRowError(
                        f"row {number} (line {rows.line_num}) has {len(values)} columns, and the first "
                        f"line names {len(names or ())}: quote texts that hold {delimiter!r}"
                    )
                yield f"row {number}", dict(zip(names or (), values, strict=True))

    return read


READERS: dict[FileFormat | None, Callable[[BinaryIO], Iterator[Row]]] = {
    FileFormat.jsonl: _read_json_lines,
    FileFormat.parquet: _read_parquet,
    FileFormat.csv: _make_table_reader(","),
    FileFormat.tsv: _make_table_reader("\t"),
}
