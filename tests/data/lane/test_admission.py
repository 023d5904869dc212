"""Which documents are trained on: bounds of length, and what is counted as what."""

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from neobert_train.config.data_schema import DataConfig, MixtureSourceConfig
from neobert_train.config.derived import resolve_sources
from neobert_train.data.lane.admission import (
    Admission,
    Kind,
    build_admission,
    compute_heldout_key,
    is_heldout,
)
from neobert_train.data.sources import BadRecord, Record, TokenizedRecord

ALMOST_ALL = 1 - 2**-40
texts = st.text(
    st.characters(exclude_categories=["Cs"]) | st.sampled_from(" \n\u3000"), max_size=12
)
bounds = st.integers(0, 14)


def tokenize(text: str) -> TokenizedRecord:
    """A record as `prepare` keeps it; which ids it has decides nothing here."""
    ids = np.arange(len(text.split()), dtype=np.uint16)
    return TokenizedRecord(ids, len(text), not text.strip(), compute_heldout_key(text), 1)


@given(texts, bounds, st.none() | bounds, st.sampled_from([0.0, 0.3, ALMOST_ALL]))
@example("12345", 5, 5, 0.0)
@example("12345", 6, None, 0.0)
@example("12345", 0, 4, ALMOST_ALL)
def test_bounds_of_characters_are_inclusive_and_come_before_the_held_out(
    text, least, most, fraction
):
    admission = Admission(least, most, heldout_fraction=fraction)
    if not text.strip():
        expected = Kind.empty
    elif len(text) < least or (most is not None and len(text) > most):
        expected = Kind.filtered
    else:
        expected = Kind.heldout if is_heldout(text, fraction) else Kind.document
    assert admission.classify(Record(text, 0, 1)) is expected
    assert admission.classify(tokenize(text)) is expected


@given(st.integers(0, 14), bounds, st.none() | bounds)
@example(3, 3, 3)
def test_bounds_of_tokens_are_inclusive(num_tokens, least, most):
    admission = Admission(min_tokens=least, max_tokens=most)
    if num_tokens == 0:
        expected = Kind.empty
    else:
        admitted = num_tokens in range(least, (15 if most is None else most) + 1)
        expected = Kind.document if admitted else Kind.filtered
    assert admission.classify_tokens(num_tokens) is expected


@pytest.mark.parametrize(
    ("record", "changes", "expected"),
    [
        (BadRecord("bad", 0, 1), {}, Kind.bad),
        (Record(" \n\t\u3000", 0, 1), {}, Kind.empty),
        (Record("", 0, 1), {}, Kind.empty),
        (Record("four", 0, 1), {}, Kind.filtered),
        (Record("four", 0, 1), {"min_characters": 4}, Kind.heldout),
        (Record("four", 0, 1), {"min_characters": 4, "heldout_fraction": 0.0}, Kind.document),
    ],
)
def test_what_is_wrong_first_is_what_a_record_counts_as(record, changes, expected):
    """Everything that could be said of a record applies, but for what is changed."""
    everything = {
        "min_characters": 5, "max_characters": 9, "min_tokens": 99, "max_tokens": 99,
        "heldout_fraction": ALMOST_ALL,
    }  # fmt: skip
    assert Admission(**(everything | changes)).classify(record) is expected


def test_characters_are_counted_and_not_bytes():
    text = "é中😀\u0301"
    assert Admission(4, 4).classify(Record(text, 0, 1)) is Kind.document
    assert Admission(5).classify(Record(text, 0, 1)) is Kind.filtered
    assert Admission(0, 3).classify(Record(text, 0, 1)) is Kind.filtered


def test_without_bounds_everything_with_text_is_trained_on():
    assert Admission().classify(Record("x" * 10**6, 0, 1)) is Kind.document
    assert Admission().classify_tokens(10**6) is Kind.document


def test_every_source_of_a_mixture_has_its_own_bounds_and_one_held_out_share():
    config = DataConfig(
        min_characters=10,
        max_tokens=500,
        heldout_fraction=0.25,
        mixture={
            "plain": MixtureSourceConfig(),
            "long": MixtureSourceConfig(min_characters=0, max_characters=9000, min_tokens=100),
        },
    )
    admissions = [build_admission(config, source) for source in resolve_sources(config).values()]
    assert admissions == [
        Admission(10, None, 0, 500, 0.25),
        Admission(0, 9000, 100, 500, 0.25),
    ]
