"""How often intervals and p-values of evaluation are right, on tables whose truth is planted.

    python scripts/simulate_tables.py --tables 100                 # about half an hour
    python scripts/simulate_tables.py --metric matthews            # 1,000 tables per row
    python scripts/simulate_tables.py --only selection

Labels and answers are drawn from a model with a shared difficulty of each example, what a model (and
a setting of its grid) makes of it, what a seed makes of it, and a shift of the whole seed. The truth
is the expected score over the population of examples and over seeds, computed by quadrature. Rows of
one seed are of fixed weights (no shift of the seed), since the interval is about these weights only.

1. Comparisons: model A is better than B by a known difference, or equal. Per 100 tables: how many
   intervals of A - B and of A's mean hold the truth, and how often A and B are called different.
2. Selection: each model has six settings of known worth. Per 100 tables: how many intervals of the
   cross-fitted A - B hold the planted difference of the best settings, and that of the settings that
   were chosen; how often the models are called different. In points, what A's numbers overstate:
   the cross-fitted mean over the expected score of the settings chosen, the best mean over seeds and
   the best cell over that of the best setting.
"""

import argparse
import functools
import itertools
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import numpy as np
from scipy import optimize, special

from neobert_train.evaluation.metrics import Scoring
from neobert_train.evaluation.resampling import score_rows
from neobert_train.evaluation.selection import Cells, find_maximum, select_cross_fitted
from neobert_train.evaluation.statistics import Estimate, compare_models, estimate_mean

NODES, WEIGHTS = np.polynomial.hermite_e.hermegauss(41)
WEIGHTS = WEIGHTS / WEIGHTS.sum()
RESAMPLES = 400  # a fifth of the default, for speed
# Shares of the variance of an example's latent score: of the example, the model, the setting, the
# seed. Seeds of one setting then agree on 92 % of the examples at an accuracy of 0.9.
SHARES = {"example": 0.60, "model": 0.12, "setting": 0.05, "seed": 0.23}
GAPS = (0.004, 0.0, 0.008, 0.002, 0.02, 0.05)  # of the six settings to the best


@dataclass(frozen=True)
class Planted:
    """A task whose true scores are known.

    Attributes:
        name: for the table.
        metric: in METRICS.
        num_examples: of the evaluation set.
        score: of model A.
        seed_shift: standard deviation of a seed's shift of the latent score.
        positives: share of class 1.
        bias: how much easier class 1 is than class 0, in the latent score.
    """

    name: str
    metric: str
    num_examples: int
    score: float
    seed_shift: float
    positives: float = 0.5
    bias: float = 0.0

    def score_at(self, strength: float, shift: float | np.ndarray) -> np.ndarray:
        """Return the score over the population of weights of a strength and shift."""
        shifted = strength + self.seed_shift * np.asarray(shift)
        if self.metric == "spearman":  # of a normal distribution: Pearson (1907)
            correlation = 1.0 / np.sqrt(1.0 + np.exp(-2.0 * shifted))
            return 6.0 / math.pi * np.arcsin(correlation / 2.0)
        ones = self.positives * special.ndtr(shifted + self.bias)
        zeros = (1.0 - self.positives) * special.ndtr(shifted - self.bias)
        false_ones, false_zeros = 1.0 - self.positives - zeros, self.positives - ones
        if self.metric == "accuracy":
            return ones + zeros
        if self.metric == "f1":
            return 2.0 * ones / (2.0 * ones + false_ones + false_zeros)
        margins = (ones + false_ones) * (zeros + false_zeros)
        margins = margins * self.positives * (1.0 - self.positives)
        return (ones * zeros - false_ones * false_zeros) / np.sqrt(margins)

    def expect(self, strength: float) -> float:
        """Return the expected score over the population and over seeds."""
        return float(WEIGHTS @ self.score_at(strength, NODES))

    def draw_labels(self, generator: np.random.Generator) -> np.ndarray:
        """Return labels [n]."""
        if self.metric == "spearman":
            return generator.normal(size=self.num_examples)
        return (generator.random(self.num_examples) < self.positives).astype(np.int64)

    def answer(
        self, labels: np.ndarray, latent: np.ndarray, strength: float, shift: float
    ) -> np.ndarray:
        """Return predictions [n] of weights, from their latent scores [n] of variance 1."""
        if self.metric == "spearman":
            return labels + np.exp(-strength - self.seed_shift * shift) * latent
        ease = np.where(labels == 1, self.bias, -self.bias)
        right = latent < strength + self.seed_shift * shift + ease
        return np.where(right, labels, 1 - labels)


@functools.cache
def find_strength(task: Planted, score: float) -> float:
    """Return the strength whose expected score is given."""
    return float(optimize.brentq(lambda strength: task.expect(strength) - score, -6.0, 6.0))


TASKS = (
    Planted("accuracy, RTE", "accuracy", 277, 0.75, 0.05),
    Planted("accuracy, SST-2", "accuracy", 872, 0.95, 0.04),
    Planted("F1, small", "f1", 277, 0.88, 0.05, 0.68, 0.3),
    Planted("MCC, small", "matthews", 277, 0.60, 0.05, 0.7, 0.3),
    Planted("MCC, CoLA", "matthews", 1043, 0.62, 0.04, 0.7, 0.3),
    Planted("Spearman, small", "spearman", 277, 0.88, 0.03),
    Planted("Spearman, STS-B", "spearman", 1500, 0.90, 0.02),
)


@dataclass(frozen=True)
class Model:
    """Cells of one model on one evaluation set: predictions and true score of each."""

    cells: Cells
    shifts: dict[tuple[str, int], float]
    strengths: dict[str, float]


def draw_models(
    task: Planted,
    scores: dict[str, tuple[float, ...]],
    num_seeds: int,
    generator: np.random.Generator,
) -> tuple[np.ndarray, dict[str, Model]]:
    """Return labels and models, given the expected scores of each one's settings."""
    labels = task.draw_labels(generator)

    def draw(source: str) -> np.ndarray:
        return math.sqrt(SHARES[source]) * generator.normal(size=len(labels))

    of_example = draw("example")
    models = {}
    for name, of_settings in scores.items():
        of_model = of_example + draw("model")
        cells: dict[str, dict[int, np.ndarray]] = {}
        shifts, strengths = {}, {}
        for number, score in enumerate(of_settings):
            setting = f"setting {number}"
            of_setting = of_model + draw("setting")
            strengths[setting] = find_strength(task, score)
            cells[setting] = {}
            for seed in range(num_seeds):
                shifts[setting, seed] = float(generator.normal())
                cells[setting][seed] = task.answer(
                    labels,
                    of_setting + draw("seed"),
                    strengths[setting],
                    shifts[setting, seed],
                )
        models[name] = Model(cells, shifts, strengths)
    return labels, models


def holds(estimate: Estimate, truth: float) -> bool:
    """Return whether the interval holds the truth."""
    return estimate.low <= truth <= estimate.high


def compare_once(
    task: Planted,
    difference: float,
    num_seeds: tuple[int, int],
    generator: np.random.Generator,
    resamples: int,
) -> dict[str, float]:
    """Return what one table says of A and B, with one setting each: 1 for yes, 0 for no."""
    scores = {"A": (task.score,), "B": (task.score - difference,)}
    labels, models = draw_models(task, scores, max(num_seeds), generator)
    first, second = (
        np.stack([model.cells["setting 0"][seed] for seed in range(count)])
        for model, count in zip(models.values(), num_seeds, strict=True)
    )
    scoring = Scoring((task.metric,))
    seed = int(generator.integers(2**31))
    compared = compare_models(scoring, first, second, labels, resamples, seed)
    mean = estimate_mean(scoring, first, labels, resamples, seed)
    return {
        "A - B held": holds(compared, difference),
        "A held": holds(mean, task.score),
        "called different": compared.p_value < 0.05,
        "width": compared.high - compared.low,
    }


def select_once(
    task: Planted,
    difference: float,
    num_seeds: int,
    generator: np.random.Generator,
    resamples: int,
) -> dict[str, float]:
    """Return what one table says of A and B when each one's setting is selected from six."""
    scores = {
        "A": tuple(task.score - gap for gap in GAPS),
        "B": tuple(task.score - difference - gap for gap in reversed(GAPS)),
    }
    labels, models = draw_models(task, scores, num_seeds, generator)
    scoring = Scoring((task.metric,))
    fits = [select_cross_fitted(scoring, model.cells, labels) for model in models.values()]
    worth = [
        np.mean([task.expect(model.strengths[name]) for pair in fit.chosen for name in pair])
        for fit, model in zip(fits, models.values(), strict=True)
    ]
    predictions = [fit.predictions for fit in fits]
    seed = int(generator.integers(2**31))
    choice_variance = fits[0].choice_variance + fits[1].choice_variance
    compared = compare_models(
        fits[0].scoring, *predictions, labels, resamples, seed, choice_variance
    )
    mean = score_rows(fits[0].scoring, predictions[0], labels).mean()
    maximum = find_maximum(scoring, models["A"].cells, labels)
    return {
        "planted held": holds(compared, difference),
        "chosen held": holds(compared, worth[0] - worth[1]),
        "called different": compared.p_value < 0.05,
        "cross-fitted": mean - worth[0],
        "best mean": maximum.mean - task.score,
        "best cell": maximum.score - task.score,
    }


def repeat(
    simulate: Callable[..., dict[str, float]], tables: int, *arguments: object, seed: int = 0
) -> dict[str, float]:
    """Return the means over tables, per 100 tables or in points."""
    generator = np.random.default_rng(seed)
    outcomes = [simulate(*arguments, generator, RESAMPLES) for _ in range(tables)]
    return {
        key: 100.0 * float(np.mean([outcome[key] for outcome in outcomes])) for key in outcomes[0]
    }


def print_row(name: str, num_seeds: str, difference: float, means: dict[str, float]) -> None:
    figures = "".join(f"{value:>{max(len(key), 6) + 2}.2f}" for key, value in means.items())
    print(f"{name:<18}{num_seeds:>14}{100 * difference:>9.1f}{figures}", flush=True)


def print_header(title: str, keys: Iterable[str]) -> None:
    columns = "".join(f"{key:>{max(len(key), 6) + 2}}" for key in keys)
    print(f"\n{title}\n{'task':<18}{'seeds':>14}{'A - B':>9}{columns}")


def simulate_comparisons(tasks: list[Planted], tables: int) -> None:
    """Print the rows of part 1."""
    started = False
    for task in tasks:
        plans = [
            ("1 and 1, fixed", (1, 1), replace(task, seed_shift=0.0)),
            ("5 and 5", (5, 5), task),
            ("5 and 3", (5, 3), task),
            ("5 and 1", (5, 1), task),
        ]
        for (name, num_seeds, planted), difference in itertools.product(plans, (0.0, 0.02)):
            means = repeat(compare_once, tables, planted, difference, num_seeds)
            if not started:
                print_header("Comparisons, per 100 tables; width in points", means)
                started = True
            print_row(task.name, name, difference, means)


def simulate_selections(tasks: list[Planted], tables: int) -> None:
    """Print the rows of part 2."""
    started = False
    for task in tasks:
        plans = [("1, fixed", 1, replace(task, seed_shift=0.0)), ("5", 5, task)]
        for (name, num_seeds, planted), difference in itertools.product(plans, (0.0, 0.02)):
            means = repeat(select_once, tables, planted, difference, num_seeds)
            if not started:
                print_header("Selection, per 100 tables; overstated by, in points", means)
                started = True
            print_row(task.name, name, difference, means)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tables", type=int, default=1000, help="simulated per row")
    parser.add_argument("--metric", choices=sorted({task.metric for task in TASKS}), help="only it")
    parser.add_argument("--only", choices=["comparisons", "selection"], help="one part")
    arguments = parser.parse_args()
    tasks = [task for task in TASKS if arguments.metric in (None, task.metric)]
    error = 100.0 * math.sqrt(0.95 * 0.05 / arguments.tables)
    print(f"{arguments.tables} tables per row: a count of 95 has a standard error of {error:.2f}")
    if arguments.only != "selection":
        simulate_comparisons(tasks, arguments.tables)
    if arguments.only != "comparisons":
        simulate_selections(tasks, arguments.tables)


if __name__ == "__main__":
    main()
