"""Values of files become typed ones, or are refused with the place and what it must be."""

from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import pytest

from neobert_train.config.typed import Count, Finite, parse


class Colour(Enum):
    red = "red"
    blue = "blue"


@dataclass
class Inner:
    number: Count
    share: Finite = 0.5


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


def test_a_field_with_a_default_may_be_missing():
    with pytest.raises(ValueError, match=r"^inner.number is missing$"):
        parse(Outer, {"inner": {}, "names": []})
    assert parse(Outer, {"inner": {"number": 0}, "names": []}) == Outer(Inner(0), [])


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("inner", [], r"^inner is \[\]: input should be a dictionary or an instance of Inner"),
        (
            "inner",
            {"number": -5},
            "^inner.number is -5: input should be greater than or equal to 0",
        ),
        ("inner", {"number": 10**400}, r"^inner.number is 1000.*\.\.\.: input should be less than"),
        ("inner", {"number": True}, "^inner.number is true: input should be a valid integer"),
        ("inner", {"number": 1.0}, "^inner.number is 1.0: input should be a valid integer"),
        ("inner", {"number": 1, "share": "1"}, '^inner.share is "1": input should be a valid num'),
        (
            "inner",
            {"number": 1, "share": 10**400},
            "^inner.share is 1000.*: input should be a valid number",
        ),
        ("inner", {"number": 1, "x": 1}, "^inner.x is not known$"),
        ("names", "a", '^names is "a": input should be a valid list'),
        ("names", ["a", None], r"^names\[1\] is null: input should be a valid string"),
        ("by_step", {"5": float("nan")}, "^by_step.5 is NaN: input should be a finite number"),
        ("by_step", {"x": 1.0}, 'is "x": input should be a valid integer'),
        ("pair", ["x"], r"^pair\[1\] is missing$"),
        ("pair", ["x", -1], r"^pair\[1\] is -1: input should be greater than or equal to 0"),
        ("colour", "green", "^colour is \"green\": input should be 'red' or 'blue'"),
        ("colour", ["red"], "^colour is .*: input should be 'red' or 'blue'"),
    ],
)
def test_anything_else_is_refused_with_its_place(key, value, words):
    with pytest.raises(ValueError, match=words):
        parse(Outer, SOUND | {key: value})


@pytest.mark.parametrize("wrong", [-1, True, 1.5, 2**54, None])
def test_lists_of_counts_are_checked_to_the_last(wrong):
    numbers = list(range(1000))
    assert parse(list[Count], numbers) == numbers
    with pytest.raises(ValueError, match=r"^ids\[1000\] is "):
        parse(list[Count], [*numbers, wrong], "ids")
