"""What a run shows in the terminal: a live bar, or lines where there is no terminal."""

import sys
from typing import Any

from tqdm import tqdm

from neobert_train.terminal import escape_controls, print_message

_BAR = "step {n_fmt}/{total_fmt} {percentage:3.0f}% |{bar:24}|{postfix}, {elapsed} gone, {remaining} left"


class Console:
    """Progress of one run, shown by one process.

    Args:
        max_steps: steps of the whole run.
        step: where it continues.
        shown: whether this process shows anything.
        progress: whether to draw a live bar on a terminal.
    """

    def __init__(self, max_steps: int, step: int, shown: bool, progress: bool) -> None:
        self._shown, self._max_steps = shown, max_steps
        self._bar: Any = None
        self._live = shown and progress and sys.stderr.isatty()
        if self._live:
            self._bar = tqdm(
                total=max_steps, initial=step, bar_format=_BAR, dynamic_ncols=True, smoothing=0.1
            )

    def say(self, message: str) -> None:
        """Show a line, above the bar when there is one."""
        if self._bar is not None:
            self._bar.write(escape_controls(message), file=sys.stderr)
        elif self._shown:
            print_message(message)

    def advance(self) -> None:
        """One more step was taken."""
        if self._bar is not None:
            self._bar.update()

    def show(self, record: dict[str, Any], seconds_left: float) -> None:
        """Show the metrics of a logged step."""
        loss, speed = record["train/loss"], record["train/tokens_per_second"]
        if self._bar is not None:
            self._bar.set_postfix_str(f"loss {loss:.3f}, {speed:,.0f} tokens/s", refresh=False)
        else:
            self.say(
                f"step {record['step']}/{self._max_steps}  loss {loss:.4f}  "
                f"lr {record['train/learning_rate']:.2e}  {speed:,.0f} tokens/s  "
                f"{format_duration(seconds_left)} left"
            )

    def close(self) -> None:
        """Leave the bar as it stands."""
        if self._bar is not None:
            self._bar.close()


def format_duration(seconds: float) -> str:
    """Such as `1:02:03` or `2:05`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
