"""Signals that ask to stop, and what commands and worker processes make of them."""

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from types import FrameType
from typing import Any, TypeVar

Result = TypeVar("Result")

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)
# A terminal sends Ctrl-C to all processes of a command, and some of them hand it on to others: what
# comes within this time is one request.
SAME_SECONDS = 1.0


class StopSignal(KeyboardInterrupt):
    """A signal asked the command to stop; says which."""


def handle_stop_signals(handler: Callable[[int, FrameType | None], Any]) -> dict[int, Any]:
    """Install a handler for every signal that asks to stop; only in the main thread.

    SIGHUP stays ignored where it is: `nohup` asks for that.

    Returns:
        The handlers that were installed before, by signal.
    """
    return {
        number: signal.signal(number, handler)
        for number in STOP_SIGNALS
        if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN
    }


def raise_stop_signals() -> None:
    """Let the first signal to stop raise StopSignal in the main thread, and a second end at once."""
    first: float | None = None

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal first
        if first is None:
            first = time.monotonic()
            raise StopSignal(signal.Signals(number).name)
        if time.monotonic() - first > SAME_SECONDS:
            end_by(number)

    handle_stop_signals(handle)


def end_by(number: int) -> None:
    """End this process as a signal does that nobody handles."""
    signal.signal(number, signal.SIG_DFL)
    signal.raise_signal(number)


def call_interruptibly(function: Callable[[], Result]) -> Result:
    """Return what a long call into a library gives, in a thread, so that signals are handled.

    Python runs handlers in the main thread only, and not before a call into a library returns.
    """
    outcome: Future[Result] = Future()

    def call() -> None:
        try:
            outcome.set_result(function())
        except BaseException as error:
            outcome.set_exception(error)

    threading.Thread(target=call, daemon=True).start()
    return outcome.result()


def ignore_stop_signals() -> None:
    """Leave it to the parent process to stop this one; launchers signal whole process trees."""
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)


@contextlib.contextmanager
def hold_stop_signals() -> Iterator[None]:
    """Keep signals to stop from processes started within, until they call `ignore_stop_signals`."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
