"""Worker processes that outlive neither their parent process nor what it asks of them."""

import contextlib
import multiprocessing
import os
import threading
from collections.abc import Iterator
from multiprocessing import resource_tracker

from neobert_train.signals import hold_stop_signals, ignore_stop_signals
from neobert_train.terminal import protect_streams, show_warnings


@contextlib.contextmanager
def start_workers() -> Iterator[None]:
    """Keep signals to stop from the processes started within, which call `begin_worker` first."""
    # Python's own helper process, which starts with the first worker, gets the same protection; to
    # start it lets the signals through again.
    with hold_stop_signals():
        resource_tracker.ensure_running()
    with hold_stop_signals():
        yield


def begin_worker() -> None:
    """Prepare a spawned process: only its parent stops it, and it ends soon after its parent."""
    ignore_stop_signals()
    protect_streams()
    show_warnings()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None, "not a worker process"
    parent.join()
    os._exit(0)
