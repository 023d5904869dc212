"""The learning rate at every corner, against the formula written out again."""

import itertools
import math

import pytest

from neobert_train.optim.schedule import compute_learning_rate

PAPER = (
    "trainer.max_steps=1000000", "scheduler=cosine", "scheduler.warmup_steps=2000",
    "optimizer.lr=6e-4",
)  # fmt: skip


def test_warmup_is_linear_from_the_first_step(make_config):
    config = make_config(*PAPER)
    assert compute_learning_rate(config, 1) == pytest.approx(3e-7)
    assert compute_learning_rate(config, 1000) == pytest.approx(3e-4)
    assert compute_learning_rate(config, 2000) == pytest.approx(6e-4)


def test_cosine_reaches_ten_percent_at_nine_tenths_and_stays(make_config):
    config = make_config(*PAPER)
    assert compute_learning_rate(config, 900_000) == pytest.approx(6e-5)
    assert compute_learning_rate(config, 900_001) == pytest.approx(6e-5)
    assert compute_learning_rate(config, 1_000_000) == pytest.approx(6e-5)


@pytest.mark.parametrize("step", [2001, 10_000, 451_000, 899_999])
def test_cosine_in_between(make_config, step):
    progress = (step - 2000) / 898_000
    expected = 6e-5 + 0.5 * (6e-4 - 6e-5) * (1 + math.cos(math.pi * progress))
    assert compute_learning_rate(make_config(*PAPER), step) == pytest.approx(expected, rel=1e-12)


def test_no_jump_anywhere(make_config):
    config = make_config("trainer.max_steps=1000", "scheduler.warmup_steps=50", "optimizer.lr=1.0")
    rates = [compute_learning_rate(config, step) for step in range(1, 1001)]
    largest = max(abs(later - earlier) for earlier, later in itertools.pairwise(rates))
    assert largest <= 1 / 50 + 1e-12


def test_linear_decay_ends_at_its_floor(make_config):
    config = make_config(
        "scheduler=linear", "trainer.max_steps=100", "scheduler.warmup_steps=10", "optimizer.lr=1.0"
    )
    assert compute_learning_rate(config, 55) == pytest.approx(0.5)
    assert compute_learning_rate(config, 100) == pytest.approx(0.0)


def test_constant_has_no_decay(make_config):
    config = make_config("scheduler=constant", "scheduler.warmup_steps=0", "optimizer.lr=6e-5")
    assert {compute_learning_rate(config, step) for step in range(1, 11)} == {6e-5}


def test_no_warmup_starts_at_the_peak(make_config):
    config = make_config("scheduler.warmup_steps=0", "optimizer.lr=1.0", "trainer.max_steps=1000")
    assert compute_learning_rate(config, 1) == pytest.approx(1.0, abs=1e-5)


def test_a_run_within_the_warmup_only_rises(make_config):
    config = make_config("trainer.max_steps=3", "scheduler.warmup_steps=3", "optimizer.lr=3.0")
    rates = [compute_learning_rate(config, step) for step in (1, 2, 3)]
    assert rates == pytest.approx([1.0, 2.0, 3.0])
