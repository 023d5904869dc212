"""Requests to stop, noted in a signal handler and acted on at the next step boundary."""

import signal
from types import FrameType

_STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


class StopRequest:
    """Remembers that SIGTERM, SIGINT or SIGUSR1 came; a second SIGINT ends at once."""

    def __init__(self) -> None:
        self.signal_name: str | None = None

    def listen(self) -> None:
        """Install the handlers; only in the main thread of a process."""
        for number in _STOP_SIGNALS:
            signal.signal(number, self._note)

    @property
    def requested(self) -> bool:
        """Whether a signal came."""
        return self.signal_name is not None

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal_name = signal.Signals(number).name
