"""Requests to stop, by a signal, the clock or a dead launcher, for the next step boundary."""

import os
import signal
import time
from types import FrameType

_STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
# Ending takes some seconds beside the write of the checkpoint; of a short limit, a share of it.
_MARGIN_SECONDS = 30.0
_MARGIN_SHARE = 0.05


class StopRequest:
    """Remembers that SIGTERM, SIGINT or SIGUSR1 came, and looks at the clock and for the launcher.

    Args:
        limit_seconds: after `started`, when the process has to be gone; None for no limit.
        started: on the monotonic clock.
    """

    def __init__(self, limit_seconds: float | None = None, started: float = 0.0) -> None:
        self._signal_name: str | None = None
        self._launcher: int | None = None
        self._limit_seconds, self._started = limit_seconds, started
        # Kept up to date by the training loop: what a stop takes beside the margin.
        self.seconds_to_stop = 0.0

    def listen(self, is_launched: bool) -> None:
        """Install the handlers; only in the main thread of a process.

        Args:
            is_launched: whether a launcher started this process, as one of several. When it is
                killed it cannot end them, and nobody else would.
        """
        self._launcher = os.getppid() if is_launched else None
        for number in _STOP_SIGNALS:
            signal.signal(number, self._note)

    @property
    def reason(self) -> str | None:
        """What asks to stop; None while nothing does."""
        if self._signal_name is None and self._limit_seconds is not None:
            margin = min(_MARGIN_SECONDS, _MARGIN_SHARE * self._limit_seconds)
            gone = time.monotonic() - self._started
            if gone + margin + self.seconds_to_stop >= self._limit_seconds:
                return "trainer.time_limit"
        if self._signal_name is None and self._launcher not in (None, os.getppid()):
            return "the end of its launcher"
        return self._signal_name

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self._signal_name is not None and number == signal.SIGINT:
            # A second Ctrl-C means now: the handler's default ends the process at once.
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            signal.raise_signal(signal.SIGINT)
        self._signal_name = signal.Signals(number).name
