"""Values of a record by name, also inside objects: `text.en` is the key `en` of the object `text`."""

import itertools
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from neobert_train.data.sources.source import RecordError

_NAMES_SHOWN = 20
_CHARACTERS_SHOWN = 40
# What a value is called in a message.
_KINDS = {
    bool: "true or false", int: "a number", float: "a number", str: "a text", bytes: "bytes",
    list: "a list", dict: "an object", type(None): "null",
}  # fmt: skip


def split_name(name: str) -> Iterator[tuple[str, str]]:
    """Yield each way to read a dotted name as one of an object and one inside it, long ones first."""
    place = name.rfind(".")
    while place > 0:
        yield name[:place], name[place + 1 :]
        place = name.rfind(".", 0, place)


def find_value(record: Mapping[str, Any], name: str) -> Any:
    """Return what a record holds under a name; a key that itself holds dots wins.

    Raises:
        KeyError: the record has no such key.
    """
    if name in record:
        return record[name]
    for outer, inner in split_name(name):
        if outer in record:
            value = record[outer]
            if value is None:
                return None
            if isinstance(value, Mapping):
                return find_value(value, inner)
    raise KeyError(name)


def find_text(record: Mapping[str, Any], column: str) -> str:
    """Return the text of a record, empty for null; raises RecordError where there is none."""
    try:
        value = find_value(record, column)
    except KeyError:
        names = join_names(list_names(record))
        raise RecordError(
            f"has no key '{column}': write data.column=... with one of {names}", is_setting=True
        ) from None
    if value is None or isinstance(value, str):
        return value or ""
    advice = "another key where it is not the text"
    if isinstance(value, Mapping):
        advice = f"one of {join_names(list_names({column: value}))}"
    raise RecordError(
        f"'{column}' holds {describe_kind(value)}, not text: write data.column=... with {advice}",
        is_setting=True,
    )


def find_id(record: Mapping[str, Any], id_column: str | None) -> str | None:
    """Return the id of a record; None where it has none."""
    if id_column is None:
        return None
    try:
        id_ = find_value(record, id_column)
    except KeyError:
        return None
    return None if id_ is None else str(id_)


def list_names(record: Mapping[str, Any]) -> Iterator[str]:
    """Yield the names of all values of a record."""
    for key, value in record.items():
        if isinstance(value, Mapping) and value:
            yield from (f"{key}.{inner}" for inner in list_names(value))
        else:
            yield key


def describe_kind(value: Any) -> str:
    """Return what a value is, in the words of JSON, such as `a number`."""
    return _KINDS.get(type(value)) or f"a {type(value).__name__}"


def join_names(names: Iterable[str]) -> str:
    """Return names for a message, which stays short whatever they are."""
    shown = [
        name if len(name) <= _CHARACTERS_SHOWN else f"{name[:_CHARACTERS_SHOWN]}..."
        for name in itertools.islice(names, _NAMES_SHOWN + 1)
    ]
    return ", ".join([*shown[:_NAMES_SHOWN], *["..."] * (len(shown) > _NAMES_SHOWN)])
