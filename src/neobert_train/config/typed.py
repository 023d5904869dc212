"""Values of JSON and YAML files, checked against the Python types that they become."""

import json
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from neobert_train.errors import InputError
from neobert_train.files import DamagedFileError, read_checked_json

# Numbers of records, tokens and steps, so far below 2^63 that sums over all lanes and processes fit the
# 64-bit integers in which they travel; neither 1.0 nor true is one.
Count = Annotated[int, Field(strict=True, ge=0, lt=2**54)]
Finite = Annotated[float, Field(strict=True, allow_inf_nan=False)]

_SHOWN_CHARACTERS = 60
_MESSAGES = {"missing": "is missing", "unexpected_keyword_argument": "is not known"}


def parse(kind: Any, value: Any, name: str = "") -> Any:
    """Build what a type describes from a value of JSON or YAML.

    Args:
        kind: what pydantic has a schema for: a dataclass, an enum, a scalar, or a list, tuple,
            dictionary or union of such. Keys that a dataclass does not know are refused.
        value: as `json.loads` gives it: a tuple is a list there, and keys are texts.
        name: of the value, for the message.

    Raises:
        ValueError: the value is another one; says which part of it, and what it must be.
    """
    try:
        return _adapt(kind).validate_python({name: value})[name]
    except ValidationError as error:
        raise ValueError(_describe(error)) from None


def read_run_json(path: Path, kind: Any, fix: str) -> Any:
    """Read a JSON file of a run directory.

    Args:
        path: of the file, which `write_checked_json` wrote.
        kind: of its value, as `parse` takes it.
        fix: what a user can do about a damaged one.

    Raises:
        InputError: it is damaged.
    """
    try:
        return parse(kind, read_checked_json(path))
    except (DamagedFileError, ValueError) as error:
        raise InputError(f"{path} cannot be read ({error}): {fix}") from error


@lru_cache(maxsize=64)
def _adapt(kind: Any) -> TypeAdapter[dict[str, Any]]:
    """Return the validator of `{name: kind}`: its settings reach every dataclass within."""
    return TypeAdapter(dict[str, kind], config=ConfigDict(extra="forbid"))


def _describe(error: ValidationError) -> str:
    """Return the first problem as `inner.share is 1.5: input should be less than or equal to 1`."""
    problem = error.errors(include_url=False)[0]
    steps = (f"[{key}]" if isinstance(key, int) else f".{_shorten(key)}" for key in problem["loc"])
    place = "".join(steps).lstrip(".") or "it"
    if problem["type"] in _MESSAGES:
        return f"{place} {_MESSAGES[problem['type']]}"
    try:
        given = json.dumps(problem["input"], default=str, ensure_ascii=False)
    except RecursionError:
        given = "nested deeply"
    message = problem["msg"].removeprefix("Value error, ")
    return f"{place} is {_shorten(given)}: {message[:1].lower()}{message[1:]}"


def _shorten(text: str) -> str:
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}..."
