"""Values of JSON and YAML files, checked against the Python types that they become."""

import dataclasses
import re
import sys
import types
from enum import Enum
from functools import lru_cache
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

from neobert_train.config.setting import Range

# What fits the 64-bit integers in which numbers of records, tokens and steps travel.
Count = Annotated[int, Range(at_least=0, at_most=2**63 - 1)]
Finite = Annotated[float, Range()]

_SHOWN_CHARACTERS = 60
_SCALARS = {
    int: "a whole number",
    float: "a number",
    str: "a text",
    bool: "true or false",
    types.NoneType: "null",
}


def parse(kind: Any, value: Any, name: str = "", complete: bool = True) -> Any:
    """Build what a type describes from a value of JSON or YAML.

    Args:
        kind: a dataclass, an enum (by the names of its members), `int`, `float`, `str`, `bool`, `Any`,
            or a list, tuple, dictionary, union or `Annotated[number, Range(...)]` of such. A class
            with a class method `from_json(value, name)` builds itself.
        value: as `json.loads` gives it; a tuple is a list there, and keys are strings.
        name: of the value, for the message.
        complete: whether every field of a dataclass has to be there, also one with a default.

    Raises:
        ValueError: the value is another one; says which part of it, and what it must be.
    """
    origin, arguments = get_origin(kind), get_args(kind)
    if kind is Any:
        return value
    if origin is Annotated:
        number = parse(arguments[0], value, name, complete)
        return number if _admits(arguments[1], number) else _refuse(value, name, arguments[1])
    if origin in (Union, types.UnionType):
        return _parse_union(arguments, value, name, complete)
    if origin is dict:
        return _parse_dict(arguments, value, name, complete)
    if origin in (list, tuple):
        return _parse_sequence(origin, arguments, value, name, complete)
    if kind in _SCALARS:
        return _parse_scalar(kind, value, name)
    if hasattr(kind, "from_json"):
        return kind.from_json(value, name)
    if issubclass(kind, Enum):
        names = list(kind.__members__)
        return kind[value] if value in names else _refuse(value, name, f"one of {', '.join(names)}")
    return _parse_dataclass(kind, value, name, complete)


def _parse_scalar(kind: Any, value: Any, name: str) -> Any:
    if type(value) is kind:
        return value
    if kind is float and type(value) is int and abs(value) <= sys.float_info.max:
        return float(value)
    return _refuse(value, name, _SCALARS[kind])


def _parse_union(kinds: tuple[Any, ...], value: Any, name: str, complete: bool) -> Any:
    *others, last = sorted(kinds, key=lambda kind: kind is not types.NoneType)
    for kind in others:
        try:
            return parse(kind, value, name, complete)
        except ValueError:
            continue
    return parse(last, value, name, complete)


def _parse_dict(kinds: tuple[Any, ...], value: Any, name: str, complete: bool) -> dict[Any, Any]:
    key_kind, value_kind = kinds
    parsed = {}
    for key, entry in _expect_object(value, name).items():
        if key_kind is int and isinstance(key, str) and re.fullmatch("0|[1-9][0-9]{0,17}", key):
            key = int(key)
        parsed_key = parse(key_kind, key, f"a key of {name or 'it'}")
        parsed[parsed_key] = parse(value_kind, entry, _join(name, key), complete)
    return parsed


def _parse_sequence(
    origin: Any, kinds: tuple[Any, ...], value: Any, name: str, complete: bool
) -> Any:
    if not isinstance(value, list):
        return _refuse(value, name, "a list")
    if origin is list or kinds[-1] is Ellipsis:
        if kinds[0] is Count and _are_counts(value):
            return origin(value)  # thousands of token ids at once
        kinds = kinds[:1] * len(value)
    if len(kinds) != len(value):
        return _refuse(value, name, f"a list of {len(kinds)}")
    return origin(
        parse(kind, entry, f"{name}[{number}]", complete)
        for number, (kind, entry) in enumerate(zip(kinds, value, strict=True))
    )


def _are_counts(values: list[Any]) -> bool:
    bounds = get_args(Count)[1]
    return set(map(type, values)) == {int} and all(
        _admits(bounds, extreme) for extreme in (min(values), max(values))
    )


def _parse_dataclass(kind: Any, value: Any, name: str, complete: bool) -> Any:
    kinds = _list_fields(kind)
    for key in _expect_object(value, name):
        if key not in kinds:
            raise ValueError(f"{_join(name, key)} is not known")
    for key in kinds:
        if complete and key not in value:
            raise ValueError(f"{_join(name, key)} is missing")
    return kind(
        **{
            key: parse(kinds[key], entry, _join(name, key), complete)
            for key, entry in value.items()
        }
    )


@lru_cache(maxsize=256)
def _list_fields(kind: Any) -> dict[str, Any]:
    """Return the type of every field of a dataclass by name."""
    kinds = get_type_hints(kind, include_extras=True)
    return {field.name: kinds[field.name] for field in dataclasses.fields(kind)}


def _expect_object(value: Any, name: str) -> dict[Any, Any]:
    return value if isinstance(value, dict) else _refuse(value, name, "an object with named values")


def _admits(bounds: Range, number: Any) -> bool:
    try:
        return bounds.admits(number)
    except OverflowError:
        return False


def _join(name: str, key: Any) -> str:
    return f"{name}.{_show(key)}" if name else _show(key)


def _refuse(value: Any, name: str, wanted: Any) -> Any:
    raise ValueError(f"{name or 'it'} is {_show(value)}, and must be {str(wanted) or 'finite'}")


def _show(value: Any) -> str:
    if isinstance(value, dict | list):
        return "a list" if isinstance(value, list) else "an object"
    text = str(value) if value is not None else "null"
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}..."
