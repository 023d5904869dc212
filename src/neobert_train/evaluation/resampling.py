"""Scores of many bootstrap resamples of the examples at once, from weighted counts and moments."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from neobert_train.evaluation.metrics import (
    Answers,
    Scoring,
    check_answers,
    is_constant,
    split_parts,
)

NUM_RESAMPLES = 2000
MOST_WEIGHTS = 4_000_000  # float64 in one chunk of resamples: 32 MB
LEAST_VARIANCE = 1e-12  # of standardized values; less in a resample is a constant


@dataclass(frozen=True)
class Patterns:
    """The distinct columns of labels and predictions in one part, which resampling only counts.

    Attributes:
        predictions: [rows, K], one row per model and seed.
        labels: [K].
        counts: how many examples have the pattern, int64 [K].
    """

    predictions: Answers
    labels: Answers
    counts: Answers

    @classmethod
    def from_examples(cls, predictions: Answers, labels: Answers) -> "Patterns":
        """Return the patterns of predictions [rows, n] and labels [n]."""
        columns = np.vstack([labels[None], predictions])
        distinct, counts = np.unique(columns, axis=1, return_counts=True)
        return cls(distinct[1:], distinct[0], counts)

    @cached_property
    def classes(self) -> Answers:
        """The classes that occur, ascending."""
        return np.unique(np.append(self.labels, self.predictions))


@dataclass(frozen=True)
class ClassCounts:
    """What a confusion table says of each class c, float64.

    Attributes:
        classes: their ids, [C].
        right: examples of the class predicted as such, [B, C].
        predicted: examples predicted as the class, [B, C].
        labelled: examples of the class, [B, C].
    """

    classes: Answers
    right: Answers
    predicted: Answers
    labelled: Answers


def _divide(numerator: Answers, denominator: Answers) -> Answers:
    """Return the quotient, and 0 where the denominator is 0."""
    quotient: Answers = np.divide(
        numerator, denominator, out=np.zeros(np.shape(numerator)), where=denominator > 0
    )
    return quotient


def _accuracy(counts: ClassCounts) -> Answers:
    return _divide(counts.right.sum(axis=1), counts.labelled.sum(axis=1))


def _f1(counts: ClassCounts) -> Answers:
    f1 = _divide(2.0 * counts.right, counts.predicted + counts.labelled)
    is_positive = counts.classes == 1
    of_positive: Answers = f1[:, is_positive].sum(axis=1)
    return of_positive


def _macro_f1(counts: ClassCounts) -> Answers:
    occurrences = counts.predicted + counts.labelled
    f1 = _divide(2.0 * counts.right, occurrences)
    return _divide(f1.sum(axis=1), (occurrences > 0).sum(axis=1).astype(float))


def _matthews(counts: ClassCounts) -> Answers:
    """Return R_K of Gorodkin (2004), which is Matthews' correlation for two classes."""
    total = counts.labelled.sum(axis=1)
    covariance = counts.right.sum(axis=1) * total - (counts.predicted * counts.labelled).sum(axis=1)
    spread = (total**2 - (counts.predicted**2).sum(axis=1)) * (
        total**2 - (counts.labelled**2).sum(axis=1)
    )
    return _divide(covariance, np.sqrt(spread))


CLASS_METRICS: dict[str, Callable[[ClassCounts], Answers]] = {
    "accuracy": _accuracy,
    "f1": _f1,
    "macro_f1": _macro_f1,
    "matthews": _matthews,
}


def _count_classes(weights: Answers, patterns: Patterns, row: int) -> ClassCounts:
    """Return the weighted counts of a row of predictions, for weights [B, K]."""
    predicted = (patterns.predictions[row][:, None] == patterns.classes).astype(float)  # [K, C]
    labelled = (patterns.labels[:, None] == patterns.classes).astype(float)
    return ClassCounts(
        patterns.classes,
        weights @ (predicted * labelled),
        weights @ predicted,
        weights @ labelled,
    )


def _standardize(values: Answers) -> Answers:
    """Return values of mean 0 and variance 1, or zeros for a constant."""
    if is_constant(values):
        return np.zeros(len(values))
    standardized: Answers = (values - values.mean()) / values.std()
    return standardized


def _correlate(moments: tuple[Answers, ...]) -> Answers:
    """Return Pearson's correlation from the weighted means of x, y, x^2, y^2 and xy, each [B]."""
    x, y, xx, yy, xy = moments
    variances = np.maximum(xx - x**2, 0.0), np.maximum(yy - y**2, 0.0)
    defined = (variances[0] > LEAST_VARIANCE) & (variances[1] > LEAST_VARIANCE)
    return np.where(defined, _divide(xy - x * y, np.sqrt(variances[0] * variances[1])), 0.0)


def _pearson(weights: Answers, patterns: Patterns) -> Answers:
    """Return the correlation of each row of predictions with the labels, [B, rows]."""
    shares = weights / weights.sum(axis=1, keepdims=True)
    y = _standardize(patterns.labels)
    scores = []
    for predictions in patterns.predictions:
        x = _standardize(predictions)
        means = shares @ np.stack([x, y, x * x, y * y, x * y], axis=1)
        scores.append(_correlate(tuple(means.T)))
    return np.stack(scores, axis=1)


def _rank(shares: Answers, values: Answers) -> Answers:
    """Return the mid-ranks of values [K] in each resample, [B, K], as fractions less one half.

    The mid-rank of a value is the share of the resample below it and half the share that equals it.
    """
    _, group, sizes = np.unique(values, return_inverse=True, return_counts=True)
    starts = np.cumsum(sizes) - sizes
    shares_of_groups = np.add.reduceat(shares[:, np.argsort(group, kind="stable")], starts, axis=1)
    ranks = np.cumsum(shares_of_groups, axis=1) - shares_of_groups / 2 - 0.5
    return ranks[:, group]


def _spearman(weights: Answers, patterns: Patterns) -> Answers:
    """Return the rank correlation of each row of predictions with the labels, [B, rows]."""
    shares = weights / weights.sum(axis=1, keepdims=True)
    y = _rank(shares, patterns.labels)
    zero = np.zeros(len(shares))  # the mean of mid-ranks less one half
    weighted_y = shares * y
    yy = np.einsum("bk,bk->b", weighted_y, y)
    scores = []
    for predictions in patterns.predictions:
        x = _rank(shares, predictions)
        xy = np.einsum("bk,bk->b", weighted_y, x)
        x *= x
        xx = np.einsum("bk,bk->b", shares, x)
        scores.append(_correlate((zero, zero, xx, yy, xy)))
    return np.stack(scores, axis=1)


def _mean(weights: Answers, patterns: Patterns) -> Answers:
    """Return the mean of each row of predictions, [B, rows]."""
    shares = weights / weights.sum(axis=1, keepdims=True)
    means: Answers = shares @ patterns.predictions.T
    return means


SCORE_METRICS: dict[str, Callable[[Answers, Patterns], Answers]] = {
    "pearson": _pearson,
    "spearman": _spearman,
    "mean": _mean,
}


def _score_patterns(task: Scoring, patterns: Patterns, weights: Answers) -> Answers:
    """Return the mean over the task's metrics, [B, rows], with weights [B, K] of the patterns."""
    scores = np.zeros((len(weights), len(patterns.predictions)))
    class_metrics = [CLASS_METRICS[name] for name in task.metrics if name in CLASS_METRICS]
    for row in range(len(patterns.predictions) if class_metrics else 0):
        counts = _count_classes(weights, patterns, row)
        for compute in class_metrics:
            scores[:, row] += compute(counts)
    for name in task.metrics:
        if name in SCORE_METRICS:
            scores += SCORE_METRICS[name](weights, patterns)
    return scores / len(task.metrics)


def score_rows(task: Scoring, predictions: Answers, labels: Answers) -> Answers:
    """Return the score of each row of predictions [rows, n]: float64 [rows].

    The numbers are those of `metrics.compute_score`, many times faster.

    Raises:
        InputError: see `metrics.check_answers`.
    """
    check_answers(task, predictions, labels)
    parts = split_parts(task, len(labels))
    scores = np.zeros(len(predictions))
    for examples in parts:
        patterns = Patterns.from_examples(predictions[:, examples], labels[examples])
        scores += _score_patterns(task, patterns, patterns.counts[None].astype(float))[0]
    return scores / len(parts)


def resample_scores(
    task: Scoring,
    predictions: Answers,
    labels: Answers,
    num_resamples: int = NUM_RESAMPLES,
    seed: int = 0,
) -> Answers:
    """Return the deviations of scores in bootstrap resamples of the examples, [num_resamples, rows].

    All rows of predictions [rows, n] are scored on the same resamples, so that differences between
    rows are paired. Each part is resampled by itself: examples with the same label and predictions
    are counted together, and a resample is a multinomial draw of the counts. Deviations are from
    the score of all examples, and are scaled by sqrt(n / (n - 1)) in each part, so that their
    variance for a mean is that of the usual unbiased estimate.

    Raises:
        InputError: see `metrics.check_answers`.
    """
    check_answers(task, predictions, labels)
    generator = np.random.default_rng(seed)
    parts = split_parts(task, len(labels))
    deviations = np.zeros((num_resamples, len(predictions)))
    for examples in parts:
        patterns = Patterns.from_examples(predictions[:, examples], labels[examples])
        observed = _score_patterns(task, patterns, patterns.counts[None].astype(float))
        scale = np.sqrt(len(examples) / max(len(examples) - 1, 1)) / len(parts)
        chunk = max(MOST_WEIGHTS // len(patterns.counts), 1)
        for start in range(0, num_resamples, chunk):
            size = min(chunk, num_resamples - start)
            shares = patterns.counts / len(examples)
            weights = generator.multinomial(len(examples), shares, size).astype(float)
            scores = _score_patterns(task, patterns, weights)
            deviations[start : start + size] += (scores - observed) * scale
    return deviations
