"""What a run shows in the terminal: what it is doing, and its progress as a live bar or as lines."""

import sys
import threading
import time
from typing import Any

from tqdm import tqdm

from neobert_train.terminal import escape_controls, print_message

_BAR = "step {n_fmt}/{total_fmt} {percentage:3.0f}% |{bar:24}|{postfix}, {elapsed} gone, {remaining} left"
# Nobody should have to wait longer than this for a sign of life.
_LONGEST_SILENCE_SECONDS = 30.0
_REFRESH_SECONDS = 1.0


class Console:
    """Progress of one run, shown by one process.

    On a terminal the steps move a live bar. Elsewhere there is a line for the first step of a start
    and for every logged one. Whatever the run is busy with, a line comes every 30 seconds.

    Args:
        max_steps: steps of the whole run.
        shown: whether this process shows anything.
        progress: whether to draw a live bar on a terminal.
    """

    def __init__(self, max_steps: int, shown: bool, progress: bool) -> None:
        self._shown, self._max_steps = shown, max_steps
        self._is_live = shown and progress and sys.stderr.isatty()
        self._bar: Any = None
        self._step = self._num_advanced = 0
        self._seconds_per_step = 0.0
        self._activity, self._since = "starting", time.monotonic()
        self._last_line = time.monotonic()
        self._closed = threading.Event()
        if shown:
            threading.Thread(target=self._break_silence, name="console", daemon=True).start()

    def announce(self, activity: str) -> None:
        """Show what the run is doing from now on."""
        self.note(activity)
        self.say(f"{activity} ...")

    def note(self, activity: str) -> None:
        """Remember what the run is doing from now on, and show it only if it takes long."""
        self._activity, self._since = activity, time.monotonic()

    def say(self, message: str) -> None:
        """Show a line, above the bar when there is one."""
        self._last_line = time.monotonic()
        if self._bar is not None:
            self._bar.write(escape_controls(message), file=sys.stderr)
        elif self._shown:
            print_message(message)

    def begin_steps(self, step: int) -> None:
        """Show steps from now on, the ones after `step`."""
        self._step = step
        if self._is_live:
            self._bar = tqdm(
                total=self._max_steps, initial=step, bar_format=_BAR, dynamic_ncols=True, smoothing=0.1
            )  # fmt: skip

    def advance(self, tokens: int, seconds: float, record: dict[str, Any] | None = None) -> None:
        """Count a step, and show it if it is logged, the first one, or the first one for long.

        Args:
            tokens, seconds: of this step.
            record: its metrics, if it is logged.
        """
        self._step += 1
        self._num_advanced += 1
        # The first step sets kernels up, and says nothing about the others.
        share = 1.0 if self._num_advanced <= 2 else 0.1
        self._seconds_per_step += share * (seconds - self._seconds_per_step)
        speed = tokens / seconds
        if record:
            speed, loss = record["train/tokens_per_second"], record["train/loss"]
        if self._bar is not None:
            if record:
                self._bar.set_postfix_str(f"loss {loss:.3f}, {speed:,.0f} tokens/s", refresh=False)
            self._bar.update()
        elif record or self._num_advanced == 1 or self._is_silent():
            details = f"loss {loss:.4f}  lr {record['train/learning_rate']:.2e}  " if record else ""
            self.say(
                f"step {self._step}/{self._max_steps}  {details}{speed:,.0f} tokens/s  "
                f"{self._format_left()}"
            )

    def close(self) -> None:
        """Leave the bar as it stands, and show no more signs of life."""
        self._closed.set()
        if self._bar is not None:
            self._bar.close()

    def _format_left(self) -> str:
        steps_left = max(0, self._max_steps - self._step)
        return f"{format_duration(steps_left * self._seconds_per_step)} left"

    def _is_silent(self) -> bool:
        return time.monotonic() - self._last_line >= _LONGEST_SILENCE_SECONDS

    def _break_silence(self) -> None:
        while not self._closed.wait(_REFRESH_SECONDS):
            if self._bar is not None:
                self._bar.refresh()  # its clock moves on during a long step as well
            elif self._is_silent():
                self.say(
                    f"{self._activity}: {format_duration(time.monotonic() - self._since)} so far"
                )


def format_duration(seconds: float) -> str:
    """Return seconds as `1:02:03` or `2:05`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
