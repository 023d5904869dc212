"""Requests to stop, by a signal, the clock or a dead launcher, for the next step boundary."""

import contextlib
import math
import os
import signal
import threading
import time
from pathlib import Path
from types import FrameType

import psutil

from neobert_train.errors import EXIT_FAILED
from neobert_train.signals import SAME_SECONDS, StopSignal, end_by, handle_stop_signals
from neobert_train.terminal import print_message

# Ending takes some seconds beside the write of the checkpoint; of a short limit, a share of it.
_MARGIN_SECONDS = 30.0
_MARGIN_SHARE = 0.05

LAUNCHER_ENDED = "the end of its launcher"


class StopRequest:
    """Remembers that a signal to stop came, and looks at the clock and for the launcher.

    Args:
        limit_seconds: after `started`, when the process has to be gone; None for no limit.
        started: on the monotonic clock.
    """

    def __init__(self, limit_seconds: float | None = None, started: float = 0.0) -> None:
        self._signal_name: str | None = None
        self._interrupted = -math.inf  # when the latest SIGINT came
        self._is_training = False
        self._limit_seconds, self._started = limit_seconds, started
        # Kept up to date by the training loop: what a stop takes beside the margin.
        self.seconds_to_stop = 0.0

    def listen(self, launcher: int | None) -> None:
        """Install the handlers; only in the main thread of a process.

        Until training begins a signal raises StopSignal.

        Args:
            launcher: which started this process as one of several. When it is killed it cannot end
                them, and nobody else would.
        """
        if launcher is not None:
            links = _find_launchers(launcher)
            threading.Thread(target=self._watch, args=(links,), daemon=True).start()
        handle_stop_signals(self._note)

    def begin_training(self) -> None:
        """Leave it to the training loop from now on to act on requests; until then they raise."""
        self._is_training = True

    @property
    def reason(self) -> str | None:
        """What asks to stop; None while nothing does."""
        if self._signal_name is None and self._limit_seconds is not None:
            margin = min(_MARGIN_SECONDS, _MARGIN_SHARE * self._limit_seconds)
            gone = time.monotonic() - self._started
            if gone + margin + self.seconds_to_stop >= self._limit_seconds:
                return "trainer.time_limit"
        return self._signal_name

    def _watch(self, launchers: list[tuple[psutil.Process, int]]) -> None:
        while not any(_is_orphan(*link) for link in launchers):
            time.sleep(1.0)
        if not self._is_training:  # perhaps waiting for processes that never come
            print_message("neobert_train: ends, since its launcher did")
            os._exit(EXIT_FAILED)
        self._signal_name = self._signal_name or LAUNCHER_ENDED

    def _note(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT:
            now = time.monotonic()
            if self._signal_name is not None and now - self._interrupted > SAME_SECONDS:
                end_by(number)  # a second Ctrl-C means now
            self._interrupted = now
        self._signal_name = signal.Signals(number).name
        if not self._is_training:  # there is nothing to save yet, and perhaps a long wait
            raise StopSignal(self._signal_name)


def _find_launchers(launcher: int) -> list[tuple[psutil.Process, int]]:
    """Return processes with the parents that they must keep: this one, and one that `deepspeed` started.

    `deepspeed` has a second launcher start the processes of a host, and hands no signal on to it.
    """
    links = [(psutil.Process(), launcher)]
    with contextlib.suppress(psutil.Error):  # nothing is known of it, as in a container
        host_launcher = psutil.Process(launcher)
        runner = psutil.Process(host_launcher.ppid())
        words = {Path(word).name for word in runner.cmdline()[:4]}
        if words & {"deepspeed", "deepspeed.launcher.runner"}:
            links.append((host_launcher, runner.pid))
    return links


def _is_orphan(process: psutil.Process, parent: int) -> bool:
    try:
        return bool(process.ppid() != parent)
    except psutil.NoSuchProcess:
        return True
