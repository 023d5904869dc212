"""The files of a run: the only module that knows their names."""

import os
import re
from pathlib import Path
from typing import Any, BinaryIO, NotRequired

from pydantic import ConfigDict
from typing_extensions import TypedDict

from neobert_train.config.typed import read_run_json
from neobert_train.errors import InputError
from neobert_train.files import (
    TEMPORARY_PREFIX,
    clear_drafts,
    remove,
)
from neobert_train.lock import acquire_lock

# For processes of the start before that still write their last checkpoint.
_LOCK_WAIT_SECONDS = 60.0
_STEP_FOLDER = re.compile("step-([0-9]{8}|[1-9][0-9]{8,})")


class _Start(TypedDict):
    """What `describe_environment` gives for a start, and what earlier versions wrote."""

    __pydantic_config__ = ConfigDict(extra="allow")  # type: ignore[misc]
    started: str
    packages: NotRequired[dict[str, str | None]]
    revisions: NotRequired[dict[str, str | None]]


class RunDirectory:
    """Paths inside one run directory; nothing is created before `create`."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(os.path.expanduser(path))
        self.config_file = self.path / "config.yaml"
        self.metrics_file = self.path / "metrics.jsonl"
        self.report_file = self.path / "report.html"
        self.environment_file = self.path / "environment.json"
        self.heldout_file = self.path / "heldout.json"
        self.sources_file = self.path / "sources.json"
        self.network_file = self.path / "network.json"
        self.outcome_file = self.path / "outcome.json"
        self.lock_file = self.path / ".lock"
        self._files = (
            self.config_file,
            self.metrics_file,
            self.report_file,
            self.environment_file,
            self.heldout_file,
            self.sources_file,
            self.network_file,
            self.outcome_file,
        )
        self.export_folder = self.path / "export"
        self.checkpoints = self.path / "checkpoints"
        self.anomalies = self.path / "anomalies"
        self._lock: BinaryIO | None = None
        self._was_missing = False
        self.is_open = False  # by `create`: what happens from then on belongs to the run

    def claim(self, wait_seconds: float = _LOCK_WAIT_SECONDS) -> None:
        """Keep other processes from training here, until this one ends in whatever way.

        Nothing is done where there is no directory: `create` makes and claims it.

        Args:
            wait_seconds: how long to wait for a process that trains here, and may be about to end.

        Raises:
            InputError: another process trains here, or the lock cannot be written.
        """
        self._was_missing = not self.path.is_dir()
        if self._was_missing or self._lock is not None:
            return
        try:
            self._lock = acquire_lock(self.lock_file, wait_seconds, "output_dir")
        except OSError as error:
            raise self.explain(error) from error

    def release(self) -> None:
        """Let other processes train here."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def create(self) -> None:
        """Make the folders, claim them, and clear what an interrupted write or removal left.

        How the start before ended is forgotten.

        Raises:
            InputError: the folder cannot be made or written to, or another process came first.
        """
        was_missing = self._was_missing
        try:
            self.checkpoints.mkdir(parents=True, exist_ok=True)
            self.claim()
            if was_missing and self.config_file.exists():
                raise InputError(
                    f"another process has begun a run in {self.path} meanwhile: start again, which "
                    f"continues it, or write output_dir=... to choose another directory"
                )
            for leftover in self.checkpoints.glob(f"{TEMPORARY_PREFIX}*"):
                remove(leftover)
            clear_drafts(self.path, self._files)
            remove(self.outcome_file)
            self.is_open = True
        except OSError as error:
            raise self.explain(error) from error

    def explain(self, error: OSError) -> InputError:
        """Return what a user is told when a write into the directory has failed."""
        return InputError(
            f"the run directory {self.path} cannot be written to ({error.strerror}): make room or "
            f"fix its permissions, or write output_dir=... to choose another"
        )

    def holds_run(self) -> bool:
        """Return whether there is a run to continue: one that came to a checkpoint."""
        return bool(self.list_checkpoints())

    def read_environments(self) -> list[dict[str, Any]]:
        """Return the environments of the run, one for each of its starts.

        Raises:
            InputError: the file is damaged.
        """
        if not self.environment_file.exists():
            return []
        fix = "remove it; nothing but this list is lost"
        starts: list[dict[str, Any]] = read_run_json(self.environment_file, list[_Start], fix)
        for start in starts:
            start.pop("command", None)  # written by an earlier version; may hold a secret
        return starts

    def read_network(self) -> dict[str, Any] | None:
        """Return the configuration of the network that the run kept; None where it keeps none.

        Raises:
            InputError: the file is damaged.
        """
        if not self.network_file.exists():
            return None
        fix = "remove it, and it is read from model.name again"
        network: dict[str, Any] = read_run_json(self.network_file, dict[str, Any], fix)
        return network

    def checkpoint(self, step: int) -> Path:
        """Return the folder of the checkpoint after `step` steps."""
        return self.checkpoints / f"step-{step:08d}"

    def temporary_checkpoint(self, step: int) -> Path:
        """Return where that checkpoint is put together before it gets its name."""
        return self.checkpoints / f"{TEMPORARY_PREFIX}step-{step:08d}"

    def list_checkpoints(self) -> list[tuple[int, Path]]:
        """Return step and folder of every checkpoint that bears its final name, oldest first."""
        if not self.checkpoints.is_dir():
            return []
        matches = map(_STEP_FOLDER.fullmatch, os.listdir(self.checkpoints))
        steps = sorted(int(match[1]) for match in matches if match)
        return [(step, self.checkpoint(step)) for step in steps]

    def remove_checkpoint(self, step: int) -> None:
        """Remove a checkpoint; at no moment does a part of it bear its name."""
        doomed = self.checkpoints / f"{TEMPORARY_PREFIX}removed-{step:08d}"
        self.checkpoint(step).rename(doomed)
        remove(doomed)
