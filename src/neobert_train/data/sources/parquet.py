"""Parquet files, one unit per range of rows."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from neobert_train.data.sources.source import (
    END_OF_UNIT,
    BadRecord,
    Division,
    Record,
    SettingError,
)
from neobert_train.data.storage import StorageError, StoredFile
from neobert_train.errors import InputError

_ROWS_PER_READ = 256
_READ_BYTES = 8 << 20
# A row group cannot be entered in its middle. One that several units divide is kept decoded, so
# that its beginning is not decoded again for each of them, unless it is larger than this.
_MOST_KEPT_BYTES = 256 << 20
_KEPT_GROUPS = 2
UNITS_PER_LANE = 4


@dataclass(frozen=True, slots=True)
class ParquetUnit:
    """The rows of one part of a file; a cursor is the number of the next row of the file.

    Parts are whole row groups where there are enough of them. Where they lie is looked up when the
    unit is read, so that a source of thousands of remote files is listed without opening them.
    """

    file: StoredFile
    column: str
    id_column: str | None = None
    part: int = 0
    parts: int = 1

    def iter_records(self, cursor: int) -> Iterator[Record | BadRecord]:
        """The rows from `cursor` on; a row group that cannot be read is one bad record.

        Raises:
            StorageError: the network gave out.
        """
        try:
            with self.file.open() as stream, _open_parquet(stream) as parquet:
                check_columns(self.file.path, parquet.schema_arrow, self.column, self.id_column)
                ends = _find_group_ends(parquet)
                start, stop = Division(ends).find_range(self.part, self.parts)
                for group, (begin, end) in enumerate(itertools.pairwise((0, *ends))):
                    wanted = range(max(start, cursor, begin), min(stop, end))
                    if wanted:
                        # Whatever the cursor: the two ways of reading lose different rows to damage.
                        divided = start > begin or stop < end
                        yield from self._iter_row_group(parquet, group, begin, wanted, divided)
        except SettingError as error:
            yield BadRecord(str(error), 0, END_OF_UNIT, is_setting=True)
        except StorageError:
            raise
        except (OSError, pa.ArrowException) as error:
            yield BadRecord(f"{self.file.path}: cannot be read ({error})", 0, END_OF_UNIT)

    @property
    def path(self) -> str:
        """Path or URL of the file."""
        return self.file.path

    def find_size(self) -> int:
        """Bytes of the file."""
        return self.file.get_size()

    @property
    def units_per_lane(self) -> int:
        """Several, which even out what lanes read in an epoch, and are read side by side."""
        return UNITS_PER_LANE

    def take_part(self, part: int, parts: int) -> "ParquetUnit":
        """Another part of the same file."""
        return replace(self, part=part, parts=parts)

    @property
    def takes_turns(self) -> bool:
        """A part is a stretch of the file."""
        return False

    def find_division(self) -> Division:
        """By rows, in row groups where there are enough of them."""
        with self.file.open() as stream, pq.ParquetFile(stream) as parquet:
            return Division(_find_group_ends(parquet))

    def _iter_row_group(
        self, parquet: pq.ParquetFile, group: int, begin: int, wanted: range, divided: bool
    ) -> Iterator[Record | BadRecord]:
        row = wanted.start - 1
        try:
            for row, text, id_ in self._iter_rows(parquet, group, begin, wanted, divided):
                if row >= wanted.stop:
                    return
                yield self._to_record(text, id_, row)
            if row + 1 < wanted.stop:
                raise pa.ArrowInvalid(f"it ends after {row + 1 - begin} rows")
        except StorageError:
            raise
        except (OSError, pa.ArrowException) as error:
            place = f"{self.file.path}, row group {group}"
            yield BadRecord(f"{place}: cannot be read ({error})", row + 1, wanted.stop)

    def describe(self, next_cursor: int) -> str:
        """Such as `texts.parquet, row 7`; rows count from 1."""
        return f"{self.file.path}, row {next_cursor}"

    def _iter_rows(
        self, parquet: pq.ParquetFile, group: int, begin: int, wanted: range, divided: bool
    ) -> Iterator[tuple[int, Any, str | None]]:
        """Row numbers of the file with their values: the wanted ones, and perhaps some after."""
        columns = [self.column, *([self.id_column] if self.id_column else [])]
        size = parquet.metadata.row_group(group).total_byte_size
        row = begin
        if divided and size <= _MOST_KEPT_BYTES:
            batches = _copy_rows(
                _read_row_group(self.file, group, tuple(columns)), wanted.start - begin, len(wanted)
            )
            row = wanted.start
        else:
            batches = parquet.iter_batches(
                batch_size=_ROWS_PER_READ, row_groups=[group], columns=columns, use_threads=False
            )
        for batch in batches:
            if row + len(batch) > wanted.start:
                past = max(0, wanted.start - row)
                texts = _to_python(batch.column(self.column), past)
                ids = _to_python(batch.column(self.id_column), past) if self.id_column else ()
                for number, (text, id_) in enumerate(itertools.zip_longest(texts, ids), row + past):
                    yield number, text, None if id_ is None else str(id_)
            row += len(batch)

    def _to_record(self, text: Any, id_: str | None, row: int) -> Record | BadRecord:
        if isinstance(text, UnicodeDecodeError):
            reason = f"{self.describe(row + 1)}: not UTF-8 ({text.reason})"
            return BadRecord(reason, row, row + 1)
        return Record(text or "", row, row + 1, id_)


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


def check_parquet_file(file: StoredFile, column: str, id_column: str | None) -> None:
    """Read the footer of a file, so that what is wrong with all of it shows before training.

    Raises:
        SettingError: a column does not exist or holds no text.
        StorageError: the network gave out, which says nothing about the file.
        InputError: the file cannot be read or is empty.
    """
    try:
        with file.open() as stream, pq.ParquetFile(stream) as parquet:
            schema, num_rows = parquet.schema_arrow, parquet.metadata.num_rows
    except StorageError:
        raise
    except (OSError, pa.ArrowException) as error:
        raise InputError(f"{file.path} cannot be read as parquet: {error}") from error
    check_columns(file.path, schema, column, id_column)
    if num_rows == 0:
        raise InputError(f"{file.path} has no rows")


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
