"""The lanes of one process, read and tokenised ahead by worker processes.

Workers load no torch, which would take each a second to start and 200 MB of memory.
"""

import contextlib
import multiprocessing
import os
import queue
import signal
import threading
import traceback
import weakref
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from neobert_train.batch import Batch, MicroBatch
from neobert_train.config.schema import TrainConfig
from neobert_train.config.typed import parse
from neobert_train.data.lane.lane import Lane, LaneState
from neobert_train.data.sources import Unit
from neobert_train.data.workers import begin_worker, start_workers
from neobert_train.errors import InputError
from neobert_train.storage.local_files import allow_many_open_files
from neobert_train.tokenizers.loading import build_tokenizer

_POLL_SECONDS = 60.0
_KILLED_HINT = (
    ": killed, for example because memory ran out; write fewer data.num_workers or a smaller "
    "data.shuffle_window"
)


class WorkerError(RuntimeError):
    """A worker process ended, or met an error that is not the user's."""


@dataclass(frozen=True)
class _Failure:
    """An error on its way from a worker.

    Attributes:
        message: of an InputError, or the traceback of any other.
        is_input: whether it was an InputError.
    """

    message: str
    is_input: bool

    def to_error(self) -> Exception:
        return InputError(self.message) if self.is_input else WorkerError(self.message)


@dataclass(frozen=True)
class LaneReaders:
    """Several lanes, read in turn; picklable, since worker processes are spawned.

    Attributes:
        config: of the run.
        units: of each source, by name.
        states: where each lane begins, by lane in ascending order.
    """

    config: TrainConfig
    units: Mapping[str, Sequence[Unit]]
    states: dict[int, dict[str, Any]]

    def iter_batches(self) -> Iterator[MicroBatch[np.ndarray]]:
        """Yield one micro-batch of each lane, again and again."""
        allow_many_open_files()
        tokenizer = build_tokenizer(self.config.tokenizer)
        streams = [
            Lane(self.config, self.units, tokenizer, lane).iter_batches(parse(LaneState, state))
            for lane, state in self.states.items()
        ]
        while True:
            for stream in streams:
                yield next(stream)


class StepLoader:
    """Gives the batches of this process step by step.

    With workers, those of the next step are there before this one is computed.

    Args:
        config: of the run.
        units: of each source, by name.
        states: lane state by lane, of the lanes this process serves.
        pin_memory: whether batches go to a GPU.
    """

    def __init__(
        self,
        config: TrainConfig,
        units: Mapping[str, Sequence[Unit]],
        states: dict[int, dict[str, Any]],
        pin_memory: bool = False,
    ) -> None:
        lanes = sorted(states)
        num_readers = max(1, min(config.data.num_workers, len(lanes)))
        readers = [
            LaneReaders(config, units, {lane: states[lane] for lane in lanes[index::num_readers]})
            for index in range(num_readers)
        ]
        workers: list[Worker] = []
        if config.data.num_workers:
            workers = [Worker(reader, config.data.prefetch_micro_batches) for reader in readers]
        self._steps = _iter_steps(workers or readers, len(lanes), pin_memory)
        self._collector = _Collector(self._steps) if workers else None
        self._end_workers = weakref.finalize(self, _end, workers, self._collector)

    def next_step(self) -> list[Batch]:
        """Return one batch of every lane of this process, in the order of the lanes.

        Raises:
            InputError: the source cannot be read on.
            WorkerError: a worker process died.
        """
        while (batches := self.poll_step(_POLL_SECONDS)) is None:
            pass
        return batches

    def poll_step(self, timeout: float) -> list[Batch] | None:
        """Return what `next_step` gives; None if it is not there after `timeout` seconds.

        Without worker processes the batches are made here, and take as long as they take.
        """
        return self._collector.take(timeout) if self._collector else next(self._steps)

    def close(self) -> None:
        """End the worker processes at once; also happens when the program ends in any way."""
        self._end_workers()


def _iter_steps(
    sources: "Sequence[LaneReaders | Worker]", num_lanes: int, pin_memory: bool
) -> Iterator[list[Batch]]:
    streams = [source.iter_batches() for source in sources]
    while True:
        arrays = [next(streams[index % len(streams)]) for index in range(num_lanes)]
        batches = list(map(Batch.from_arrays, arrays))
        yield [batch.pin_memory() for batch in batches] if pin_memory else batches


class _Collector:
    """A thread that takes the next step's batches from the workers, and pins them, during this one.

    A step cannot begin before all its batches are there, since its loss is divided by the number of
    tokens that all of them predict.
    """

    def __init__(self, steps: Iterator[list[Batch]]) -> None:
        self._ready: queue.Queue[list[Batch] | BaseException] = queue.Queue(maxsize=1)
        self._thread = threading.Thread(target=self._collect, args=(steps,), daemon=True)
        self._thread.start()

    def take(self, timeout: float) -> list[Batch] | None:
        """Return the next step; None if it is not there after `timeout` seconds.

        Raises:
            InputError, WorkerError: what went wrong with it.
        """
        try:
            item = self._ready.get(timeout=timeout)
        except queue.Empty:
            return None
        if isinstance(item, BaseException):
            raise item
        return item

    def join(self) -> None:
        """Wait for the end of the thread, after that of the workers."""
        while self._thread.is_alive():
            with contextlib.suppress(queue.Empty):
                self._ready.get_nowait()
            self._thread.join(0.01)

    def _collect(self, steps: Iterator[list[Batch]]) -> None:
        try:
            for step in steps:
                self._ready.put(step)
        except BaseException as error:
            self._ready.put(error)


class Worker:
    """A process that reads lanes ahead and hands their batches over through a pipe.

    The training process holds only the reading end, and the worker only the writing end, so that
    each notices at once when the other is gone.
    """

    def __init__(self, readers: LaneReaders, prefetch: int) -> None:
        context = multiprocessing.get_context("spawn")  # forked tokenizer threads would deadlock
        self._receiver, sender = context.Pipe(duplex=False)
        self.process = context.Process(target=_serve, args=(readers, prefetch, sender), daemon=True)
        with start_workers():
            self.process.start()
        sender.close()

    def iter_batches(self) -> Iterator[MicroBatch[np.ndarray]]:
        """Yield the micro-batches as they come.

        Raises:
            InputError, WorkerError: what ended the worker.
        """
        while True:
            try:
                item = self._receiver.recv()
            except (EOFError, OSError):
                self.process.join()
                code = self.process.exitcode
                hint = _KILLED_HINT if code == -signal.SIGKILL else ""
                raise WorkerError(f"a data worker ended with exit code {code}{hint}") from None
            if isinstance(item, _Failure):
                raise item.to_error()
            yield item


def _end(workers: Sequence[Worker], collector: _Collector | None) -> None:
    for worker in workers:
        worker.process.kill()
    for worker in workers:
        worker.process.join()
    if collector is not None:
        collector.join()


def _serve(readers: LaneReaders, prefetch: int, sender: Connection) -> None:
    """Do what a worker process does: one thread reads and tokenises, this one hands over."""
    begin_worker()
    # Locks that libraries make here then leave nothing to clean up when this process is killed.
    multiprocessing.set_start_method("fork", force=True)
    ready: queue.Queue[Any] = queue.Queue(maxsize=prefetch)
    threading.Thread(target=_read_ahead, args=(readers, ready), daemon=True).start()
    try:
        while not isinstance(item := ready.get(), _Failure):
            sender.send(item)
        sender.send(item)
    except BrokenPipeError:
        os._exit(0)  # nobody reads any more


def _read_ahead(readers: LaneReaders, ready: "queue.Queue[Any]") -> None:
    try:
        for batch in readers.iter_batches():
            ready.put(batch)
    except InputError as error:
        ready.put(_Failure(str(error), is_input=True))
    except BaseException:
        ready.put(_Failure(f"a data worker failed:\n{traceback.format_exc()}", is_input=False))
