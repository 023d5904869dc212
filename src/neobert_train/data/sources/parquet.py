"""Parquet files, divided by rows."""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeVar

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
from neobert_train.data.sources.tables import (
    TABLE_ERRORS,
    Rows,
    TextColumns,
    explain,
    find_columns,
    to_records,
)
from neobert_train.errors import InputError
from neobert_train.storage.failures import is_of_system
from neobert_train.storage.stored_files import StoredFile

T = TypeVar("T")

_ROWS_PER_READ = 256
_READ_BYTES = 8 << 20
# A row group cannot be entered in its middle. One that several units divide is kept decoded, so
# that its beginning is not decoded again for each of them, unless it is larger than this.
_MOST_KEPT_BYTES = 256 << 20
_KEPT_GROUPS = 2


@dataclass(frozen=True, slots=True)
class ParquetRows(Rows):
    """The rows of a file, divided into stretches.

    Parts are whole row groups where there are enough of them. Where they lie is looked up when a
    unit is read, so that a source of thousands of remote files is listed without opening them.
    """

    units_per_lane = STRETCHES_PER_LANE

    def iter_records(self, unit: Unit, cursor: int) -> Iterator[Record | BadRecord]:
        """Yield the rows from `cursor` on; a row group that cannot be read is one bad record."""
        try:
            with unit.file.open() as stream, _open_parquet(stream) as parquet:
                schema = parquet.schema_arrow
                columns = find_columns(unit.name, schema, self.column, self.id_column)
                ends = _find_group_ends(parquet)
                start, stop = Division(ends).find_range(unit.part, unit.parts)
                for number, (begin, end) in enumerate(itertools.pairwise((0, *ends))):
                    wanted = range(max(start, cursor, begin), min(stop, end))
                    if wanted:
                        # Whatever the cursor: the two ways of reading lose different rows to damage.
                        divided = start > begin or stop < end
                        group = _RowGroup(unit, parquet, columns, number, begin, divided)
                        yield from group.iter_records(wanted)
        except SettingError as error:
            yield BadRecord(str(error), 0, END_OF_UNIT, is_setting=True)
        except TABLE_ERRORS as error:
            if is_of_system(error):
                raise
            yield BadRecord(f"{unit.name}: cannot be read ({explain(error)})", 0, END_OF_UNIT)

    def find_division(self, file: StoredFile) -> Division:
        """Return the division by rows, in row groups where there are enough of them."""
        return Division(_read_footer(file, _find_group_ends))

    def check(self, file: StoredFile, tolerance: int) -> None:
        """Read the footer of a file."""
        schema, num_rows = _read_footer(file, lambda p: (p.schema_arrow, p.metadata.num_rows))
        find_columns(file.name, schema, self.column, self.id_column)
        if num_rows == 0:
            raise InputError(f"{file.name} has no rows")


@dataclass(frozen=True, slots=True)
class _RowGroup:
    """A row group of an open file.

    Attributes:
        unit, parquet: the unit that is read, and its file opened.
        columns: where text and id lie.
        number: of the row group.
        begin: number of its first row in the file.
        divided: whether several units divide it.
    """

    unit: Unit
    parquet: pq.ParquetFile
    columns: TextColumns
    number: int
    begin: int
    divided: bool

    def iter_records(self, wanted: range) -> Iterator[Record | BadRecord]:
        """Yield the wanted rows; damage is one bad record in the place of all that come after it."""
        row = self.begin
        try:
            row, batches = self._read(wanted)
            for batch in batches:
                rows = range(max(0, wanted.start - row), min(len(batch), wanted.stop - row))
                if rows:
                    yield from to_records(self.columns.pick(batch), row, rows, self.unit)
                row += len(batch)
                if row >= wanted.stop:
                    return
            raise pa.ArrowInvalid(f"it ends after {row - self.begin} rows")
        except TABLE_ERRORS as error:
            if is_of_system(error):
                raise
            reason = f"{self.unit.name}, row group {self.number}: cannot be read ({explain(error)})"
            yield BadRecord(reason, max(row, wanted.start), wanted.stop)

    def _read(self, wanted: range) -> tuple[int, Iterator[pa.RecordBatch]]:
        """Return the wanted rows in batches, perhaps with some before and after; and which is the first."""
        size = self.parquet.metadata.row_group(self.number).total_byte_size
        names = self.columns.names
        if self.divided and size <= _MOST_KEPT_BYTES:
            table = _read_row_group(self.unit.file, self.number, names)
            return wanted.start, _copy_rows(table, wanted.start - self.begin, len(wanted))
        batches = self.parquet.iter_batches(
            batch_size=_ROWS_PER_READ,
            row_groups=[self.number],
            columns=list(names),
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
    """Yield rows in memory of their own: slices would keep the whole row group for every open unit."""
    stream = pa.BufferOutputStream()
    with pa.ipc.new_stream(stream, table.schema) as writer:
        writer.write_table(table.slice(start, count), max_chunksize=_ROWS_PER_READ)
    return iter(pa.ipc.open_stream(stream.getvalue()))


def _find_group_ends(parquet: pq.ParquetFile) -> tuple[int, ...]:
    """Return the row after each row group."""
    metadata = parquet.metadata
    sizes = (metadata.row_group(group).num_rows for group in range(metadata.num_row_groups))
    return tuple(itertools.accumulate(sizes))


def _read_footer(file: StoredFile, read: Callable[[pq.ParquetFile], T]) -> T:
    """Return what `read` finds in the footer of a file.

    Raises:
        Exception: `is_of_system` of it.
        InputError: it cannot be read as parquet.
    """
    try:
        with file.open() as stream, pq.ParquetFile(stream) as parquet:
            return read(parquet)
    except TABLE_ERRORS as error:
        if is_of_system(error):
            raise
        raise InputError(f"{file.name} cannot be read as parquet: {explain(error)}") from error
