"""Metrics of tasks with one answer per example, and a task's score from them.

scikit-learn and scipy are imported where they are used: training starts sooner without them.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from neobert_train.errors import InputError

# Class ids (int64 [n]) or scores (float64 [n]).
Answers = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True, eq=False)
class Scoring:
    """How a task is scored: the mean over parts of the mean over metrics.

    Attributes:
        metrics: names in METRICS.
        parts: the evaluation set of each example, as MNLI matched (0) and mismatched (1), int64
            [n]; None if there is one set.
    """

    metrics: tuple[str, ...]
    parts: Answers | None = None


def is_constant(values: Answers) -> bool:
    """Return whether all values are equal, or differ by rounding errors only."""
    return bool(np.ptp(values) <= 1e-12 * np.abs(values).max())


def compute_accuracy(predictions: Answers, labels: Answers) -> float:
    """Return the share of right predictions."""
    return float(np.mean(predictions == labels))


def compute_f1(predictions: Answers, labels: Answers) -> float:
    """Return F1 of class 1; 0 if it is neither predicted nor the label of any example."""
    from sklearn.metrics import f1_score

    scores = f1_score(labels, predictions, labels=[1], average=None, zero_division=0.0)
    return float(scores[0])


def compute_macro_f1(predictions: Answers, labels: Answers) -> float:
    """Return the mean of F1 over the classes that occur in labels or predictions."""
    from sklearn.metrics import f1_score

    return float(f1_score(labels, predictions, average="macro", zero_division=0.0))


def compute_matthews(predictions: Answers, labels: Answers) -> float:
    """Return Matthews' correlation (any number of classes); 0 if a side has only one class."""
    if is_constant(predictions) or is_constant(labels):
        return 0.0
    from sklearn.metrics import matthews_corrcoef

    return float(matthews_corrcoef(labels, predictions))


def compute_pearson(predictions: Answers, labels: Answers) -> float:
    """Return Pearson's correlation; 0 if a side is constant."""
    if is_constant(predictions) or is_constant(labels):
        return 0.0
    from scipy.stats import pearsonr

    return float(pearsonr(predictions, labels).statistic)


def compute_spearman(predictions: Answers, labels: Answers) -> float:
    """Return Spearman's rank correlation, ties at their mean rank; 0 if a side is constant."""
    if is_constant(predictions) or is_constant(labels):
        return 0.0
    from scipy.stats import spearmanr

    return float(spearmanr(predictions, labels).statistic)


def compute_mean(predictions: Answers, labels: Answers) -> float:
    """Return the mean of predictions that are scores of the examples, such as nDCG of a query."""
    return float(predictions.mean())


METRICS: dict[str, Callable[[Answers, Answers], float]] = {
    "accuracy": compute_accuracy,
    "f1": compute_f1,
    "macro_f1": compute_macro_f1,
    "matthews": compute_matthews,
    "pearson": compute_pearson,
    "spearman": compute_spearman,
    "mean": compute_mean,
}


def check_answers(task: Scoring, predictions: Answers, labels: Answers) -> None:
    """Check that predictions [..., n] can be scored against labels [n].

    Raises:
        InputError: they differ in their number of examples, there are none, or one is not finite.
    """
    if not len(labels) or predictions.shape[-1] != len(labels):
        raise InputError(
            f"{predictions.shape[-1]} predictions for {len(labels)} labels: a task needs one "
            "prediction per example, and at least one example."
        )
    if task.parts is not None and len(task.parts) != len(labels):
        raise InputError(f"{len(task.parts)} parts for {len(labels)} labels: give one per example.")
    for name, values in (("predictions", predictions), ("labels", labels)):
        finite = np.isfinite(values)
        if not finite.all():
            example = int(np.flatnonzero(~finite.reshape(-1, len(labels)).all(axis=0))[0])
            raise InputError(
                f"The {name} hold NaN or infinity, first at example {example}: train the cell "
                "again, with a lower learning rate if it diverged."
            )


def split_parts(task: Scoring, num_examples: int) -> list[Answers]:
    """Return the indices of the examples of each part, int64."""
    if task.parts is None:
        return [np.arange(num_examples)]
    return [np.flatnonzero(task.parts == part) for part in np.unique(task.parts)]


def compute_metrics(task: Scoring, predictions: Answers, labels: Answers) -> dict[str, float]:
    """Return every metric of the task by its name, as the mean over parts.

    Raises:
        InputError: see check_answers.
    """
    check_answers(task, predictions, labels)
    parts = split_parts(task, len(labels))
    return {
        name: float(np.mean([METRICS[name](predictions[part], labels[part]) for part in parts]))
        for name in task.metrics
    }


def compute_score(task: Scoring, predictions: Answers, labels: Answers) -> float:
    """Return the score of predictions [n] against labels [n], a fraction.

    Metrics are those of scikit-learn and scipy.

    Raises:
        InputError: see check_answers.
    """
    return float(np.mean(list(compute_metrics(task, predictions, labels).values())))
