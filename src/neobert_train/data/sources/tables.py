"""Columns of parquet and Arrow files: which hold the text, and what their rows hold."""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from neobert_train.data.sources.fields import join_names, split_name
from neobert_train.data.sources.lines import MOST_DOCUMENT_BYTES, describe_length
from neobert_train.data.sources.source import BadRecord, Format, Record, SettingError, Unit

# What pyarrow raises for damaged or unusual files: not all of it is an ArrowException, such as the
# KeyError for two columns of one name, the UnicodeDecodeError for a name in another encoding, and the
# MemoryError for a length that is damaged.
TABLE_ERRORS = (
    OSError, pa.ArrowException, LookupError, ValueError, TypeError, ArithmeticError, MemoryError,
)  # fmt: skip


def explain(error: BaseException) -> str:
    """Return what an error says, or its kind where it says nothing."""
    return str(error) or type(error).__name__


@dataclass(frozen=True, slots=True)
class Rows(Format):
    """The rows of a file that has columns; a cursor is the number of the next row.

    Attributes:
        column: of the text.
        id_column: of the id, if any.
    """

    column: str
    id_column: str | None = None


@dataclass(frozen=True, slots=True)
class TextColumns:
    """Where text and id of a row lie: names of a column and of fields inside it.

    Attributes:
        text: of the text.
        id: of the id; empty where there is none.
    """

    text: tuple[str, ...]
    id: tuple[str, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """The columns to read, as parquet names them."""
        return tuple(".".join(path) for path in (self.text, self.id) if path)

    def pick(self, batch: pa.RecordBatch) -> list[pa.Array]:
        """Return the texts of a batch of rows, and the ids where there are any."""
        return [_pick(batch, path) for path in (self.text, self.id) if path]


def find_columns(path: str, schema: pa.Schema, column: str, id_column: str | None) -> TextColumns:
    """Return where the configured columns of a file lie.

    Args:
        path: of the file.
        schema: its columns; `column` may be a field of one, as in `text.en`.
        column, id_column: as configured.

    Raises:
        SettingError: one is missing or not the only one of its name, or that of the text has none.
    """
    text = _find_field(path, schema, column, "column")
    if not _is_text(text[-1].type):
        names = _list_names(schema, only_texts=True)
        raise SettingError(
            f"{path}: column '{column}' holds {text[-1].type}, not text: write data.column=... "
            f"with one of {join_names(names) or '(there is no text column)'}"
        )
    id_ = [] if id_column is None else _find_field(path, schema, id_column, "id_column")
    return TextColumns(tuple(field.name for field in text), tuple(field.name for field in id_))


def _find_field(path: str, schema: pa.Schema, name: str, setting: str) -> list[pa.Field]:
    found = list(_match_fields(schema, name))
    if len(found) == 1:
        return found[0]
    count = f"{len(found)} columns" if found else "no column"
    raise SettingError(
        f"{path} has {count} '{name}': write data.{setting}=... with one of "
        f"{join_names(_list_names(schema))}"
    )


def _match_fields(fields: Iterable[pa.Field], name: str) -> Iterator[list[pa.Field]]:
    """Yield the fields of a name, each after those it lies in; one that itself holds dots wins."""
    fields = list(fields)
    own = [[field] for field in fields if field.name == name]
    yield from own
    if own:
        return
    for outer, inner in split_name(name):
        structs = [field for field in fields if field.name == outer and _is_struct(field.type)]
        found = [
            [field, *rest] for field in structs for rest in _match_fields(_inside(field), inner)
        ]
        yield from found
        if found:
            return


def _list_names(fields: Iterable[pa.Field], only_texts: bool = False) -> Iterator[str]:
    for field in fields:
        if _is_struct(field.type):
            yield from (f"{field.name}.{name}" for name in _list_names(_inside(field), only_texts))
        elif not only_texts or _is_text(field.type):
            yield field.name


def _inside(field: pa.Field) -> list[pa.Field]:
    return [field.type.field(place) for place in range(field.type.num_fields)]


def _is_struct(kind: pa.DataType) -> bool:
    return bool(pa.types.is_struct(kind))


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


def to_records(
    columns: Sequence[pa.Array], first: int, rows: range, unit: Unit
) -> Iterator[Record | BadRecord]:
    """Yield rows of a batch.

    Args:
        columns: texts, and ids where there are any.
        first: number in the file of the first row of the batch.
        rows: of the batch.
        unit: that reads them; its cursors count rows of the file.
    """
    texts, *ids = (_read_values(column, rows) for column in columns)
    for row, text, id_ in zip(rows, texts, ids[0] if ids else itertools.repeat(None)):  # noqa: B905
        number = first + row
        if isinstance(text, UnicodeDecodeError):
            reason = f"{unit.describe(number + 1)}: not UTF-8 ({text.reason})"
            yield BadRecord(reason, number, number + 1)
        elif text and len(text) > MOST_DOCUMENT_BYTES:
            reason = f"{unit.describe(number + 1)}: {describe_length(len(text))}"
            yield BadRecord(reason, number, number + 1)
        else:
            yield Record(text or "", number, number + 1, None if id_ is None else str(id_))


def _pick(batch: pa.RecordBatch, path: Sequence[str]) -> pa.Array:
    column = batch.column(batch.schema.names.index(path[0]))
    return pc.struct_field(column, list(path[1:])) if path[1:] else column


def _read_values(column: pa.Array, rows: range) -> list[Any]:
    """Return the values of some rows; in place of what is not UTF-8, the error."""
    if rows.step == 1:
        try:
            values: list[Any] = column.slice(rows.start, len(rows)).to_pylist()
            return values
        except UnicodeDecodeError:
            pass  # one by one, to see which
    return [_read_value(column[row]) for row in rows]


def _read_value(value: pa.Scalar) -> Any:
    try:
        return value.as_py()
    except UnicodeDecodeError as error:
        return error
