"""Cells of an evaluation: each is computed once, whatever processes and hosts share their folder.

    OUTPUT/cells/version.json
    OUTPUT/cells/sst2/1f0c2a9be01d7c5592ad.json     the measurement of one cell, with a checksum
    OUTPUT/cells/sst2/1f0c2a9be01d7c5592ad.lock     while a process computes it

The name holds the beginning of the hash of all that a cell depends on, so that another weight,
example or hyper-parameter is another cell.
"""

import contextlib
import logging
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from neobert_train.config.typed import parse
from neobert_train.errors import InputError
from neobert_train.files import (
    DamagedFileError,
    clear_drafts,
    hash_json,
    is_at,
    read_checked_json,
    try_lock,
    write_checked_json,
)

logger = logging.getLogger(__name__)

# Raised with every change after which a cell would hold another number.
VERSION = 1
_CHARACTERS_OF_KEY = 32


@dataclass(frozen=True)
class Cell:
    """What one measurement depends on.

    Attributes:
        model: hash of the files of the model.
        task: its name.
        data: hash of the task's examples.
        settings: hyper-parameters, and what else decides the number.
        seed: of the new head, dropout and order of examples.
        label: of the model, for people; no part of what the cell is.
    """

    model: str
    task: str
    data: str
    settings: dict[str, Any]
    seed: int
    label: str = field(compare=False)

    @property
    def key(self) -> str:
        """Return the hash of all that the measurement depends on."""
        parts = {name: value for name, value in asdict(self).items() if name != "label"}
        return hash_json({**parts, "version": VERSION})

    @property
    def file(self) -> str:
        """Return the path of its measurement below the folder of cells."""
        return f"{self.task.replace('/', '--')}/{self.key[:_CHARACTERS_OF_KEY]}.json"


@dataclass(frozen=True)
class Measurement:
    """What came out of a cell.

    Attributes:
        values: by name; of a task with examples also its `score`.
        predictions: of every evaluation example, in their order: class ids or scores; None of a task
            without examples.
        seconds: that it took.
        finished: when, in seconds since 1970.
        error: why it failed; None where it did not.
    """

    values: dict[str, float] = field(default_factory=dict)
    predictions: list[float] | None = None
    seconds: float = 0.0
    finished: float = 0.0
    error: str | None = None


@dataclass(frozen=True)
class _Record:
    """The content of a cell's file."""

    cell: Cell
    measurement: Measurement


class CellStore:
    """The measurements in a folder, which several processes may read and write at once."""

    def __init__(self, folder: Path) -> None:
        """Open a folder of cells, made if it is missing.

        Raises:
            InputError: its cells are of another version, or it cannot be written.
        """
        self.folder = folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
            version = folder / "version.json"
            if not version.exists():
                write_checked_json(version, VERSION)
            found = read_checked_json(version)
        except OSError as error:
            raise InputError(
                f"{folder} cannot be written ({error.strerror}): write output=... to choose another folder"
            ) from error
        except DamagedFileError as error:
            raise InputError(f"{version}: {error}; remove it if the cells are yours") from error
        if found != VERSION:
            raise InputError(
                f"the cells in {folder} are of version {found}, and this is version {VERSION}: write "
                f"output=... to choose another folder"
            )

    def load(self, cell: Cell) -> Measurement | None:
        """Return the measurement of a cell; None where it was not computed, or its file is damaged."""
        path = self.folder / cell.file
        try:
            record = parse(_Record, read_checked_json(path))
        except DamagedFileError as error:
            if path.exists():
                logger.warning("%s is damaged (%s) and is computed again", path, error)
            return None
        except ValueError as error:
            logger.warning("%s is no cell (%s) and is computed again", path, error)
            return None
        measurement: Measurement = record.measurement
        return measurement if record.cell.key == cell.key else None

    def save(self, cell: Cell, measurement: Measurement) -> None:
        """Write the measurement of a cell, atomically."""
        path = self.folder / cell.file
        with self._explain():
            path.parent.mkdir(parents=True, exist_ok=True)
            write_checked_json(path, asdict(_Record(cell, measurement)), indent=None)

    @contextlib.contextmanager
    def _explain(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise InputError(
                f"{self.folder} cannot be written ({error.strerror}): make room or fix its permissions; the "
                f"same command goes on with the cells that are there"
            ) from error

    @contextlib.contextmanager
    def claim(self, cell: Cell) -> Iterator[bool]:
        """Keep a cell to this process within the block; yields False where another process has it."""
        path = (self.folder / cell.file).with_suffix(".lock")
        with self._explain():
            path.parent.mkdir(parents=True, exist_ok=True)
            file = _lock(path)
        try:
            if file is not None:
                clear_drafts(path.parent, [path.with_suffix(".json")])
            yield file is not None
        finally:
            if file is not None:
                path.unlink(missing_ok=True)  # while it is held, so that nobody waits for a name
                file.close()


def _lock(path: Path) -> BinaryIO | None:
    """Return a locked file at a path; None where another process has it."""
    while True:
        file = open(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666), "r+b", buffering=0)  # noqa: SIM115
        if not try_lock(file.fileno()):
            file.close()
            return None
        if is_at(file.fileno(), path):
            return file
        file.close()  # its holder has removed it meanwhile
