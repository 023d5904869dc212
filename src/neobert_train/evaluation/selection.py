"""Selection of a model's setting from a grid: as papers do it, and without bias.

The maximum over a grid on the examples that are reported is too high, since it picks lucky seeds and
settings that happen to suit these examples. Cross-fitting chooses on other data than it scores.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from neobert_train.errors import InputError
from neobert_train.evaluation.metrics import Answers, Scoring, split_parts
from neobert_train.evaluation.resampling import resample_scores, score_rows

NUM_CHOICES = 500  # resamples on which the choice is repeated

# Predictions [n] by setting and seed; cells that failed or are not computed yet are left out.
Cells = Mapping[str, Mapping[int, Answers]]


@dataclass(frozen=True)
class Maximum:
    """The best of a grid on the reported examples, as papers report it: biased upwards.

    Attributes:
        setting, seed: of the best cell.
        score: of the best cell.
        setting_by_mean: the complete setting with the best mean over seeds; None if none is
            complete.
        mean: its mean over seeds; None likewise.
        num_cells: how many cells the maximum is over.
    """

    setting: str
    seed: int
    score: float
    setting_by_mean: str | None
    mean: float | None
    num_cells: int


@dataclass(frozen=True, eq=False)
class CrossFit:
    """Predictions of a model on examples that its setting was not chosen on.

    Attributes:
        scoring: the task's, with the halves as parts of their own: the score of a seed is the mean
            of the scores of the two halves.
        seeds: ascending, S of them.
        chosen: for each seed, the settings whose predictions stand in half 0 and in half 1.
        predictions: [S, n].
        halves: the half of each example, 0 or 1, int64 [n].
        left_out: settings that could not be chosen, since not all seeds are there.
        choice_variance: what choosing adds to the variance of the mean over seeds, for
            `statistics.estimate_mean` and `statistics.compare_models`.
    """

    scoring: Scoring
    seeds: tuple[int, ...]
    chosen: tuple[tuple[str, str], ...]
    predictions: Answers
    halves: Answers
    left_out: tuple[str, ...]
    choice_variance: float


def split_in_halves(task: Scoring, labels: Answers, seed: int = 0) -> Answers:
    """Return the half of each example, 0 or 1, int64 [n], the same for all models of a task.

    Neighbours in the order of labels are divided, one to each half: within every part the halves
    hold as many examples of a class, or of similar scores, to within one.

    Raises:
        InputError: a part has fewer than two examples.
    """
    generator = np.random.default_rng(seed)
    halves = np.zeros(len(labels), np.int64)
    for examples in split_parts(task, len(labels)):
        if len(examples) < 2:
            raise InputError(
                f"A part of the evaluation set has {len(examples)} example: cross-fitted "
                "selection divides each part in two, and needs more."
            )
        order = examples[np.lexsort((generator.random(len(examples)), labels[examples]))]
        first = generator.integers(0, 2, size=(len(order) + 1) // 2)
        halves[order] = np.stack([first, 1 - first], axis=1).reshape(-1)[: len(order)]
    return halves


def divide_parts(task: Scoring, halves: Answers) -> Scoring:
    """Return the scoring in which each half of each part is a part."""
    parts = np.zeros(len(halves), np.int64) if task.parts is None else task.parts
    return replace(task, parts=2 * parts + halves)


def _find_complete(cells: Cells) -> tuple[tuple[int, ...], list[str]]:
    """Return all seeds of the grid, and the settings that have every one of them, in their order."""
    seeds = sorted({seed for setting in cells.values() for seed in setting})
    return tuple(seeds), [name for name, setting in cells.items() if len(setting) == len(seeds)]


def find_maximum(task: Scoring, cells: Cells, labels: Answers) -> Maximum:
    """Return the best cell over all settings and seeds, and the best setting by its mean.

    Every cell that is there competes for the first; for the second, settings that have all seeds
    of the grid, since a setting whose bad seeds failed would look better than it is. The first in
    the order of `cells` wins a tie.

    Raises:
        InputError: there is no cell, or see `metrics.check_answers`.
    """
    keys = [(name, seed) for name, setting in cells.items() for seed in sorted(setting)]
    if not keys:
        raise InputError("No cell of the grid has predictions: run the evaluation to compute them.")
    scores = score_rows(task, np.stack([cells[name][seed] for name, seed in keys]), labels)
    best = int(scores.argmax())
    _, complete = _find_complete(cells)
    means = {
        name: float(
            np.mean([score for key, score in zip(keys, scores, strict=True) if key[0] == name])
        )
        for name in complete
    }
    by_mean = max(means, key=lambda name: means[name], default=None)
    return Maximum(
        *keys[best],
        score=float(scores[best]),
        setting_by_mean=by_mean,
        mean=None if by_mean is None else means[by_mean],
        num_cells=len(keys),
    )


def _choose(scores: Answers) -> Answers:
    """Return for each seed the setting with the best mean over the other seeds, int64 [..., S].

    Args:
        scores: float64 [..., settings, S].
    """
    num_seeds = scores.shape[-1]
    if num_seeds > 1:
        scores = (scores.sum(axis=-1, keepdims=True) - scores) / (num_seeds - 1)
    best: Answers = scores.argmax(axis=-2)
    return best


def _find_rivals(means: Answers, deviations: Answers) -> Answers:
    """Return the settings whose mean is within four standard errors of the best, ascending.

    Args:
        means: [G].
        deviations: of the means in resamples, [B, G].
    """
    best = int(means.argmax())
    errors = (deviations - deviations[:, [best]]).std(axis=0)
    return np.flatnonzero(means[best] - means <= 4.0 * errors)


def _estimate_choice_variance(scores: Answers, deviations: Answers, chosen: Answers) -> float:
    """Return what choosing settings adds to the variance of the cross-fitted mean.

    An example that helps to choose a setting on its own half is scored, for the other half's
    choice, in the same half: the errors of the two halves are positively correlated, the more so
    the more the choice is a matter of luck. So is it with seeds. The whole procedure is repeated
    on resamples of examples and shifts of seeds, with all settings near the best taken to be
    equally good, and the variance with settings fixed is subtracted.

    Args:
        scores: of each half, setting and seed, [2, G, S].
        deviations: of the same in resamples, [B, 2, G, S].
        chosen: by half and seed, int64 [2, S].
    """
    num_seeds = scores.shape[2]
    full, resampled = scores.mean(axis=0), deviations.mean(axis=1)  # [G, S], [B, G, S]
    noise = deviations
    if num_seeds > 1:
        around_mean = resampled - resampled.mean(axis=2, keepdims=True)
        interaction = (around_mean**2).mean(axis=0).sum(axis=1) / (num_seeds - 1)  # [G]
        shift_variance = max(float((full.var(axis=1, ddof=1) - interaction).mean()), 0.0)
        shifts = np.random.default_rng(0).normal(size=resampled.shape)
        noise = deviations + math.sqrt(shift_variance) * shifts[:, None]
    rivals = _find_rivals(full.mean(axis=1), resampled.mean(axis=2))
    procedure, fixed = np.zeros(len(noise)), np.zeros(len(noise))
    for half in (0, 1):
        choice = rivals[_choose(noise[:, 1 - half][:, rivals])]  # [B, S]
        taken = np.take_along_axis(noise[:, half], choice[:, None], axis=1)[:, 0]
        procedure += taken.mean(axis=1) / 2.0
        fixed += noise[:, half, chosen[half], np.arange(num_seeds)].mean(axis=1) / 2.0
    return max(float(procedure.var() - fixed.var()), 0.0)


def select_cross_fitted(task: Scoring, cells: Cells, labels: Answers, seed: int = 0) -> CrossFit:
    """Choose the setting on one half of the examples, and take its predictions on the other; swap.

    Neither the examples nor the seed that are scored take part in the choice: for seed s on half
    h, the setting has the best mean over the *other* seeds on the other half. Examples alone do
    not suffice, since a lucky seed is lucky on both halves. With one seed, the setting is the best
    of that seed on the other half, and the score is that of these very weights.

    Only settings that have every seed of the grid can be chosen. The first in the order of `cells`
    wins a tie. Source of cross-fitting: Chernozhukov et al. (2018), section 3.1, where nuisance
    parameters stand for our setting.

    Args:
        task: how the examples are scored.
        cells: predictions of all models' cells on the same examples.
        labels: [n].
        seed: of the division in halves; the same for models that are compared.

    Raises:
        InputError: no setting has all seeds, or see `split_in_halves` and `metrics.check_answers`.
    """
    seeds, complete = _find_complete(cells)
    if not seeds or not complete:
        raise InputError(
            f"No setting of {len(cells)} has predictions for all seeds ({list(seeds)}): run the "
            "evaluation again to compute the cells that are missing."
        )
    halves = split_in_halves(task, labels, seed)
    grid = np.stack([[cells[name][each] for each in seeds] for name in complete])  # [G, S, n]
    rows = grid.reshape(-1, grid.shape[-1])
    shape = grid.shape[:2]
    scores, deviations = [], []
    for half in (0, 1):
        inside = halves == half
        part = replace(task, parts=None if task.parts is None else task.parts[inside])
        answers = rows[:, inside], labels[inside]
        scores.append(score_rows(part, *answers).reshape(shape))
        resampled = resample_scores(part, *answers, NUM_CHOICES, seed=half)
        deviations.append(resampled.reshape(-1, *shape))
    chosen = np.stack([_choose(scores[1]), _choose(scores[0])])  # [2, S]: by the other half
    predictions = np.stack(
        [
            np.where(halves == 0, grid[first, row], grid[second, row])
            for row, (first, second) in enumerate(chosen.T)
        ]
    )
    return CrossFit(
        scoring=divide_parts(task, halves),
        seeds=seeds,
        chosen=tuple((complete[first], complete[second]) for first, second in chosen.T),
        predictions=predictions,
        halves=halves,
        left_out=tuple(name for name in cells if name not in complete),
        choice_variance=_estimate_choice_variance(
            np.stack(scores), np.stack(deviations, axis=1), chosen
        ),
    )
