"""Parquet files, one unit per row group or range of its rows."""

from collections.abc import Iterator
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from neobert_train.data.sources.source import END_OF_UNIT, BadRecord, Record, split_range
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
        first = self.start + cursor
        try:
            with pq.ParquetFile(self.path, page_checksum_verification=True) as file:
                for row, text in _iter_rows(file, self.row_group, self.column):
                    if row >= self.stop:
                        return
                    if row >= first:
                        yield Record(text or "", row - self.start + 1)
        except (OSError, pa.ArrowException, UnicodeDecodeError) as error:
            reason = f"{self.path}, row group {self.row_group}: cannot be read ({error})"
            yield BadRecord(reason, END_OF_UNIT)


def _iter_rows(
    file: pq.ParquetFile, row_group: int, column: str
) -> Iterator[tuple[int, str | None]]:
    row = 0
    batches = file.iter_batches(
        batch_size=_ROWS_PER_READ, row_groups=[row_group], columns=[column], use_threads=False
    )
    for batch in batches:
        for text in batch.column(0):
            yield row, text.as_py()
            row += 1


def list_parquet_units(path: str, column: str, parts: int) -> list[ParquetUnit]:
    """The units of a file, each row group divided into up to `parts`.

    Raises:
        InputError: the file cannot be read, is empty, or lacks the column.
    """
    try:
        with pq.ParquetFile(path) as file:
            schema, metadata = file.schema_arrow, file.metadata
    except (OSError, pa.ArrowException) as error:
        raise InputError(f"{path} cannot be read as parquet: {error}") from error
    if column not in schema.names:
        raise InputError(
            f"{path} has no column '{column}': write data.column=... with one of "
            f"{', '.join(schema.names)}"
        )
    if not _is_text(schema.field(column).type):
        texts = [field.name for field in schema if _is_text(field.type)]
        raise InputError(
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
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_null(kind)
