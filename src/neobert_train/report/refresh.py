"""Draws the report in a process of its own, so that training does not wait for it."""

import logging
import subprocess
import sys
from pathlib import Path

logger = logging.getLogger(__name__)

_LAST_DRAWING_SECONDS = 60


class ReportRefresher:
    """Starts at most one drawing at a time.

    Args:
        run_path: the run directory.
    """

    def __init__(self, run_path: Path) -> None:
        self._run_path = run_path
        self._process: subprocess.Popen[bytes] | None = None
        self._stale = False

    def refresh(self) -> None:
        """Draw the report, unless it is being drawn."""
        self._stale = self._process is not None and self._process.poll() is None
        if not self._stale:
            command = [sys.executable, "-m", "neobert_train.report", str(self._run_path)]
            self._process = subprocess.Popen(
                ["nice", *command] if sys.platform != "win32" else command,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )

    def finish(self) -> None:
        """Wait until the report shows the whole run."""
        if self._process is None:
            return
        try:
            self._process.wait(_LAST_DRAWING_SECONDS)
            if self._stale:
                self.refresh()
                self._process.wait(_LAST_DRAWING_SECONDS)
        except subprocess.TimeoutExpired:
            logger.warning("the report is still being drawn")
