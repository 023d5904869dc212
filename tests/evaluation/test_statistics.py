"""Intervals and p-values, against scipy, formulas by hand and planted truths."""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats

from neobert_train.errors import InputError
from neobert_train.evaluation.metrics import Scoring
from neobert_train.evaluation.statistics import (
    average_estimates,
    compare_models,
    correct_holm,
    estimate_mean,
)

ACCURACY = Scoring(("accuracy",))


@pytest.fixture(scope="module")
def simulation():
    sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))
    try:
        import simulate_tables
    finally:
        sys.path.pop(0)
    return simulate_tables


def draw_answers(labels, accuracies, seed=0):
    wrong = np.random.default_rng(seed).random((len(accuracies), len(labels)))
    wrong = wrong >= np.array(accuracies)[:, None]
    return np.where(wrong, 1 - labels, labels)


LABELS = np.random.default_rng(9).integers(0, 2, 500)


def test_two_single_seeds_are_compared_as_by_a_paired_t_test():
    first, second = draw_answers(LABELS, [0.8, 0.74])
    compared = compare_models(ACCURACY, first[None], second[None], LABELS, 20_000)
    right = [(each == LABELS).astype(float) for each in (first, second)]
    expected = stats.ttest_rel(*right)
    assert compared.value == pytest.approx(right[0].mean() - right[1].mean())
    assert compared.p_value == pytest.approx(expected.pvalue, rel=0.15)
    low, high = expected.confidence_interval()
    assert (compared.low, compared.high) == pytest.approx((low, high), abs=0.002)
    assert not compared.over_seeds


def test_a_mean_of_one_seed_is_that_of_the_binomial_distribution():
    answers = draw_answers(LABELS, [0.9])
    estimate = estimate_mean(ACCURACY, answers, LABELS, 20_000)
    num_right = int((answers == LABELS).sum())
    exact = stats.binomtest(num_right, 500).proportion_ci(method="exact")
    assert (estimate.low, estimate.high) == pytest.approx((exact.low, exact.high), abs=0.004)


def test_an_interval_of_a_correlation_is_that_of_fishers_z():
    generator = np.random.default_rng(3)
    labels = generator.normal(size=800)
    answers = labels + 0.5 * generator.normal(size=800)
    estimate = estimate_mean(Scoring(("pearson",)), answers[None], labels, 10_000)
    expected = stats.pearsonr(answers, labels).confidence_interval()
    assert (estimate.low, estimate.high) == pytest.approx(tuple(expected), abs=0.003)


def test_the_variance_of_seeds_that_shift_is_that_over_seeds():
    # Seeds answer alike but for whole blocks: of 10,000 examples, hardly any variance is theirs.
    labels = np.zeros(10_000, np.int64)
    num_right = np.array([9000, 8200, 8800, 8500, 9300])
    answers = (np.arange(10_000) >= num_right[:, None]).astype(np.int64)
    estimate = estimate_mean(ACCURACY, answers, labels)
    expected = stats.sem(num_right / 10_000)
    assert estimate.standard_error == pytest.approx(expected, rel=0.05)
    assert estimate.degrees_of_freedom == pytest.approx(4, abs=0.6)
    assert estimate.over_seeds


def test_crossed_variances_are_those_of_the_analysis_of_variance():
    generator = np.random.default_rng(4)
    num_seeds, num_examples = 6, 3000
    chances = 0.75 + 0.2 * generator.choice([-1, 1], num_examples)
    shifts = 0.01 * np.array([[-1], [1]] * 3)
    right = generator.random((num_seeds, num_examples)) < chances + shifts
    labels = np.zeros(num_examples, np.int64)
    estimate = estimate_mean(ACCURACY, 1 - right.astype(np.int64), labels, 10_000)
    cells = right.astype(float)
    of_seeds = num_examples * cells.mean(axis=1).var(ddof=1)
    of_examples = num_seeds * cells.mean(axis=0).var(ddof=1)
    residual = cells - cells.mean(axis=1, keepdims=True) - cells.mean(axis=0) + cells.mean()
    of_residual = (residual**2).sum() / (num_seeds - 1) / (num_examples - 1)
    expected = (of_seeds + of_examples - of_residual) / cells.size
    assert estimate.standard_error**2 == pytest.approx(expected, rel=0.05)


def test_a_single_seed_borrows_the_variance_of_the_other_models_seeds():
    labels = np.zeros(10_000, np.int64)
    several = (np.arange(10_000) >= np.array([[9000], [8200], [8800]])).astype(np.int64)
    one = several[:1]
    compared = compare_models(ACCURACY, several, one, labels)
    variance = np.var([0.90, 0.82, 0.88], ddof=1)
    assert compared.over_seeds
    assert compared.standard_error**2 == pytest.approx(variance / 3 + variance, rel=0.05)
    assert compare_models(ACCURACY, one, several, labels).value == pytest.approx(-compared.value)


@pytest.mark.parametrize(
    ("metrics", "num_seeds"),
    [(("accuracy", "f1"), (1, 1)), (("matthews",), (5, 2)), (("macro_f1",), (1, 3)),
     (("pearson", "spearman"), (2, 2))],
)  # fmt: skip
def test_a_comparison_is_antisymmetric_and_nothing_is_undefined(metrics, num_seeds):
    task = Scoring(metrics, (np.arange(500) % 2))
    first = draw_answers(LABELS, [0.8] * num_seeds[0], 1)
    second = draw_answers(LABELS, [0.7] * num_seeds[1], 2)
    second[0] = 1  # a seed that failed to learn
    one, other = (
        compare_models(task, *pair, LABELS, 500) for pair in ((first, second), (second, first))
    )
    assert one.value == pytest.approx(-other.value)
    assert one.standard_error == pytest.approx(other.standard_error, rel=0.15)
    assert np.isfinite([one.low, one.high, one.p_value, one.degrees_of_freedom]).all()
    assert (one.p_value < 0.05) == (one.low > 0 or one.high < 0)


def test_equal_predictions_do_not_differ_and_perfect_ones_have_an_interval():
    answers = draw_answers(LABELS, [0.8, 0.8])
    same = compare_models(ACCURACY, answers, answers, LABELS)
    assert (same.value, same.p_value) == (0.0, 1.0)
    assert same.low < 0.0 < same.high
    perfect = estimate_mean(ACCURACY, LABELS[None], LABELS)
    assert (perfect.value, perfect.high) == (1.0, 1.0)
    assert 0.99 < perfect.low < 1.0
    few = compare_models(ACCURACY, LABELS[None, :3], 1 - LABELS[None, :3], LABELS[:3])
    assert few.value == 1.0
    assert few.p_value > 0.05


def test_models_must_have_answered_the_same_examples():
    with pytest.raises(InputError, match="answered 500 and 499 examples"):
        compare_models(ACCURACY, LABELS[None], LABELS[None, :499], LABELS)


def test_a_choice_of_settings_widens_the_interval():
    first, second = draw_answers(LABELS, [0.8, 0.74])[:, None]
    plain = compare_models(ACCURACY, first, second, LABELS)
    chosen = compare_models(ACCURACY, first, second, LABELS, choice_variance=1e-3)
    assert chosen.standard_error**2 == pytest.approx(plain.standard_error**2 + 1e-3)


def test_an_average_adds_the_variances_of_its_tasks():
    tasks = [compare_models(ACCURACY, *draw_answers(LABELS, [0.8, 0.7], seed)[:, None], LABELS)
             for seed in range(3)]  # fmt: skip
    average = average_estimates(tasks)
    assert average.value == pytest.approx(np.mean([task.value for task in tasks]))
    assert average.standard_error**2 == pytest.approx(
        sum(task.standard_error**2 for task in tasks) / 9
    )
    assert average.degrees_of_freedom == pytest.approx(3 * 499, rel=0.1)
    single = average_estimates(tasks[:1])
    assert single == replace(tasks[0], **{
        name: pytest.approx(getattr(tasks[0], name))
        for name in ("value", "low", "high", "standard_error", "degrees_of_freedom", "p_value")
    })  # fmt: skip


def test_holms_correction_by_hand():
    assert correct_holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert correct_holm([0.9, 0.8]) == [1.0, 1.0]
    assert correct_holm([]) == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holms_correction_is_that_of_stepping_down(p_values):
    corrected = correct_holm(p_values)
    for threshold in (0.01, 0.05, 0.2):
        rejected = 0
        for step, value in enumerate(sorted(p_values)):
            if value * (len(p_values) - step) >= threshold:
                break
            rejected += 1
        assert sum(value < threshold for value in corrected) == rejected


@pytest.mark.parametrize("metric", ["accuracy", "matthews", "spearman"])
@pytest.mark.parametrize("num_seeds", [1, 5])
def test_planted_differences_are_held_and_equal_models_not_told_apart(
    simulation, metric, num_seeds
):
    task = next(task for task in simulation.TASKS if task.metric == metric)
    if num_seeds == 1:
        task = replace(task, seed_shift=0.0)
    seeds, tables = (num_seeds, num_seeds), 60
    equal = simulation.repeat(simulation.compare_once, tables, task, 0.0, seeds)
    better = simulation.repeat(simulation.compare_once, tables, task, 0.05, seeds, seed=1)
    # The 1 % quantile of a binomial distribution around 95 of 100.
    least = 100.0 * stats.binom.ppf(0.01, tables, 0.95) / tables
    assert min(better["A - B held"], better["A held"], equal["A - B held"]) >= least
    assert equal["called different"] <= 100.0 - least
    assert better["called different"] > 2.0 * equal["called different"]


def test_intervals_of_selected_settings_hold_the_planted_difference(simulation):
    task = simulation.TASKS[0]
    means = simulation.repeat(simulation.select_once, 40, task, 0.0, 3)
    assert min(means["planted held"], means["chosen held"]) >= 85.0
    assert abs(means["cross-fitted"]) < 1.0
    assert means["best cell"] > 2.0


@given(
    arrays(np.int64, (2, 12), elements=st.integers(0, 1)),
    arrays(np.int64, 12, elements=st.integers(0, 1)),
    st.sampled_from(["accuracy", "f1", "macro_f1", "matthews"]),
)
@settings(max_examples=60, deadline=None)
def test_any_answers_of_two_seeds_have_an_interval_within_the_range(predictions, labels, metric):
    estimate = estimate_mean(Scoring((metric,)), predictions, labels, num_resamples=100)
    assert -1 <= estimate.low <= estimate.value <= estimate.high <= 1


def test_seeds_that_answer_all_alike_say_next_to_nothing_of_others():
    """Their errors cancel, so that the degrees of freedom are few and quantiles overflow."""
    labels = np.arange(60) % 2
    labels[:8] = 1
    predictions = np.stack([np.zeros(60), np.ones(60)]).astype(int)
    estimate = estimate_mean(ACCURACY, predictions, labels)
    assert 0 <= estimate.low < 0.05
    assert 0.95 < estimate.high <= 1
    difference = compare_models(ACCURACY, predictions, 1 - predictions, labels)
    assert -1 <= difference.low <= difference.high <= 1
    assert difference.p_value > 0.5
    mean = average_estimates([estimate, estimate])
    assert -1 <= mean.low <= mean.high <= 1
