"""Values of files become typed ones, or are refused with the place and what it must be."""

from dataclasses import dataclass, field
from enum import Enum
from typing import Annotated, Any

import pytest

from neobert_train.config.setting import Range
from neobert_train.config.typed import Count, Finite, parse


class Colour(Enum):
    red = "red"
    blue = "blue"


@dataclass
class Inner:
    number: Count
    share: float = 0.5


@dataclass
class Outer:
    inner: Inner
    names: list[str]
    by_step: dict[int, Finite] = field(default_factory=dict)
    pair: tuple[str, Count | None] = ("", None)
    colour: Colour | None = None
    anything: Any = None


SOUND = {
    "inner": {"number": 3, "share": 1},
    "names": ["a"],
    "by_step": {"5": 0.25},
    "pair": ["x", None],
    "colour": "blue",
    "anything": [{}],
}


def test_a_sound_value_becomes_what_the_types_say():
    expected = Outer(Inner(3, 1.0), ["a"], {5: 0.25}, ("x", None), Colour.blue, [{}])
    parsed = parse(Outer, SOUND)
    assert parsed == expected
    assert type(parsed.inner.share) is float


def test_fields_with_defaults_may_be_missing_when_asked_for():
    with pytest.raises(ValueError, match=r"^by_step is missing"):
        parse(Outer, {"inner": SOUND["inner"], "names": []})
    parsed = parse(Outer, {"inner": {"number": 0}, "names": []}, complete=False)
    assert parsed == Outer(Inner(0), [])


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("inner", [], "inner is a list, and must be an object"),
        ("inner", {"number": -5, "share": 0}, "inner.number is -5, and must be at least 0"),
        ("inner", {"number": 10**400, "share": 0}, r"inner.number is 1000.*\.\.\., and must be"),
        ("inner", {"number": True, "share": 0}, "inner.number is True, and must be a whole number"),
        ("inner", {"number": 1.0, "share": 0}, "inner.number is 1.0, and must be a whole number"),
        ("inner", {"number": 1, "share": "1"}, "inner.share is 1, and must be a number"),
        ("inner", {"number": 1, "share": 10**400}, "inner.share is 1.*, and must be a number"),
        ("inner", {"number": 1, "share": 1, "x": 1}, "inner.x is not known"),
        ("names", "a", "names is a, and must be a list"),
        ("names", ["a", None], r"names\[1\] is null, and must be a text"),
        ("by_step", {"5": float("nan")}, "by_step.5 is nan, and must be finite"),
        ("by_step", {"05": 1.0}, "a key of by_step is 05, and must be a whole number"),
        ("pair", ["x"], "pair is a list, and must be a list of 2"),
        ("pair", ["x", -1], r"pair\[1\] is -1, and must be at least 0"),
        ("colour", "green", "colour is green, and must be one of red, blue"),
        ("colour", ["red"], "colour is a list, and must be one of red, blue"),
    ],
)
def test_anything_else_is_refused_with_its_place(key, value, words):
    with pytest.raises(ValueError, match=words):
        parse(Outer, SOUND | {key: value})


def test_lists_of_counts_are_checked_to_the_last():
    numbers = list(range(1000))
    assert parse(list[Count], numbers) == numbers
    for wrong in (-1, True, 1.5, 2**63, None):
        with pytest.raises(ValueError, match=r"^it\[1000\]|^\[1000\]"):
            parse(list[Count], [*numbers, wrong])


def test_bounds_are_those_of_the_annotation():
    share = Annotated[float, Range(at_least=0.0, at_most=1.0)]
    assert parse(share, 1) == 1.0
    with pytest.raises(ValueError, match=r"^it is 1.5, and must be at least 0 and at most 1"):
        parse(share, 1.5)
