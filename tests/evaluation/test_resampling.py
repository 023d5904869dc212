"""Weighted scores, against the metrics on examples that are really repeated."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neobert_train.evaluation import resampling
from neobert_train.evaluation.metrics import METRICS, Scoring, compute_score
from neobert_train.evaluation.resampling import Patterns, resample_scores, score_rows

CLASSES = ("accuracy", "f1", "macro_f1", "matthews")


def draw_task(metric, num_examples, num_rows, seed=0):
    generator = np.random.default_rng(seed)
    if metric in CLASSES:
        labels = generator.integers(0, 3, num_examples)
        wrong = generator.random((num_rows, num_examples)) < 0.3
        return np.where(wrong, generator.integers(0, 3, wrong.shape), labels), labels
    labels = np.round(generator.normal(size=num_examples), 1)
    return np.round(labels + generator.normal(size=(num_rows, num_examples)), 1), labels


@pytest.mark.parametrize("metric", sorted(METRICS))
@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), num_examples=st.integers(2, 12))
def test_weights_score_as_repeated_examples_do(metric, seed, num_examples):
    predictions, labels = draw_task(metric, num_examples, 2, seed)
    repeats = np.random.default_rng(seed).integers(0, 3, (4, num_examples))
    repeats[:, 0] += 1
    scores = resampling._score_patterns(
        Scoring((metric,)),
        Patterns(predictions, labels, np.ones(num_examples)),
        repeats.astype(float),
    )
    for row, answers in enumerate(predictions):
        for draw, counts in enumerate(repeats):
            expected = METRICS[metric](np.repeat(answers, counts), np.repeat(labels, counts))
            assert scores[draw, row] == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("metrics", [("accuracy", "f1"), ("matthews",), ("pearson", "spearman")])
@pytest.mark.parametrize("in_parts", [False, True])
def test_rows_are_scored_as_one_by_one(metrics, in_parts):
    predictions, labels = draw_task(metrics[0], 90, 4)
    task = Scoring(metrics, np.arange(90) % 3 if in_parts else None)
    expected = [compute_score(task, row, labels) for row in predictions]
    np.testing.assert_allclose(score_rows(task, predictions, labels), expected, atol=1e-12)


@pytest.mark.parametrize("metric", sorted(METRICS))
def test_deviations_are_distributed_as_in_a_bootstrap_of_examples(metric, monkeypatch):
    monkeypatch.setattr(resampling, "MOST_WEIGHTS", 5000)  # several chunks
    predictions, labels = draw_task(metric, 60, 2)
    task = Scoring((metric,))
    deviations = resample_scores(task, predictions, labels, 4000)
    generator = np.random.default_rng(1)
    scores = np.empty((600, 2))
    for draw in range(600):
        chosen = generator.integers(0, 60, 60)
        scores[draw] = [compute_score(task, row[chosen], labels[chosen]) for row in predictions]
    expected = scores.std(axis=0) * np.sqrt(60 / 59)
    np.testing.assert_allclose(deviations.std(axis=0), expected, rtol=0.12)
    correlation = np.corrcoef(scores, rowvar=False)[0, 1]
    assert np.corrcoef(deviations, rowvar=False)[0, 1] == pytest.approx(correlation, abs=0.12)
    bias = scores.mean(axis=0) - score_rows(task, predictions, labels)
    np.testing.assert_allclose(deviations.mean(axis=0), bias, atol=0.01)


def test_parts_are_resampled_by_themselves():
    labels = np.zeros(100, np.int64)
    predictions = (np.arange(100) >= 90).astype(np.int64)[None]  # right in part 0, wrong in part 1
    task = Scoring(("accuracy",), predictions[0])
    assert score_rows(task, predictions, labels) == pytest.approx(0.5)
    assert np.abs(resample_scores(task, predictions, labels, 50)).max() == 0.0


def test_the_variance_of_a_mean_is_the_unbiased_one():
    labels = np.zeros(12, np.int64)
    predictions = (np.arange(12) >= np.array([[8], [5]])).astype(np.int64)
    task = Scoring(("accuracy",))
    deviations = resample_scores(task, predictions, labels, 100_000)
    expected = np.cov(1 - predictions, ddof=1) / 12
    np.testing.assert_allclose(np.cov(deviations, rowvar=False), expected, rtol=0.03)
