"""Ends a process whose run has lost another one, also where it waits for a GPU.

A collective of gloo fails as soon as a process is gone. A kernel of NCCL waits on: it notices on the way
to another host only, torch then takes a minute to end the process, and else half an hour. Meanwhile
Python runs no handler of signals in the main thread, but it does run other threads.
"""

import os
import threading
from collections.abc import Callable

from neobert_train.distributed import Collectives
from neobert_train.errors import EXIT_FAILED
from neobert_train.run.directory import RunDirectory
from neobert_train.run.outcome import write_outcome
from neobert_train.terminal import print_message

# Each process watches few others, so that few threads wait; news of a loss takes a step or two more.
_BRANCHES = 8
# The main thread may have noticed too, and says better why it ends.
_GRACE_SECONDS = 3.0


class PeerWatch:
    """Watches that the other processes live, from now on until it is closed.

    Its threads wait inside torch for as long as the process lives, so that it has to end by `os._exit`.

    Args:
        collectives: of the run.
        run: into which the main process writes why it ends.

    Attributes:
        finish: called before this process is ended.
    """

    def __init__(self, collectives: Collectives, run: RunDirectory) -> None:
        self._rank, self._run = collectives.world.rank, run
        self.finish: Callable[[], None] = lambda: None
        self._closed = threading.Event()
        for other in list_neighbours(self._rank, collectives.world.world_size):
            threading.Thread(
                target=self._watch, args=(collectives, other), name=f"watch {other}", daemon=True
            ).start()

    def close(self) -> None:
        """Watch no longer: the main thread ends the process by itself."""
        self._closed.set()

    def _watch(self, collectives: Collectives, other: int) -> None:
        collectives.wait_until_lost(other)
        if self._closed.wait(_GRACE_SECONDS):
            return
        reason = f"ends, since another process of the run did (rank {other})"
        print_message(f"rank {self._rank}: {reason}")
        try:
            self.finish()
            if self._rank == 0 and self._run.is_open:
                write_outcome(self._run, EXIT_FAILED, reason)
        finally:
            os._exit(EXIT_FAILED)


def list_neighbours(rank: int, world_size: int) -> list[int]:
    """Return the ranks next to one in a tree that spans all."""
    first = _BRANCHES * rank + 1
    children = range(min(first, world_size), min(first + _BRANCHES, world_size))
    return [*([(rank - 1) // _BRANCHES] if rank else []), *children]
