"""The probes made from the shipped addresses: their facts, their division and their scores."""

import itertools
import re

import numpy as np
import pyarrow.parquet as pq
import pytest

from neobert_train.config.tasks import PROBES as PROBE_NAMES
from neobert_train.data.sources import EMBEDDED_TEXTS
from neobert_train.errors import InputError
from neobert_train.evaluation.state_of_the_union import (
    LEAST_CHARACTERS,
    PARAGRAPHS_OF_ADDRESS,
    PRESIDENTS,
    PROBES,
    find_decades,
    list_paragraphs,
    read_addresses,
    score_bag_of_words,
    score_probe,
    split_paragraphs,
)
from neobert_train.metrics_table import METRICS


@pytest.fixture(scope="module")
def rows():
    return pq.read_table(EMBEDDED_TEXTS).to_pylist()


def test_every_speaker_is_in_the_table_with_his_party_and_his_years(rows):
    """The titles end in the letter of the party."""
    for row, address in zip(rows, read_addresses(), strict=True):
        president = PRESIDENTS[address.president]
        assert row["title"] == f"{row['year']}_{address.president}_{president.party.name[0]}"
        assert president.first_year <= address.year <= president.last_year
    assert {address.president for address in read_addresses()} == PRESIDENTS.keys()


def test_no_office_was_held_twice_at_once():
    terms = list(PRESIDENTS.values())
    assert all(a.last_year == b.first_year for a, b in itertools.pairwise(terms))


def test_paragraphs_are_whole_sentences_in_their_order(rows):
    for row, address in zip(rows, read_addresses(), strict=True):
        assert PARAGRAPHS_OF_ADDRESS - 1 <= len(address.paragraphs) <= PARAGRAPHS_OF_ADDRESS
        assert " ".join(address.paragraphs) in re.sub(" +", " ", row["content"])
        assert min(map(len, address.paragraphs)) >= LEAST_CHARACTERS
    ends = {text[-1] for text in list_paragraphs().texts}
    assert ends <= set(".!?")
    long = "This one has many words. " * 40
    assert len(split_paragraphs(f"{long}And a short one.")) == 2


def test_no_address_is_on_both_sides_and_all_classes_are_on_each():
    paragraphs = list_paragraphs()
    test, training = paragraphs.is_test, ~paragraphs.is_test
    assert not set(paragraphs.address[test]) & set(paragraphs.address[training])
    assert not set(np.array(paragraphs.texts)[test]) & set(np.array(paragraphs.texts)[training])
    for side in (test, training):
        assert set(paragraphs.party[side]) == {0, 1}
        assert set(find_decades(paragraphs.year)[side]) >= set(range(195, 202))
    assert 0.3 < test.mean() < 0.4


def test_decades_begin_with_the_year_one():
    assert find_decades(np.array([1950, 1951, 1960, 1961, 2020, 2021])).tolist() == [
        194, 195, 195, 196, 201, 202,
    ]  # fmt: skip


def test_features_that_hold_the_answer_score_one_and_noise_scores_chance():
    paragraphs = list_paragraphs()
    generator = np.random.default_rng(0)
    noise = generator.normal(size=(len(paragraphs.texts), 8))
    answers = {
        "party": noise + 20 * np.eye(8)[paragraphs.party],
        "decade": noise + 20 * np.eye(8)[np.clip(find_decades(paragraphs.year) - 195, 0, 7)],
    }
    for name, features in answers.items():
        assert score_probe(name, features) == 1.0
        assert score_probe(name, noise) == pytest.approx(PROBES[name].find_chance(), abs=0.07)
    chances = [score_probe("next_paragraph", noise[generator.permutation(len(noise))])]
    chances += [score_probe("next_paragraph", generator.normal(size=noise.shape)) for _ in range(9)]
    expected = PROBES["next_paragraph"].find_chance()
    assert np.mean(chances) == pytest.approx(expected, abs=0.005)


def test_the_next_paragraph_is_ranked_as_one_would_by_hand():
    paragraphs = list_paragraphs()
    generator = np.random.default_rng(1)
    features = generator.normal(size=(len(paragraphs.texts), 5)) + 3.0
    features[1:] += features[:-1]
    training = features[~paragraphs.is_test]
    standard = (features - training.mean(axis=0)) / training.std(axis=0)
    reciprocal = []
    for query in np.flatnonzero(paragraphs.is_test):
        if list(paragraphs.address[query : query + 2]) != [paragraphs.address[query]] * 2:
            continue
        cosines = {
            other: standard[query] @ standard[other] / np.linalg.norm(standard[other])
            for other in np.flatnonzero(paragraphs.is_test) if other != query
        }  # fmt: skip
        order = sorted(cosines, key=lambda other: -cosines[other])
        reciprocal.append(1 / (1 + order.index(query + 1)))
    num_addresses = len(set(paragraphs.address[paragraphs.is_test]))
    assert len(reciprocal) == paragraphs.is_test.sum() - num_addresses
    assert score_probe("next_paragraph", features) == pytest.approx(np.mean(reciprocal))
    # What tells no text from another gets the last rank everywhere.
    least = score_probe("next_paragraph", np.ones_like(features))
    assert least == pytest.approx(1 / (paragraphs.is_test.sum() - 1))


@pytest.mark.parametrize("name", PROBES)
def test_features_that_are_not_finite_are_refused(name):
    features = np.zeros((len(list_paragraphs().texts), 3))
    features[100, 1] = np.nan
    with pytest.raises(InputError, match="not a finite number"):
        score_probe(name, features)


def test_the_configuration_knows_all_probes():
    assert tuple(PROBES) == PROBE_NAMES


@pytest.mark.parametrize("name", PROBES)
def test_a_value_is_shown_with_those_of_a_bag_of_words_and_of_chance(name):
    references = dict(METRICS[f"probe/{name}"].references)
    assert references["chance"] == pytest.approx(PROBES[name].find_chance(), abs=5e-4)
    # Other versions of scikit-learn may end a fit elsewhere, and turn some of 499 paragraphs.
    assert references["bag of words"] == pytest.approx(score_bag_of_words(name), abs=0.01)
