"""The learning rate of every step, against the formulas written out again and against transformers."""

import itertools
import math

import pytest
import torch
from transformers import get_scheduler

from neobert_train.config.choices import (
    CHOICES,
    ConstantConfig,
    CosineConfig,
    DecayShape,
    LinearConfig,
    WSDConfig,
)
from neobert_train.optim.schedules import compute_learning_rate

PAPER = CosineConfig(warmup_steps=2000)
MILLION = 1_000_000


def list_rates(scheduler, max_steps):
    return [compute_learning_rate(scheduler, step, max_steps) for step in range(1, max_steps + 1)]


def list_reference(name, warmup_steps, max_steps, **settings):
    """The multipliers of transformers, whose first step is step 0."""
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    schedule = get_scheduler(name, optimizer, warmup_steps, max_steps, settings or None)
    (multiply,) = schedule.lr_lambdas
    return [multiply(step) for step in range(1, max_steps + 1)]


def test_warmup_is_linear_from_the_first_step():
    rates = [compute_learning_rate(PAPER, step, MILLION, peak=6e-4) for step in (1, 1000, 2000)]
    assert rates == pytest.approx([3e-7, 3e-4, 6e-4])


@pytest.mark.parametrize("step", [900_000, 900_001, MILLION])
def test_cosine_reaches_ten_percent_at_nine_tenths_and_stays(step):
    assert compute_learning_rate(PAPER, step, MILLION, peak=6e-4) == pytest.approx(6e-5)


@pytest.mark.parametrize("step", [2001, 10_000, 451_000, 899_999])
def test_cosine_in_between(step):
    progress = (step - 2000) / 898_000
    expected = 6e-5 + 0.5 * (6e-4 - 6e-5) * (1 + math.cos(math.pi * progress))
    rate = compute_learning_rate(PAPER, step, MILLION, peak=6e-4)
    assert rate == pytest.approx(expected, rel=1e-12)


REFERENCES = {
    "cosine to zero": (
        CosineConfig(warmup_steps=7, decay_fraction=1.0, final_lr_ratio=0.0),
        list_reference("cosine", 7, 100),
    ),
    "cosine to a floor": (
        CosineConfig(warmup_steps=7, decay_fraction=1.0, final_lr_ratio=0.2),
        list_reference("cosine_with_min_lr", 7, 100, min_lr_rate=0.2),
    ),
    "linear to zero": (LinearConfig(warmup_steps=7), list_reference("linear", 7, 100)),
    "constant": (ConstantConfig(warmup_steps=7), list_reference("constant_with_warmup", 7, 100)),
    "wsd": (
        WSDConfig(warmup_steps=7, decay_start=70, decay_shape=DecayShape.linear),
        list_reference("warmup_stable_decay", 7, 100, num_decay_steps=30, decay_type="linear"),
    ),
    "wsd to a floor": (
        WSDConfig(warmup_steps=7, decay_start=70, final_lr_ratio=0.2),
        list_reference(
            "warmup_stable_decay", 7, 100, num_decay_steps=30, decay_type="1-sqrt", min_lr_ratio=0.2
        ),
    ),
    "wsd from 80 %": (
        WSDConfig(warmup_steps=0),
        list_reference("warmup_stable_decay", 0, 100, num_decay_steps=20, decay_type="1-sqrt"),
    ),
}


@pytest.mark.parametrize("case", REFERENCES)
def test_every_step_has_the_rate_of_transformers(case):
    scheduler, expected = REFERENCES[case]
    rates = list_rates(scheduler, len(expected))
    if case == "wsd to a floor":  # there the warm-up begins at the floor too
        rates, expected = rates[6:], expected[6:]
    assert rates == pytest.approx(expected, abs=1e-12)


def test_stable_decay_keeps_the_peak_and_ends_at_its_floor():
    rates = list_rates(WSDConfig(warmup_steps=10, decay_start=60, final_lr_ratio=0.1), 100)
    assert set(rates[9:60]) == {1.0}
    assert rates[60] < 1.0
    assert rates[60 + 9] == pytest.approx(0.1 + 0.9 * (1 - math.sqrt(10 / 40)))
    assert rates[-1] == pytest.approx(0.1)


def test_a_longer_stable_phase_has_the_same_rates_until_the_decay():
    short = list_rates(WSDConfig(warmup_steps=10, decay_start=60), 100)
    long = list_rates(WSDConfig(warmup_steps=10, decay_start=900), 1000)
    assert long[:60] == short[:60]


@pytest.mark.parametrize("kind", CHOICES["scheduler"])
def test_no_kind_jumps_or_leaves_the_range(kind):
    scheduler = CHOICES["scheduler"][kind](warmup_steps=50)
    rates = list_rates(scheduler, 1000)
    falls = kind != "wsd"  # a square root falls steeply at first
    largest = max(abs(later - earlier) for earlier, later in itertools.pairwise(rates))
    assert largest <= (1 / 50 + 1e-12 if falls else math.sqrt(1 / 200) + 1e-12)
    assert min(rates) >= 0
    assert max(rates) == 1.0


@pytest.mark.parametrize("kind", CHOICES["scheduler"])
def test_the_rate_is_the_peak_times_a_multiplier(kind):
    scheduler = CHOICES["scheduler"][kind](warmup_steps=5)
    for step in range(1, 101):
        multiplier = compute_learning_rate(scheduler, step, 100)
        rate = compute_learning_rate(scheduler, step, 100, peak=3e-4)
        assert rate == pytest.approx(3e-4 * multiplier, rel=1e-12)


def test_no_warmup_starts_at_the_peak():
    rate = compute_learning_rate(CosineConfig(warmup_steps=0), 1, 1000)
    assert rate == pytest.approx(1.0, abs=1e-5)


def test_a_run_within_the_warmup_only_rises():
    rates = [
        compute_learning_rate(CosineConfig(warmup_steps=3), step, 3, 3.0) for step in (1, 2, 3)
    ]
    assert rates == pytest.approx([1.0, 2.0, 3.0])
