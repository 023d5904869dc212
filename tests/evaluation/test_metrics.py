"""Metrics and scores, against formulas written out by hand."""

import math
import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from neobert_train.errors import InputError
from neobert_train.evaluation.metrics import METRICS, Scoring, compute_score

LABELS = np.array([1, 1, 1, 0, 0, 1, 0, 1])
ANSWERS = np.array([1, 0, 1, 0, 1, 1, 0, 1])  # 4 true and 1 false positives, 1 false negative


def correlate(first, second):
    """Pearson's correlation by its definition."""
    first, second = first - math.fsum(first) / len(first), second - math.fsum(second) / len(second)
    return math.fsum(first * second) / math.sqrt(math.fsum(first**2) * math.fsum(second**2))


def rank(values):
    """Ranks by counting, ties at their mean."""
    return np.array([np.sum(values < v) + (np.sum(values == v) + 1) / 2 for v in values])


def test_metrics_of_two_classes_are_those_of_the_confusion_table():
    assert METRICS["accuracy"](ANSWERS, LABELS) == pytest.approx(6 / 8)
    assert METRICS["f1"](ANSWERS, LABELS) == pytest.approx(8 / 10)
    assert METRICS["macro_f1"](ANSWERS, LABELS) == pytest.approx((8 / 10 + 4 / 6) / 2)
    assert METRICS["matthews"](ANSWERS, LABELS) == pytest.approx(
        (4 * 2 - 1 * 1) / math.sqrt(5 * 5 * 3 * 3)
    )


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=2, max_size=40))
def test_correlations_are_those_of_their_definitions(pairs):
    first, second = np.array(pairs, np.float64).T
    defined = np.ptp(first) > 0 and np.ptp(second) > 0
    pearson = correlate(first, second) if defined else 0.0
    spearman = correlate(rank(first), rank(second)) if defined else 0.0
    assert METRICS["pearson"](first, second) == pytest.approx(pearson, abs=1e-12)
    assert METRICS["spearman"](first, second) == pytest.approx(spearman, abs=1e-12)


@pytest.mark.parametrize("metric", sorted(METRICS))
@pytest.mark.parametrize("constant", [0, 1, 2])
def test_one_answer_for_all_examples_has_a_defined_score(metric, constant):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        score = METRICS[metric](np.full(8, constant), LABELS)
    expected = {
        "accuracy": np.mean(constant == LABELS),
        "f1": 10 / 13 if constant == 1 else 0.0,
        "macro_f1": {0: (6 / 11) / 2, 1: (10 / 13) / 2, 2: 0.0}[constant],
        "mean": constant,
    }
    assert score == pytest.approx(expected.get(metric, 0.0))


def test_nearly_constant_scores_are_constant():
    scores = 0.1 + 1e-17 * np.arange(8)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert METRICS["pearson"](scores, np.arange(8.0)) == 0.0
        assert METRICS["spearman"](scores, np.arange(8.0)) == 0.0


def test_a_score_is_the_mean_over_parts_of_the_mean_over_metrics():
    parts = np.array([0, 0, 0, 0, 0, 0, 1, 1])
    task = Scoring(("accuracy", "f1"), parts)
    # Part 0: 3 true and 1 false positives, 1 false negative, 1 true negative; part 1: all right.
    assert compute_score(task, ANSWERS, LABELS) == pytest.approx(((4 / 6 + 6 / 8) / 2 + 1.0) / 2)


def test_answers_that_cannot_be_scored_are_refused():
    task = Scoring(("pearson",))
    with pytest.raises(InputError, match="first at example 2: train the cell again"):
        compute_score(task, np.array([0.1, 0.2, math.nan]), np.arange(3.0))
    with pytest.raises(InputError, match="2 predictions for 3 labels"):
        compute_score(task, np.array([0.1, 0.2]), np.arange(3.0))
    with pytest.raises(InputError, match="at least one example"):
        compute_score(task, np.array([]), np.array([]))
    with pytest.raises(InputError, match="2 parts for 3 labels"):
        compute_score(Scoring(("pearson",), np.zeros(2)), np.ones(3), np.arange(3.0))
