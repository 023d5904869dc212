"""The files of a run: the only module that knows their names."""

import fcntl
import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, TypeVar

from neobert_train.errors import InputError

Value = TypeVar("Value")

_STEP_FOLDER = re.compile(r"step-(\d{8,})")
_TEMPORARY_PREFIX = ".tmp-"


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
        self.export_folder = self.path / "export"
        self.checkpoints = self.path / "checkpoints"
        self.anomalies = self.path / "anomalies"

    def create(self) -> None:
        """Make the folders and clear what an interrupted write or removal left.

        Raises:
            InputError: the folder cannot be made or written to.
        """
        try:
            self.checkpoints.mkdir(parents=True, exist_ok=True)
            for leftover in self.checkpoints.glob(f"{_TEMPORARY_PREFIX}*"):
                shutil.rmtree(leftover)
        except OSError as error:
            raise self.explain(error) from error

    def explain(self, error: OSError) -> InputError:
        """What a user is told when a write into the directory has failed."""
        return InputError(
            f"the run directory {self.path} cannot be written to ({error.strerror}): make room or "
            f"mend its permissions, or write output_dir=... to choose another"
        )

    def claim(self) -> None:
        """Keep other processes from training here, until this one ends in whatever way.

        Raises:
            InputError: another process holds the lock.
        """
        try:
            file: IO[str] = open(self.path / ".lock", "w", encoding="utf-8")  # noqa: SIM115
        except OSError as error:
            raise self.explain(error) from error
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            file.close()
            raise InputError(
                f"another process is training in {self.path}: stop it, or write output_dir=... "
                f"to choose another run directory"
            ) from error
        self._lock = file

    def holds_run(self) -> bool:
        """Whether there is a run to continue: one that came to a checkpoint."""
        return bool(self.list_checkpoints())

    def read_environments(self) -> list[dict[str, Any]]:
        """With what the run was carried out, one entry for each of its starts.

        Raises:
            InputError: the file is damaged.
        """
        if not self.environment_file.exists():
            return []
        return read_json(self.environment_file, list, "remove it; nothing but this list is lost")

    def checkpoint(self, step: int) -> Path:
        """The folder of the checkpoint after `step` steps."""
        return self.checkpoints / f"step-{step:08d}"

    def temporary_checkpoint(self, step: int) -> Path:
        """Where that checkpoint is put together before it gets its name."""
        return self.checkpoints / f"{_TEMPORARY_PREFIX}step-{step:08d}"

    def list_checkpoints(self) -> list[tuple[int, Path]]:
        """Step and folder of every checkpoint that bears its final name, oldest first."""
        if not self.checkpoints.is_dir():
            return []
        named = ((_STEP_FOLDER.fullmatch(path.name), path) for path in self.checkpoints.iterdir())
        return sorted((int(match[1]), path) for match, path in named if match)

    def remove_checkpoint(self, step: int) -> None:
        """Remove a checkpoint; at no moment does a part of it bear its name."""
        doomed = self.checkpoints / f"{_TEMPORARY_PREFIX}removed-{step:08d}"
        self.checkpoint(step).rename(doomed)
        shutil.rmtree(doomed)


def write_atomically(path: Path, text: str) -> None:
    """Write a whole file or nothing, also when the process is killed half-way."""
    temporary = path.with_name(f"{_TEMPORARY_PREFIX}{path.name}")
    with open(temporary, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    sync_folder(path.parent)


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file atomically."""
    write_atomically(path, to_json(value))


def read_json(path: Path, kind: type[Value], mend: str) -> Value:
    """What `write_json` wrote.

    Args:
        path: the file.
        kind: `dict` or `list`.
        mend: what a user can do about a damaged one.

    Raises:
        InputError: it cannot be read.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(value, kind):
            raise ValueError(f"it holds a {type(value).__name__}")
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read ({error}): {mend}") from error
    return value


def to_json(value: Any) -> str:
    """The content of a JSON file, indented for people to read."""
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"


def sync_folder(folder: Path) -> None:
    """Make renames within a folder survive a power loss."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_metrics(path: Path) -> Iterator[dict[str, Any]]:
    """The lines of a metrics file; a last line that was cut off by a crash is left out."""
    if not path.exists():
        return
    with open(path, encoding="utf-8") as file:
        for line in file:
            try:
                yield json.loads(line)
            except json.JSONDecodeError:
                return
