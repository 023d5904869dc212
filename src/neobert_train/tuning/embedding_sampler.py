"""Which rows make a batch: of one set of data, none of their texts twice."""

from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from sentence_transformers.base.sampler import (
    MultiDatasetDefaultBatchSampler,
    NoDuplicatesBatchSampler,
)
from torch.utils.data import BatchSampler, ConcatDataset

from neobert_train.errors import InputError


def build_rows_sampler(
    dataset: Any,
    batch_size: int,
    drop_last: bool,
    valid_label_columns: list[str] | None = None,
    generator: torch.Generator | None = None,
    seed: int = 0,
) -> NoDuplicatesBatchSampler:
    """Return the sampler of one set, with a generator of its own.

    The trainer hands all sets one generator, which each of them seeds when its pass begins, so that the
    order within a set would depend on when the others were drawn.
    """
    return NoDuplicatesBatchSampler(
        dataset, batch_size, drop_last, valid_label_columns, torch.Generator(), seed
    )


class WeightedSetSampler(MultiDatasetDefaultBatchSampler):
    """Draws the set of every batch with probability proportional to rows^exponent.

    A set that is used up begins again in another order. The draws depend on the seed and the number of
    the pass only, so that a run which continues skips what it has seen by drawing it again. The number
    is taken from the steps done, since not every version of transformers tells it to the sampler of a
    run that continues within a pass.

    Args:
        dataset, batch_samplers, generator, seed: as the trainer gives them.
        find_step: gives the optimiser steps done, one for each batch.
        exponent: 1 draws sets in proportion to their rows, 0 evenly.
        names: of the sets, for messages.
    """

    def __init__(
        self,
        dataset: ConcatDataset[Any],
        batch_samplers: list[BatchSampler],
        generator: torch.Generator | None = None,
        seed: int = 0,
        *,
        find_step: Callable[[], int],
        exponent: float,
        names: Sequence[str],
    ) -> None:
        super().__init__(dataset, batch_samplers, generator, seed)
        self._find_step, self._names = find_step, names
        self.probabilities = compute_probabilities(self._list_sizes(), exponent)

    def __len__(self) -> int:
        """Return the batches of a pass over all rows, wherever they are then drawn from."""
        return sum(len(sampler) for sampler in self.batch_samplers)

    def __iter__(self) -> Iterator[list[int]]:
        """Yield batches of row numbers within all sets joined.

        Raises:
            InputError: a set holds too few different texts for one batch.
        """
        all_before = self._find_step() // len(self)
        draws = np.random.default_rng([self.seed, all_before])
        starts = [0, *accumulate(self._list_sizes())]
        passes = [0] * len(self.batch_samplers)
        open_sets: dict[int, Iterator[list[int]]] = {}
        for _ in range(len(self)):
            number = int(draws.choice(len(self.probabilities), p=self.probabilities))
            batch = next(open_sets.get(number, iter(())), None)
            if batch is None:
                open_sets[number] = self._begin_pass(number, all_before, passes[number])
                passes[number] += 1
                batch = next(open_sets[number], None)
            if batch is None:
                raise InputError(
                    f"the set '{self._names[number]}' holds too few different texts for a batch of "
                    f"{self.batch_size} rows, none of which may share a text: write a lower batch_size"
                )
            yield [starts[number] + row for row in batch]

    def _list_sizes(self) -> list[int]:
        sets: list[Any] = self.dataset.datasets
        return [len(rows) for rows in sets]

    def _begin_pass(self, number: int, all_before: int, before: int) -> Iterator[list[int]]:
        """Return a new pass over a set: no two of a run are in the same order."""
        sampler: Any = self.batch_samplers[number]
        entropy = [self.seed, all_before, number, before]
        sampler.seed = int(np.random.SeedSequence(entropy).generate_state(1)[0])
        sampler.epoch = 0
        return iter(sampler)


def compute_probabilities(sizes: Sequence[int], exponent: float) -> np.ndarray:
    """Return size^exponent for each size, divided by their sum; float64 [num_sets]."""
    weights: np.ndarray = np.asarray(sizes, dtype=np.float64) ** exponent
    probabilities: np.ndarray = weights / weights.sum()
    return probabilities
