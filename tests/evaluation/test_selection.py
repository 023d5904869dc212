"""Settings are chosen on other examples and other seeds than they are scored on."""

import numpy as np
import pytest

from neobert_train.errors import InputError
from neobert_train.evaluation.metrics import Scoring, compute_score
from neobert_train.evaluation.selection import (
    find_maximum,
    select_cross_fitted,
    split_in_halves,
)

ACCURACY = Scoring(("accuracy",))


def draw_labels(num_examples, seed=0):
    return np.random.default_rng(seed).integers(0, 2, num_examples)


def answer(labels, accuracy, seed):
    """Predictions of which a share is right, drawn by chance."""
    wrong = np.random.default_rng(seed).random(len(labels)) >= accuracy
    return np.where(wrong, 1 - labels, labels)


def test_the_maximum_is_over_all_cells_and_the_best_mean_over_complete_settings():
    labels = np.zeros(10, np.int64)

    def right(count):
        return (np.arange(10) >= count).astype(np.int64)

    cells = {
        "a": {0: right(9), 1: right(3)},
        "b": {0: right(8), 1: right(7)},
        "failed": {1: right(10)},
    }
    maximum = find_maximum(ACCURACY, cells, labels)
    assert (maximum.setting, maximum.seed, maximum.score) == ("failed", 1, 1.0)
    assert (maximum.setting_by_mean, maximum.mean) == ("b", pytest.approx(0.75))
    assert maximum.num_cells == 5
    alone = find_maximum(ACCURACY, {"a": {0: right(9)}, "b": {1: right(2)}}, labels)
    assert (alone.setting, alone.setting_by_mean, alone.mean) == ("a", None, None)


@pytest.mark.parametrize("parts", [None, np.arange(301) % 2])
def test_halves_hold_equally_many_of_every_class_and_part(parts):
    labels = np.random.default_rng(1).integers(0, 3, 301)
    task = Scoring(("accuracy",), parts)
    halves = split_in_halves(task, labels)
    for part in (0, 1):
        inside = np.full(301, True) if parts is None else parts == part
        for label in range(3):
            counts = np.bincount(halves[inside & (labels == label)], minlength=2)
            assert abs(counts[0] - counts[1]) <= 2
    assert (halves == split_in_halves(task, labels)).all()
    assert (halves != split_in_halves(task, labels, seed=1)).any()


def test_halves_hold_similar_scores():
    labels = np.random.default_rng(2).random(400)
    halves = split_in_halves(Scoring(("spearman",)), labels)
    first, second = np.sort(labels[halves == 0]), np.sort(labels[halves == 1])
    assert np.abs(first - second).max() < 0.03
    assert 20 < np.sum(halves[np.argsort(labels)][::2]) < 180  # not every second one


def test_a_setting_is_chosen_on_the_other_half_by_the_other_seeds():
    labels = draw_labels(200)
    halves = split_in_halves(ACCURACY, labels)
    wrong = 1 - labels
    half_right = np.where(np.arange(200) % 2, labels, wrong)
    # `lucky` is right for seed 0 only; `first` and `second` are right on one half only.
    cells = {
        "lucky": {0: labels, 1: wrong, 2: wrong},
        "first": {seed: np.where(halves == 0, labels, half_right) for seed in range(3)},
        "second": {seed: np.where(halves == 1, labels, half_right) for seed in range(3)},
    }
    fit = select_cross_fitted(ACCURACY, cells, labels)
    assert fit.seeds == (0, 1, 2)
    assert fit.chosen == (("second", "first"),) * 3
    for row in fit.predictions:
        assert compute_score(fit.scoring, row, labels) == pytest.approx(0.5, abs=0.1)
    assert (
        fit.predictions[0] == np.where(halves == 0, cells["second"][0], cells["first"][0])
    ).all()


def test_a_score_is_the_mean_of_its_halves_in_each_part():
    labels = draw_labels(301)
    task = Scoring(("accuracy", "f1"), (np.arange(301) % 3 == 0).astype(np.int64))
    cells = {"only": {0: answer(labels, 0.8, 0)}}
    fit = select_cross_fitted(task, cells, labels)
    expected = []
    for half in (0, 1):
        inside = fit.halves == half
        part = Scoring(task.metrics, task.parts[inside])
        expected.append(compute_score(part, cells["only"][0][inside], labels[inside]))
    score = compute_score(fit.scoring, fit.predictions[0], labels)
    assert score == pytest.approx(np.mean(expected))


def test_only_settings_with_all_seeds_are_chosen():
    labels = draw_labels(100)
    cells = {
        "good": {0: answer(labels, 0.7, 0), 1: answer(labels, 0.7, 1)},
        "failed": {0: labels},
    }
    fit = select_cross_fitted(ACCURACY, cells, labels)
    assert fit.chosen == (("good", "good"), ("good", "good"))
    assert fit.left_out == ("failed",)
    with pytest.raises(
        InputError, match=r"No setting of 2 has predictions for all seeds \(\[0, 1\]"
    ):
        select_cross_fitted(ACCURACY, {"a": {0: labels}, "b": {1: labels}}, labels)
    with pytest.raises(InputError, match="needs more"):
        select_cross_fitted(Scoring(("accuracy",), np.arange(100)), cells, labels)
    with pytest.raises(InputError, match="No cell"):
        find_maximum(ACCURACY, {}, labels)


def test_a_choice_adds_variance_only_where_it_is_a_matter_of_luck():
    labels = draw_labels(300)
    shares = {"one": [0.7], "clear": [0.9, 0.5, 0.4], "luck": [0.7] * 6}
    added = {}
    for name, accuracies in shares.items():
        cells = {
            str(setting): {seed: answer(labels, share, 10 * setting + seed) for seed in range(3)}
            for setting, share in enumerate(accuracies)
        }
        added[name] = select_cross_fitted(ACCURACY, cells, labels).choice_variance
    assert added["one"] == added["clear"] == 0.0
    assert added["luck"] > 0.05 * 0.7 * 0.3 / 300


@pytest.mark.parametrize("num_seeds", [1, 4])
def test_the_maximum_overstates_and_the_cross_fitted_score_does_not(num_seeds):
    fitted, best = [], []
    for table in range(60):
        labels = draw_labels(200, table)
        cells = {
            str(setting): {
                seed: answer(labels, 0.7, [table, setting, seed]) for seed in range(num_seeds)
            }
            for setting in range(8)
        }
        fit = select_cross_fitted(ACCURACY, cells, labels)
        fitted += [compute_score(fit.scoring, row, labels) for row in fit.predictions]
        best.append(find_maximum(ACCURACY, cells, labels).score)
    assert np.mean(fitted) == pytest.approx(0.7, abs=0.012)
    assert np.mean(best) > 0.735
