"""Intervals for scores and for their differences, over seeds and examples, and corrections.

A score varies with the examples that happen to be in the evaluation set, and with the seed of
fine-tuning. The two are crossed: every seed of every model answers the same examples. This is the
design of readers and cases in diagnostic imaging, and so is the method:

1. *Examples*: a paired bootstrap (Efron, 1979), in which all models and seeds are scored on the
   same resamples, for any metric. Its variance V holds what is common to the seeds, and a share of
   the interaction: how much each seed deviates by itself.
2. *Seeds*: T = (variance over seeds) / S holds the shift of whole seeds and, again, the
   interaction. The interaction I is the bootstrap's variance of the seeds' scores around their
   mean, so what seeds add is max(T - I, 0), as in Obuchowski and Rockette (1995). Resampling seeds
   as well would be too narrow: with 5 of them, it gives 4/5 of their variance and quantiles of
   a normal distribution.
3. The variance is V + max(T - I, 0) + 1 / n^2, the last as one pair of examples more that differ
   (Agresti and Min, 2005), so that few differing examples are not taken for none.
4. Interval and p-value are of Student's t, with the degrees of freedom of Satterthwaite (1946) in
   the form of Hillis (2007), which keeps T itself in the denominator. A p-value below 0.05 and a
   95 % interval without 0 are the same thing.

The interval of a mean is computed on the logit scale of the metric's range (for correlations this is
Fisher's z), on which errors near the best value are symmetric; a difference needs no such scale.

With one seed only the examples vary: the interval is about these very weights (`over_seeds` is
False). If one of two models has a single seed, the variance of the other's seeds stands for its own.
`scripts/simulate_tables.py` counts how often intervals hold the truth.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import special, stats

from neobert_train.errors import InputError
from neobert_train.evaluation.metrics import Answers, Scoring, split_parts
from neobert_train.evaluation.resampling import NUM_RESAMPLES, resample_scores, score_rows

LEVEL = 0.95


@dataclass(frozen=True)
class Estimate:
    """A score, or a difference of scores, with its 95 % interval, as fractions.

    Attributes:
        value: the mean over seeds, or the difference of two means.
        low, high: the interval; that of a score is within its metric's range.
        standard_error: of the value.
        degrees_of_freedom: of Student's t.
        over_seeds: whether the interval covers other seeds; if not, it is about these weights.
        p_value: two-sided, of the hypothesis that a difference is 0.
    """

    value: float
    low: float
    high: float
    standard_error: float
    degrees_of_freedom: float
    over_seeds: bool
    p_value: float


@dataclass(frozen=True)
class _SeedVariance:
    """What the seeds of a model say: T and I of the module's docstring, and S - 1."""

    total: float
    interaction: float
    degrees_of_freedom: int

    @property
    def added(self) -> float:
        return max(self.total - self.interaction, 0.0)


def _estimate_seed_variance(scores: Answers, deviations: Answers) -> _SeedVariance | None:
    """Return the variance of the mean of scores [S], or None for one seed."""
    num_seeds = len(scores)
    if num_seeds < 2:
        return None
    around_mean = deviations - deviations.mean(axis=1, keepdims=True)
    return _SeedVariance(
        total=float(scores.var(ddof=1)) / num_seeds,
        interaction=float((around_mean**2).mean(axis=0).sum()) / (num_seeds - 1) / num_seeds,
        degrees_of_freedom=num_seeds - 1,
    )


def _borrow(known: _SeedVariance) -> _SeedVariance:
    """Return the variance for a model and another of one seed, whose seeds are taken to vary alike."""
    factor = known.degrees_of_freedom + 2  # 1 / S of the one, 1 of the other, relative to 1 / S
    return _SeedVariance(factor * known.total, factor * known.interaction, known.degrees_of_freedom)


def _build_estimate(
    value: float, variance: float, degrees_of_freedom: float, over_seeds: bool
) -> Estimate:
    """Return the estimate whose interval and p-value are of Student's t."""
    error = math.sqrt(variance)
    quantile = float(stats.t.ppf((1.0 + LEVEL) / 2.0, degrees_of_freedom))
    return Estimate(
        value=value,
        low=value - quantile * error,
        high=value + quantile * error,
        standard_error=error,
        degrees_of_freedom=degrees_of_freedom,
        over_seeds=over_seeds,
        p_value=float(2.0 * stats.t.sf(abs(value) / error, degrees_of_freedom)),
    )


def _combine(
    sizes: Sequence[int],
    value: float,
    resampled: Answers,
    seeds: Sequence[_SeedVariance | None],
    choice_variance: float,
) -> Estimate:
    """Return the estimate from what examples and seeds add to its variance.

    Args:
        sizes: number of examples in each part.
        value: the mean, or the difference of two.
        resampled: its deviations in resamples of the examples, [B].
        seeds: of each model.
        choice_variance: what the choice of settings adds.
    """
    known = [each for each in seeds if each is not None]
    if len(known) == 1 and len(seeds) == 2:
        known = [_borrow(known[0])]
    one_more_pair = sum(1.0 / size**2 for size in sizes) / len(sizes) ** 2
    of_examples = float((resampled**2).mean()) + one_more_pair + choice_variance
    variance = of_examples + sum(each.added for each in known)
    uncertainty = of_examples**2 / max(sum(sizes) - len(sizes), 1)
    uncertainty += sum(each.total**2 / each.degrees_of_freedom for each in known)
    return _build_estimate(value, variance, variance**2 / uncertainty, bool(known))


def _bound(estimate: Estimate, lowest: float) -> Estimate:
    """Return a mean's estimate with the interval of its logit, within [lowest, 1].

    The interval is cut off instead where an end of the range is within two standard errors.
    """
    value, error = estimate.value, estimate.standard_error
    if 2.0 * error >= min(value - lowest, 1.0 - value):
        return replace(estimate, low=max(estimate.low, lowest), high=min(estimate.high, 1.0))
    center = math.log((value - lowest) / (1.0 - value))
    slope = (1.0 - lowest) / ((value - lowest) * (1.0 - value))
    reach = (estimate.high - value) * slope
    low, high = (
        lowest + (1.0 - lowest) * float(special.expit(logit))
        for logit in (center - reach, center + reach)
    )
    return replace(estimate, low=low, high=high)


def _find_lowest(task: Scoring) -> float:
    """Return the lower end of the range of a task's score."""
    return -1.0 if {"matthews", "pearson", "spearman"} & set(task.metrics) else 0.0


def _get_sizes(task: Scoring, labels: Answers) -> list[int]:
    """Return the number of examples in each part."""
    return [len(examples) for examples in split_parts(task, len(labels))]


def estimate_mean(
    task: Scoring,
    predictions: Answers,
    labels: Answers,
    num_resamples: int = NUM_RESAMPLES,
    seed: int = 0,
    choice_variance: float = 0.0,
) -> Estimate:
    """Return a model's mean score over seeds with its interval, within the metric's range.

    Args:
        task: how the examples are scored.
        predictions: [S, n], one row per seed.
        labels: [n].
        num_resamples: of the bootstrap.
        seed: of the bootstrap.
        choice_variance: that of `selection.CrossFit`, if settings were selected so.

    Raises:
        InputError: see `metrics.check_answers`.
    """
    scores = score_rows(task, predictions, labels)
    deviations = resample_scores(task, predictions, labels, num_resamples, seed)
    estimate = _combine(
        _get_sizes(task, labels),
        float(scores.mean()),
        deviations.mean(axis=1),
        [_estimate_seed_variance(scores, deviations)],
        choice_variance,
    )
    return _bound(estimate, _find_lowest(task))


def compare_models(
    task: Scoring,
    first: Answers,
    second: Answers,
    labels: Answers,
    num_resamples: int = NUM_RESAMPLES,
    seed: int = 0,
    choice_variance: float = 0.0,
) -> Estimate:
    """Return the first model's mean score less the second's, with its interval and p-value.

    Args:
        task: how the examples are scored.
        first: predictions of one model, [S, n], one row per seed.
        second: predictions of the other on the same examples, [S', n]; S' may differ from S, and
            seeds of the same number are not taken for pairs.
        labels: [n].
        num_resamples: of the bootstrap.
        seed: of the bootstrap.
        choice_variance: that of `selection.CrossFit`, if settings were selected so: the sum of both models.

    Raises:
        InputError: see `metrics.check_answers`.
    """
    if first.shape[-1] != second.shape[-1]:
        raise InputError(
            f"The models answered {first.shape[-1]} and {second.shape[-1]} examples: a paired "
            "comparison needs the same evaluation set for both."
        )
    predictions = np.concatenate([first, second])
    scores = score_rows(task, predictions, labels)
    deviations = resample_scores(task, predictions, labels, num_resamples, seed)
    num_seeds = len(first)
    estimate = _combine(
        _get_sizes(task, labels),
        float(scores[:num_seeds].mean() - scores[num_seeds:].mean()),
        deviations[:, :num_seeds].mean(axis=1) - deviations[:, num_seeds:].mean(axis=1),
        [
            _estimate_seed_variance(scores[:num_seeds], deviations[:, :num_seeds]),
            _estimate_seed_variance(scores[num_seeds:], deviations[:, num_seeds:]),
        ],
        choice_variance,
    )
    widest = 1.0 - _find_lowest(task)
    return replace(estimate, low=max(estimate.low, -widest), high=min(estimate.high, widest))


def average_estimates(estimates: Sequence[Estimate]) -> Estimate:
    """Return the mean of scores over tasks with its interval.

    The tasks are fixed, and their examples and seeds independent of each other. `over_seeds` is
    True if every interval covers seeds.
    """
    count = len(estimates)
    variance = sum(each.standard_error**2 for each in estimates) / count**2
    uncertainty = sum(each.standard_error**4 / each.degrees_of_freedom for each in estimates)
    estimate = _build_estimate(
        sum(each.value for each in estimates) / count,
        variance,
        variance**2 * count**4 / uncertainty,
        all(each.over_seeds for each in estimates),
    )
    low, high = max(estimate.low, -1.0), min(estimate.high, 1.0)
    return replace(estimate, low=low, high=high)


def correct_holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values corrected for their number by Holm's method (1979), in the same order.

    Rejecting those below 0.05 errs on any true hypothesis with at most 5 % probability, however
    they depend on each other.
    """
    values = np.asarray(p_values, np.float64)
    order = np.argsort(values, kind="stable")
    corrected = np.empty(len(values))
    factors = np.arange(len(values), 0, -1)
    corrected[order] = np.minimum(np.maximum.accumulate(values[order] * factors), 1.0)
    return [float(value) for value in corrected]
