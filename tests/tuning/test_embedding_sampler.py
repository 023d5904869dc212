"""Batches come from one set each, as often as they should, and hold no text twice."""

import numpy as np
import pytest
from datasets import Dataset, DatasetDict
from torch.utils.data import ConcatDataset

from neobert_train.errors import InputError
from neobert_train.tuning.embedding_sampler import (
    WeightedSetSampler,
    build_rows_sampler,
    compute_probabilities,
)

SIZES = {"small": 40, "large": 360}


def make_sampler(sizes=SIZES, batch_size=4, exponent=0.5, seed=0, texts=None, step=0):
    sets = DatasetDict(
        {
            name: Dataset.from_dict(
                {
                    "anchor": [f"{name} {row}" for row in range(size)],
                    "positive": texts or [f"{name} answer {row}" for row in range(size)],
                }
            )
            for name, size in sizes.items()
        }
    )
    samplers = [build_rows_sampler(rows, batch_size, True, seed=seed) for rows in sets.values()]
    joined = ConcatDataset(list(sets.values()))
    return WeightedSetSampler(
        joined,
        samplers,
        seed=seed,
        find_step=lambda: step,
        exponent=exponent,
        names=list(sets),
    )


def test_probabilities_are_those_of_the_formula():
    assert compute_probabilities([100, 400], 0.5) == pytest.approx([1 / 3, 2 / 3])
    assert compute_probabilities([100, 400], 1.0) == pytest.approx([0.2, 0.8])
    assert compute_probabilities([100, 400], 0.0) == pytest.approx([0.5, 0.5])


def test_a_batch_is_of_one_set_which_is_drawn_as_often_as_it_should_be():
    drawn = []
    for number in range(20):
        sampler = make_sampler(step=100 * number)
        assert len(sampler) == 100
        batches = list(sampler)
        assert len(batches) == 100
        for batch in batches:
            is_large = {row >= SIZES["small"] for row in batch}
            assert len(is_large) == 1
            assert len(set(batch)) == 4
            drawn.append(is_large.pop())
    expected = 3 / 4  # sqrt(360) / (sqrt(360) + sqrt(40))
    spread = np.sqrt(expected * (1 - expected) / len(drawn))
    assert abs(np.mean(drawn) - expected) < 4 * spread


def test_a_single_set_is_passed_over_once_in_another_order_each_time():
    passes = []
    for step in (0, 9, 10, 19):
        sampler = make_sampler({"only": 40}, step=step)
        passes.append([row for batch in sampler for row in batch])
        assert sorted(passes[-1]) == list(range(40))
    assert passes[0] == passes[1], "a run that continues within a pass draws that pass again"
    assert passes[2] == passes[3]
    assert passes[0] != passes[2]


def test_a_set_that_is_used_up_begins_again_in_another_order():
    sampler = make_sampler({"tiny": 8, "large": 392}, exponent=0.0)
    of_tiny = [batch for batch in sampler if batch[0] < 8]
    assert len(of_tiny) > 8
    passes = [of_tiny[at] + of_tiny[at + 1] for at in range(0, len(of_tiny) - 1, 2)]
    assert all(sorted(rows) == list(range(8)) for rows in passes)
    assert len({tuple(rows) for rows in passes}) > len(passes) // 2


def test_batches_depend_on_the_seed_alone():
    assert list(make_sampler(seed=1)) == list(make_sampler(seed=1))
    assert list(make_sampler(seed=1)) != list(make_sampler(seed=2))


def test_no_text_is_twice_in_a_batch():
    texts = [f"answer {row % 10}" for row in range(40)]
    for batch in make_sampler({"only": 40}, texts=texts):
        assert len({texts[row] for row in batch}) == 4


def test_a_set_of_too_few_different_texts_is_refused():
    with pytest.raises(InputError, match="'only' holds too few different texts for a batch of 4"):
        list(make_sampler({"only": 40}, texts=["yes", "no"] * 20))
