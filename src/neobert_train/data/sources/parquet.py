"""Parquet files, one unit per row group or range of its rows."""

from collections.abc import Iterator
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from neobert_train.data.sources.source import (
    END_OF_UNIT,
    BadRecord,
    Record,
    SettingError,
    split_range,
)
from neobert_train.errors import InputError

_ROWS_PER_READ = 256


@dataclass(frozen=True, slots=True)
class ParquetUnit:
    """Rows [start, stop) of one row group; a cursor is the number of rows already read."""

    path: str
    column: str
    row_group: int
    start: int
    stop: int

    def iter_records(self, cursor: int) -> Iterator[Record | BadRecord]:
        """The rows from `cursor` on; damage to the file is one bad record that ends the unit."""
        place = f"{self.path}, row group {self.row_group}"
        first = self.start + cursor
        row = -1
        try:
            with pq.ParquetFile(self.path, page_checksum_verification=True) as file:
                for row, text in enumerate(_iter_rows(file, self.row_group, self.column)):
                    if first <= row < self.stop:
                        yield _to_record(text, place, row, row - self.start + 1)
                    if row + 1 >= self.stop:
                        return
            yield BadRecord(f"{place}: ends after {row + 1} rows, not {self.stop}", END_OF_UNIT)
        except (OSError, pa.ArrowException) as error:
            yield BadRecord(f"{place}: cannot be read ({error})", END_OF_UNIT)


def _iter_rows(file: pq.ParquetFile, row_group: int, column: str) -> Iterator[pa.Scalar]:
    batches = file.iter_batches(
        batch_size=_ROWS_PER_READ, row_groups=[row_group], columns=[column], use_threads=False
    )
    for batch in batches:
        yield from batch.column(0)


def _to_record(text: pa.Scalar, place: str, row: int, next_cursor: int) -> Record | BadRecord:
    try:
        return Record(text.as_py() or "", next_cursor)
    except UnicodeDecodeError as error:
        return BadRecord(f"{place}, row {row + 1}: not UTF-8 ({error.reason})", next_cursor)


def list_parquet_units(path: str, column: str, parts: int) -> list[ParquetUnit]:
    """The units of a file, each row group divided into up to `parts`.

    Raises:
        SettingError: the column does not exist or holds no text.
        InputError: the file cannot be read or is empty.
    """
    try:
        with pq.ParquetFile(path) as file:
            schema, metadata = file.schema_arrow, file.metadata
    except (OSError, pa.ArrowException) as error:
        raise InputError(f"{path} cannot be read as parquet: {error}") from error
    if column not in schema.names:
        raise SettingError(
            f"{path} has no column '{column}': write data.column=... with one of "
            f"{', '.join(schema.names)}"
        )
    if not _is_text(schema.field(column).type):
        texts = [field.name for field in schema if _is_text(field.type)]
        raise SettingError(
            f"{path}: column '{column}' holds {schema.field(column).type}, not text: write "
            f"data.column=... with one of {', '.join(texts) or '(there is no text column)'}"
        )
    if metadata.num_rows == 0:
        raise InputError(f"{path} has no rows")
    units = []
    for row_group in range(metadata.num_row_groups):
        num_rows = metadata.row_group(row_group).num_rows
        ranges = split_range(0, num_rows, parts) if num_rows else []
        units += [ParquetUnit(path, column, row_group, *bounds) for bounds in ranges]
    return units


def _is_text(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    kinds = (
        pa.types.is_string,
        pa.types.is_large_string,
        pa.types.is_string_view,
        pa.types.is_null,
    )
    return any(is_kind(kind) for is_kind in kinds)
