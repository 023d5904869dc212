"""Columns of the files that tasks are made from."""

import csv
import difflib
import json
import math
import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from neobert_train.errors import InputError

SUFFIXES = (".parquet", ".jsonl", ".csv", ".tsv")


def find_split(folder: Path, name: str) -> list[Path]:
    """Return the files of a split: `NAME.csv`, or `NAME-00000-of-00001.parquet` and so on.

    Raises:
        InputError: there are files of several formats.
    """
    pattern = re.compile(rf"{re.escape(name)}(-\d+-of-\d+)?")
    files = [
        path
        for path in (sorted(folder.iterdir()) if folder.is_dir() else [])
        if path.suffix in SUFFIXES and pattern.fullmatch(path.stem) and path.is_file()
    ]
    if len({(path.suffix, "-of-" in path.stem) for path in files}) > 1:
        names = ", ".join(path.name for path in files)
        raise InputError(f"{folder} has {name} more than once ({names}): keep one form of it")
    return files


def read_columns(
    files: Sequence[Path], columns: Sequence[str], optional: Sequence[str] = ()
) -> dict[str, list[Any]]:
    """Return the values of columns over all rows of files, one after another.

    Args:
        files: parquet, JSON lines, CSV or TSV.
        columns: that each file must have.
        optional: that are left out where the first file has none of that name.

    Raises:
        InputError: a file cannot be read, or has no such column; names it.
    """
    found: dict[str, list[Any]] = {}
    for file in files:
        names, values = _read(file)
        wanted = [*columns, *(name for name in optional if name in (found or names))]
        for name in wanted:
            if name not in names:
                raise InputError(_describe_missing(file, name, names))
            if names.count(name) > 1:
                raise InputError(f"{file} has two columns {name}: rename one")
            found.setdefault(name, []).extend(values[name])
    if not found or not next(iter(found.values())):
        raise InputError(f"{', '.join(map(str, files))}: there are no rows")
    return found


def check_texts(
    values: Sequence[Any], column: str, files: Sequence[Path], may_be_empty: bool = False
) -> list[str]:
    """Return texts of a column; raise InputError, with the row, where one is missing or no text.

    A field of a CSV file that is missing is an empty text.
    """
    for row, value in enumerate(values):
        if not isinstance(value, str) or not (may_be_empty or value.strip()):
            raise InputError(
                f"{_name(files)}, row {row + 1}: {column} is {value!r} and no text: correct it or "
                f"remove the row"
            )
    return list(values)


def check_scores(values: Sequence[Any], column: str, files: Sequence[Path]) -> list[float]:
    """Return numbers of a column; raise InputError, with the row, where one is none, or not finite."""
    return [_to_number(value, row, column, files) for row, value in enumerate(values)]


def _to_number(value: Any, row: int, column: str, files: Sequence[Path]) -> float:
    try:
        number = float(value) if isinstance(value, int | float | str) else math.nan
    except ValueError:
        number = math.nan
    if isinstance(value, bool) or not math.isfinite(number):
        raise InputError(
            f"{_name(files)}, row {row + 1}: {column} is {value!r} and no finite number: correct it or "
            f"remove the row"
        )
    return number


def _name(files: Sequence[Path]) -> str:
    return str(files[0]) if len(files) == 1 else f"{files[0]} (and the {len(files) - 1} after it)"


def _read(file: Path) -> tuple[list[str], dict[str, list[Any]]]:
    """Return the names of a file's columns, and the values of each.

    Fields of CSV and TSV are texts: what looks like a number may be a name, such as 007.
    """
    try:
        if file.suffix == ".parquet":
            table = pq.read_table(file)
            return table.column_names, {
                name: table.column(place).to_pylist()
                for place, name in enumerate(table.column_names)
            }
        with open(file, encoding="utf-8-sig", newline="") as stream:
            if file.suffix == ".jsonl":
                return _read_json_lines(stream)
            csv.field_size_limit(sys.maxsize)
            reader = csv.reader(
                stream, delimiter="\t" if file.suffix == ".tsv" else ",", strict=True
            )
            rows = [row for row in reader if row]
    except UnicodeDecodeError as error:
        raise InputError(f"{file} is not UTF-8 (byte {error.start}): save it as UTF-8") from error
    except (OSError, ValueError, csv.Error, pa.ArrowException) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise InputError(f"{file} cannot be read: {reason}") from error
    names = rows[0] if rows else []
    for number, row in enumerate(rows[1:], start=1):
        if len(row) != len(names):
            raise InputError(
                f"{file}, row {number} has {len(row)} fields, and the first line names {len(names)} columns: "
                f"quote fields that hold the delimiter"
            )
    return names, {name: [row[i] for row in rows[1:]] for i, name in enumerate(names)}


def _read_json_lines(stream: Iterable[str]) -> tuple[list[str], dict[str, list[Any]]]:
    rows = [json.loads(line) for line in stream if line.strip()]
    if not all(isinstance(row, dict) for row in rows):
        raise ValueError("a line is no JSON object")
    names = list(dict.fromkeys(name for row in rows for name in row))
    return names, {name: [row.get(name) for row in rows] for name in names}


def _describe_missing(file: Path, name: str, columns: Sequence[str]) -> str:
    close = difflib.get_close_matches(name, columns, n=1)
    return f"{file} has no column {name}: it has {', '.join(columns)}" + (
        f"; rename {close[0]}" if close else ""
    )
