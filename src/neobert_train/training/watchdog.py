"""Ends a process that hangs, after showing where."""

import faulthandler
import os
import threading
import time

from neobert_train.terminal import print_message

# The stacks are shown by a Python thread, which can say what hangs. Where a library keeps every
# Python thread from running, the interpreter's own timer shows them a little later.
_GRACE_SECONDS = 30.0
# The processes that wait for this one notice a little sooner or later, and would end with it before
# they have shown where they stand.
_OTHERS_SECONDS = 3.0


class Watchdog:
    """Watches that one thing after the other gets done in time.

    Args:
        rank: of this process.
        timeout_seconds: for each of them; None watches nothing.
    """

    def __init__(self, rank: int, timeout_seconds: float | None) -> None:
        self._rank, self._timeout = rank, timeout_seconds
        self._what, self._since = "", time.monotonic()
        self._closed = threading.Event()
        if timeout_seconds is not None:
            threading.Thread(target=self._watch, name="watchdog", daemon=True).start()

    def begin(self, what: str) -> None:
        """Watch `what` from now on, in place of what was watched before."""
        self._what, self._since = what, time.monotonic()
        if self._timeout is not None:
            faulthandler.dump_traceback_later(self._timeout + _GRACE_SECONDS, exit=True)

    def rest(self) -> None:
        """Watch nothing until something begins again."""
        self._what = ""
        faulthandler.cancel_dump_traceback_later()

    def close(self) -> None:
        """Watch no longer."""
        self._closed.set()
        faulthandler.cancel_dump_traceback_later()

    def _watch(self) -> None:
        assert self._timeout is not None
        while not self._closed.wait(min(1.0, self._timeout / 10)):
            if self._what and time.monotonic() - self._since > self._timeout:
                print_message(
                    f"rank {self._rank}: {self._what} has taken longer than {self._timeout:g} "
                    f"seconds (trainer.step_timeout_seconds); this is where it stands:"
                )
                faulthandler.dump_traceback(all_threads=True)
                time.sleep(_OTHERS_SECONDS)
                os._exit(1)
