"""Parquet files, divided by rows."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from neobert_train.data.sources.source import (
    END_OF_UNIT,
    STRETCHES_PER_LANE,
    BadRecord,
    Division,
    Record,
    SettingError,
    Unit,
)
from neobert_train.data.storage import StorageError, StoredFile
from neobert_train.errors import InputError

_ROWS_PER_READ = 256
_READ_BYTES = 8 << 20
# A row group cannot be entered in its middle. One that several units divide is kept decoded, so
# that its beginning is not decoded again for each of them, unless it is larger than this.
_MOST_KEPT_BYTES = 256 << 20
_KEPT_GROUPS = 2


@dataclass(frozen=True, slots=True)
class ParquetRows:
    """The rows of a file; a cursor is the number of the next row of the file.

    Parts are whole row groups where there are enough of them. Where they lie is looked up when a
    unit is read, so that a source of thousands of remote files is listed without opening them.

    Attributes:
        column: of the text.
        id_column: of the id, if any.
    """

    column: str
    id_column: str | None = None
    units_per_lane = STRETCHES_PER_LANE

    def iter_records(self, unit: Unit, cursor: int) -> Iterator[Record | BadRecord]:
        """Yield the rows from `cursor` on; a row group that cannot be read is one bad record.

        Raises:
            StorageError: the network gave out.
        """
        try:
            with unit.file.open() as stream, _open_parquet(stream) as parquet:
                check_columns(unit.path, parquet.schema_arrow, self.column, self.id_column)
                ends = _find_group_ends(parquet)
                start, stop = Division(ends).find_range(unit.part, unit.parts)
                for group, (begin, end) in enumerate(itertools.pairwise((0, *ends))):
                    wanted = range(max(start, cursor, begin), min(stop, end))
                    if wanted:
                        # Whatever the cursor: the two ways of reading lose different rows to damage.
                        divided = start > begin or stop < end
                        reader = _RowGroup(unit.file, parquet, group, begin, divided)
                        yield from self._iter_row_group(reader, wanted)
        except SettingError as error:
            yield BadRecord(str(error), 0, END_OF_UNIT, is_setting=True)
        except StorageError:
            raise
        except (OSError, pa.ArrowException) as error:
            yield BadRecord(f"{unit.path}: cannot be read ({error})", 0, END_OF_UNIT)

    def find_division(self, file: StoredFile) -> Division:
        """Return the division by rows, in row groups where there are enough of them."""
        with file.open() as stream, pq.ParquetFile(stream) as parquet:
            return Division(_find_group_ends(parquet))

    def describe(self, next_cursor: int) -> str:
        """Such as `row 7`; rows count from 1."""
        return f"row {next_cursor}"

    def check(self, file: StoredFile, tolerance: int) -> None:
        """Read the footer of a file; see `StoredFormat`."""
        try:
            with file.open() as stream, pq.ParquetFile(stream) as parquet:
                schema, num_rows = parquet.schema_arrow, parquet.metadata.num_rows
        except StorageError:
            raise
        except (OSError, pa.ArrowException) as error:
            raise InputError(f"{file.path} cannot be read as parquet: {error}") from error
        check_columns(file.path, schema, self.column, self.id_column)
        if num_rows == 0:
            raise InputError(f"{file.path} has no rows")

    def _iter_row_group(self, group: "_RowGroup", wanted: range) -> Iterator[Record | BadRecord]:
        row = wanted.start - 1
        try:
            for row, text, id_ in self._iter_rows(group, wanted):
                if row >= wanted.stop:
                    return
                if isinstance(text, UnicodeDecodeError):
                    reason = (
                        f"{group.file.path}, {self.describe(row + 1)}: not UTF-8 ({text.reason})"
                    )
                    yield BadRecord(reason, row, row + 1)
                else:
                    yield Record(text or "", row, row + 1, id_)
            if row + 1 < wanted.stop:
                raise pa.ArrowInvalid(f"it ends after {row + 1 - group.begin} rows")
        except StorageError:
            raise
        except (OSError, pa.ArrowException) as error:
            place = f"{group.file.path}, row group {group.number}"
            yield BadRecord(f"{place}: cannot be read ({error})", row + 1, wanted.stop)

    def _iter_rows(
        self, group: "_RowGroup", wanted: range
    ) -> Iterator[tuple[int, Any, str | None]]:
        """Row numbers of the file with their values: the wanted ones, and perhaps some after."""
        columns = (self.column, *([self.id_column] if self.id_column else ()))
        row, batches = group.read(columns, wanted)
        for batch in batches:
            if row + len(batch) > wanted.start:
                past = max(0, wanted.start - row)
                texts = _to_python(batch.column(self.column), past)
                ids = _to_python(batch.column(self.id_column), past) if self.id_column else ()
                for number, (text, id_) in enumerate(itertools.zip_longest(texts, ids), row + past):
                    yield number, text, None if id_ is None else str(id_)
            row += len(batch)


@dataclass(frozen=True, slots=True)
class _RowGroup:
    """A row group of an open file.

    Attributes:
        file, parquet: the file, and the same opened.
        number: of the row group.
        begin: number of its first row in the file.
        divided: whether several units divide it.
    """

    file: StoredFile
    parquet: pq.ParquetFile
    number: int
    begin: int
    divided: bool

    def read(self, columns: tuple[str, ...], wanted: range) -> tuple[int, Iterator[pa.RecordBatch]]:
        """Read the wanted rows, and perhaps some before and after.

        Returns:
            The number of the first row read, and the rows in batches.
        """
        size = self.parquet.metadata.row_group(self.number).total_byte_size
        if self.divided and size <= _MOST_KEPT_BYTES:
            table = _read_row_group(self.file, self.number, columns)
            return wanted.start, _copy_rows(table, wanted.start - self.begin, len(wanted))
        batches = self.parquet.iter_batches(
            batch_size=_ROWS_PER_READ,
            row_groups=[self.number],
            columns=list(columns),
            use_threads=False,
        )
        return self.begin, batches


def _open_parquet(stream: Any) -> pq.ParquetFile:
    return pq.ParquetFile(stream, page_checksum_verification=True, buffer_size=_READ_BYTES)


@lru_cache(maxsize=_KEPT_GROUPS)
def _read_row_group(file: StoredFile, group: int, columns: tuple[str, ...]) -> pa.Table:
    with file.open() as stream, _open_parquet(stream) as parquet:
        return parquet.read_row_group(group, columns=list(columns), use_threads=False)


def _copy_rows(table: pa.Table, start: int, count: int) -> Iterator[pa.RecordBatch]:
    """Rows in memory of their own: slices would keep the whole row group for every open unit."""
    stream = pa.BufferOutputStream()
    with pa.ipc.new_stream(stream, table.schema) as writer:
        writer.write_table(table.slice(start, count), max_chunksize=_ROWS_PER_READ)
    return iter(pa.ipc.open_stream(stream.getvalue()))


def _to_python(column: pa.Array, past: int) -> list[Any]:
    """Values from the index `past` on; in place of what is not UTF-8, the error."""
    values = column.slice(past)
    try:
        return values.to_pylist()
    except UnicodeDecodeError:
        return [_to_text(value) for value in values]


def _to_text(value: pa.Scalar) -> Any:
    try:
        return value.as_py()
    except UnicodeDecodeError as error:
        return error


def _find_group_ends(parquet: pq.ParquetFile) -> tuple[int, ...]:
    """The row after each row group."""
    metadata = parquet.metadata
    sizes = (metadata.row_group(group).num_rows for group in range(metadata.num_row_groups))
    return tuple(itertools.accumulate(sizes))


def check_columns(path: str, schema: pa.Schema, column: str, id_column: str | None) -> None:
    """Raises SettingError where a configured column is missing, or that of the text has none."""
    names = ", ".join(schema.names)
    if column not in schema.names:
        raise SettingError(
            f"{path} has no column '{column}': write data.column=... with one of {names}"
        )
    if not _is_text(schema.field(column).type):
        texts = [field.name for field in schema if _is_text(field.type)]
        raise SettingError(
            f"{path}: column '{column}' holds {schema.field(column).type}, not text: write "
            f"data.column=... with one of {', '.join(texts) or '(there is no text column)'}"
        )
    if id_column is not None and id_column not in schema.names:
        raise SettingError(
            f"{path} has no column '{id_column}': write data.id_column=... with one of {names}"
        )


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
