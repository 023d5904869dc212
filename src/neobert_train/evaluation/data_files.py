"""Columns of the files that tasks are made from."""

import difflib
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.json
import pyarrow.parquet as pq

from neobert_train.errors import InputError

SUFFIXES = (".parquet", ".jsonl", ".csv", ".tsv")


def find_split(folder: Path, name: str) -> list[Path]:
    """Return the files of a split: `NAME.parquet`, or `NAME-00000-of-00001.parquet` and so on."""
    files = [
        path
        for path in (sorted(folder.iterdir()) if folder.is_dir() else [])
        if path.suffix in SUFFIXES and (path.stem == name or path.stem.startswith(f"{name}-"))
    ]
    return [path for path in files if path.is_file()]


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
        table = _read(file)
        wanted = [*columns, *(name for name in optional if name in (found or table.column_names))]
        for name in wanted:
            if name not in table.column_names:
                raise InputError(_describe_missing(file, name, table.column_names))
            found.setdefault(name, []).extend(table.column(name).to_pylist())
    if not found or not next(iter(found.values())):
        names = ", ".join(map(str, files))
        raise InputError(f"{names}: there are no rows")
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
    for row, value in enumerate(values):
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_number or not math.isfinite(value):
            raise InputError(
                f"{_name(files)}, row {row + 1}: {column} is {value!r} and no finite number: correct it or "
                f"remove the row"
            )
    return [float(value) for value in values]


def _name(files: Sequence[Path]) -> str:
    return str(files[0]) if len(files) == 1 else f"{files[0]} (and the {len(files) - 1} after it)"


def _read(file: Path) -> pa.Table:
    try:
        if file.suffix == ".parquet":
            return pq.read_table(file)
        if file.suffix == ".jsonl":
            return pyarrow.json.read_json(file)
        separator = "\t" if file.suffix == ".tsv" else ","
        options = pyarrow.csv.ParseOptions(delimiter=separator, newlines_in_values=True)
        return pyarrow.csv.read_csv(file, parse_options=options)
    except (OSError, ValueError, pa.ArrowException) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise InputError(f"{file} cannot be read: {reason}") from error


def _describe_missing(file: Path, name: str, columns: Sequence[str]) -> str:
    close = difflib.get_close_matches(name, columns, n=1)
    return f"{file} has no column {name}: it has {', '.join(columns)}" + (
        f"; rename {close[0]}" if close else ""
    )
