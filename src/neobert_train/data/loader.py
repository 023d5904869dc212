"""The lanes of one process, read and tokenised ahead by worker processes."""

import os
import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from neobert_train.batch import Batch
from neobert_train.config.derived import find_divisors
from neobert_train.config.schema import TrainConfig
from neobert_train.data.lanes import LaneState, build_lane
from neobert_train.data.sources import Unit
from neobert_train.data.tokenization import load_tokenizer
from neobert_train.errors import InputError


@dataclass(frozen=True)
class _Failure:
    """An InputError on its way from a worker, which would wrap an exception in its traceback."""

    message: str


class LaneDataset(IterableDataset[Any]):
    """Batches of several lanes in turn; picklable, since worker processes are spawned."""

    def __init__(
        self, config: TrainConfig, units: Sequence[Unit], states: dict[int, dict[str, Any]]
    ) -> None:
        self.config, self.units, self.states = config, units, states

    def __iter__(self) -> Iterator[Batch | _Failure]:
        worker = get_worker_info()
        lanes = sorted(self.states)
        mine = lanes if worker is None else lanes[worker.id :: worker.num_workers]
        try:
            tokenizer = load_tokenizer(self.config.tokenizer.path)
            streams = [
                build_lane(self.config, self.units, tokenizer, lane).iter_batches(
                    LaneState.from_dict(self.states[lane])
                )
                for lane in mine
            ]
            while True:
                for stream in streams:
                    yield next(stream)
        except InputError as error:
            yield _Failure(str(error))


class StepLoader:
    """Gives the batches of this process step by step.

    Args:
        config: of the run.
        units: the source.
        states: lane state by lane, of the lanes this process serves.
        pin_memory: whether batches go to a GPU.
    """

    def __init__(
        self,
        config: TrainConfig,
        units: Sequence[Unit],
        states: dict[int, dict[str, Any]],
        pin_memory: bool = False,
    ) -> None:
        self.num_lanes = len(states)
        num_workers = choose_num_workers(config.data.num_workers, self.num_lanes)
        self._loader = DataLoader(
            LaneDataset(config, units, states),
            batch_size=None,
            num_workers=num_workers,
            # Forked copies of tokenizer threads deadlock; a fork server would outlive a killed run.
            multiprocessing_context="spawn" if num_workers else None,
            prefetch_factor=config.data.prefetch_micro_batches if num_workers else None,
            worker_init_fn=_prepare_worker if num_workers else None,
            pin_memory=pin_memory,
        )
        self._batches = iter(self._loader)

    def next_step(self) -> list[Batch]:
        """One batch of every lane of this process, in the order of the lanes.

        Raises:
            InputError: the source cannot be read on.
        """
        batches = []
        for _ in range(self.num_lanes):
            batch = next(self._batches)
            if isinstance(batch, _Failure):
                raise InputError(batch.message)
            batches.append(batch)
        return batches

    def close(self) -> None:
        """Let the worker processes end."""
        self._batches = iter(())


def choose_num_workers(wanted: int, num_lanes: int) -> int:
    """The most workers, up to `wanted`, that share the lanes evenly, so that they take turns."""
    return max((count for count in find_divisors(num_lanes) if count <= wanted), default=0)


def _prepare_worker(worker_id: int) -> None:
    # Launchers signal the whole process tree; the training process alone decides when to stop.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    torch.set_num_threads(1)


def initial_states(lanes: Sequence[int]) -> dict[int, dict[str, Any]]:
    """The states of lanes that have given nothing yet."""
    return {lane: LaneState().to_dict() for lane in lanes}
