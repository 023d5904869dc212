"""Columns of the files that tasks are made from."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from neobert_train.config.suggestion import suggest
from neobert_train.data.sources.formats import find_format
from neobert_train.data.sources.rows import READERS, describe_bad_text, iter_file_rows
from neobert_train.errors import InputError
from neobert_train.storage.stored_files import StoredFile


@dataclass(frozen=True)
class Columns:
    """Rows of files, one after another.

    Attributes:
        places: of every row, for messages.
        values: of every row, by column.
    """

    places: Sequence[str]
    values: dict[str, list[Any]]

    def __contains__(self, name: str) -> bool:
        return name in self.values

    def take_texts(self, name: str, may_be_empty: bool = False) -> list[str]:
        """Return the texts of a column.

        Raises:
            InputError: one is missing or no text; names its place.
        """
        for place, value in zip(self.places, self.values[name], strict=True):
            problem = describe_bad_text(value)
            if problem is not None and not (
                may_be_empty and isinstance(value, str) and not value.strip()
            ):
                raise InputError(f"{place}: {name} {problem}")
        return self.values[name]

    def take_numbers(self, name: str) -> list[float]:
        """Return the numbers of a column.

        Raises:
            InputError: one is none, or not finite; names its place.
        """
        return [
            _to_number(value, f"{place}: {name}")
            for place, value in zip(self.places, self.values[name], strict=True)
        ]


def find_split(folder: Path, name: str) -> list[Path]:
    """Return the files of a split: `NAME.csv`, or `NAME-00000-of-00001.parquet` and so on.

    Raises:
        InputError: there is more than one form of it.
    """
    pattern = re.compile(rf"{re.escape(name)}(?P<part>-\d+-of-\d+)?(\.\w+)+")
    found = [
        (path, match)
        for path in (sorted(folder.iterdir()) if folder.is_dir() else [])
        if (match := pattern.fullmatch(path.name)) and find_format(path.name) in READERS
    ]
    if len({(find_format(path.name), match["part"] is None) for path, match in found}) > 1:
        names = ", ".join(path.name for path, _ in found)
        raise InputError(f"{folder} has {name} more than once ({names}): keep one form of it")
    return [path for path, _ in found]


def read_columns(
    files: Sequence[Path], columns: Sequence[str], optional: Sequence[str] = ()
) -> Columns:
    """Return the values of columns over all rows of files.

    Args:
        files: JSON lines, parquet, CSV or TSV.
        columns: that each row must have.
        optional: that are left out where the first row has none of that name, and else may lack a value.

    Raises:
        InputError: a file cannot be read, has no rows, or a row has no such column; names the place.
    """
    places: list[str] = []
    values: dict[str, list[Any]] = {}
    for file in files:
        for place, row in iter_file_rows(StoredFile(str(file))):
            if not places:
                values = {name: [] for name in [*columns, *(n for n in optional if n in row)]}
            places.append(place)
            for name, column in values.items():
                if name not in row and name in columns:
                    raise InputError(f"{place}: there is no column {name}: {suggest(name, row)}")
                column.append(row.get(name))
    if not places:
        raise InputError(f"{', '.join(map(str, files))}: there are no rows")
    return Columns(places, values)


def _to_number(value: Any, place: str) -> float:
    try:
        number = float(value) if isinstance(value, int | float | str) else math.nan
    except ValueError:
        number = math.nan
    if isinstance(value, bool) or not math.isfinite(number):
        raise InputError(f"{place} is {value!r} and no finite number: correct it or remove the row")
    return number
