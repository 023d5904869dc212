"""Arrow IPC files and streams, such as Feather files and what `datasets` saves."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

import pyarrow as pa

from neobert_train.data.sources.source import (
    END_OF_UNIT,
    BadRecord,
    Record,
    SettingError,
    Unit,
)
from neobert_train.data.sources.tables import TABLE_ERRORS, Rows, explain, find_columns, to_records
from neobert_train.errors import InputError
from neobert_train.storage.failures import is_of_system
from neobert_train.storage.stored_files import StoredFile

_FILE_MAGIC = b"ARROW1"
_FEATHER_1_MAGIC = b"FEA1"
_BYTES_OF = {
    pa.string(): pa.binary(),
    pa.large_string(): pa.large_binary(),
    pa.string_view(): pa.binary_view(),
}


@dataclass(frozen=True, slots=True)
class ArrowRows(Rows):
    """The rows of a file, which parts take in turns.

    How many rows a batch has is not known before it is read, so that a row in the middle is found
    only from the beginning.
    """

    def iter_records(self, unit: Unit, cursor: int) -> Iterator[Record | BadRecord]:
        """Yield the rows from `cursor` on; damage is one bad record that ends the unit."""
        row = 0
        try:
            with unit.file.open() as stream:
                schema = _open(stream).schema
                columns = find_columns(unit.name, schema, self.column, self.id_column)
                places = {
                    schema.names.index(path[0]) for path in (columns.text, columns.id) if path
                }
                for batch in _iter_batches(stream, sorted(places)):
                    first = max(row, cursor)
                    first += (unit.part - first) % unit.parts
                    rows = range(first - row, len(batch), unit.parts)
                    if rows:
                        batch.validate()
                        picked = columns.pick(batch)
                        for column in picked:
                            _validate(column)
                        yield from to_records(picked, row, rows, unit)
                    row += len(batch)
        except SettingError as error:
            yield BadRecord(str(error), 0, END_OF_UNIT, is_setting=True)
        except TABLE_ERRORS as error:
            if is_of_system(error):
                raise
            yield BadRecord(
                f"{unit.name}, after row {row}: cannot be read ({explain(error)})", row, END_OF_UNIT
            )

    def check(self, file: StoredFile, tolerance: int) -> None:
        """Read the first batch that is not empty."""
        record = next(self.iter_records(Unit(file, self), 0), None)
        if record is None:
            raise InputError(f"{file.name} has no rows")
        if isinstance(record, BadRecord) and record.next_cursor == END_OF_UNIT:
            raise (SettingError if record.is_setting else InputError)(record.reason)


def _open(stream: BinaryIO, places: list[int] | None = None) -> pa.RecordBatchReader:
    """Return a reader of a file or stream from its beginning, of some of its columns."""
    stream.seek(0)
    magic = stream.read(len(_FILE_MAGIC))
    stream.seek(0)
    if magic.startswith(_FEATHER_1_MAGIC):
        raise pa.ArrowInvalid("it is of Feather version 1: write it again in version 2")
    options = pa.ipc.IpcReadOptions(included_fields=places or [], use_threads=False)
    is_file = magic == _FILE_MAGIC
    return (pa.ipc.open_file if is_file else pa.ipc.open_stream)(stream, options=options)


def _iter_batches(stream: BinaryIO, places: list[int]) -> Iterator[pa.RecordBatch]:
    reader = _open(stream, places)
    if isinstance(reader, pa.RecordBatchFileReader):
        return (reader.get_batch(number) for number in range(reader.num_record_batches))
    return iter(reader)


def _validate(column: pa.Array) -> None:
    """Raise ArrowInvalid for values that lie outside of their buffers, which would crash us."""
    try:
        column.validate(full=True)
    except pa.ArrowInvalid:
        # Perhaps only for one that is not UTF-8, which is a bad record by itself.
        as_bytes = _BYTES_OF.get(column.type)
        if as_bytes is None:
            raise
        column.view(as_bytes).validate(full=True)
