"""The cells of a comparison, computed by any number of processes that share a folder."""

import dataclasses
import gc
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from neobert_train.errors import InputError
from neobert_train.evaluation.candidates import Candidate
from neobert_train.evaluation.cells import Cell, CellStore, Measurement
from neobert_train.evaluation.conditions import Conditions
from neobert_train.evaluation.tasks import SCORE, LabelledTask, Task

_SECONDS_BETWEEN_LOOKS = 0.5
_SHOWN_CHARACTERS = 500


@dataclass(frozen=True)
class Comparison:
    """Models by tasks.

    Attributes:
        candidates, tasks: what is compared on what.
        conditions: how numbers are computed.
        store: of the cells.
        starts: folder of encoders that other cells start from.
    """

    candidates: Sequence[Candidate]
    tasks: Sequence[Task]
    conditions: Conditions
    store: CellStore
    starts: Path

    def list_stages(self) -> list[list[tuple[Task, Candidate]]]:
        """Return what can be computed at once, and what only after that."""
        pairs = [(task, candidate) for task in self.tasks for candidate in self.candidates]
        later = [pair for pair in pairs if _starts_from_mnli(pair[0])]
        return [stage for stage in ([p for p in pairs if p not in later], later) if stage]

    def list_cells(self, task: Task, candidate: Candidate) -> list[Cell]:
        """Return the cells of a model on a task; none where they start from cells that all failed."""
        common = {"precision": "bf16" if self.conditions.bf16 else "fp32"}
        if _starts_from_mnli(task):
            start = self.find_start(candidate)
            if start is None:
                return []
            common["start"] = start.key
        return [
            Cell(
                candidate.digest,
                task.name,
                task.digest,
                {**settings, **common},
                seed,
                candidate.label,
            )
            for settings in task.list_settings()
            for seed in task.seeds
        ]

    def find_start(self, candidate: Candidate) -> Cell | None:
        """Return the best cell of MNLI; None where none has a score yet."""
        task = next(task for task in self.tasks if task.name == "mnli")
        best, best_score = None, -1.0
        for cell in self.list_cells(task, candidate):
            measurement = self.store.load(cell)
            score = -1.0 if measurement is None else measurement.values.get(SCORE, -1.0)
            if score > best_score:
                best, best_score = cell, score
        return best

    def compute(self, task: Task, candidate: Candidate, cell: Cell) -> Measurement:
        """Compute a cell; what goes wrong is in the measurement."""
        begin = time.monotonic()
        try:
            settings: dict[str, Any] = dict(cell.settings)
            marks = candidate.find_marks()
            if "start" in settings:
                settings["start_folder"] = str(self._write_start(candidate))
            measurement = task.measure(candidate, settings, cell.seed, self.conditions)
            if candidate.find_marks() != marks or marks != candidate.marks:
                raise InputError("files of the model changed meanwhile: start the command again")
        except Exception as error:
            measurement = Measurement(error=_describe(error))
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        return dataclasses.replace(measurement, seconds=round(time.monotonic() - begin, 3))

    def _write_start(self, candidate: Candidate) -> Path:
        """Return the encoder of the best cell of MNLI, trained again where it is not kept."""
        cell = self.find_start(candidate)
        assert cell is not None
        folder = self.starts / cell.key[:16]
        while not folder.is_dir():
            with self.store.claim(dataclasses.replace(cell, task="mnli-start")) as is_mine:
                if not is_mine:
                    time.sleep(_SECONDS_BETWEEN_LOOKS)
                elif not folder.is_dir():
                    task = next(task for task in self.tasks if task.name == "mnli")
                    assert isinstance(task, LabelledTask)
                    draft = folder.with_name(f".tmp-{folder.name}")
                    task.fine_tune(candidate, cell.settings, cell.seed, self.conditions, draft)
                    draft.rename(folder)
        return folder


def run_comparison(
    comparison: Comparison, retry_failed: bool, tell: Callable[[Cell, Measurement, bool], None]
) -> None:
    """Compute every cell that is missing, beside other processes that do the same.

    Returns when all are there, whoever computed them.

    Args:
        comparison: models by tasks.
        retry_failed: whether cells that failed before this call are computed again.
        tell: is called once for every cell, with whether this process has just computed it.
    """
    began = time.time()
    for stage in comparison.list_stages():
        pending = [
            (task, candidate, cell)
            for task, candidate in stage
            for cell in comparison.list_cells(task, candidate)
        ]
        while pending:
            left = []
            for task, candidate, cell in pending:
                found, is_new = _take(comparison, (task, candidate, cell), began, retry_failed)
                if found is None:
                    left.append((task, candidate, cell))
                else:
                    tell(cell, found, is_new)
            if len(left) == len(pending):
                time.sleep(_SECONDS_BETWEEN_LOOKS)
            pending = left


def _take(
    comparison: Comparison, work: tuple[Task, Candidate, Cell], began: float, retry_failed: bool
) -> tuple[Measurement | None, bool]:
    """Return the measurement of a cell, and whether it was computed here; None while another has it."""
    store, cell = comparison.store, work[2]

    def find() -> Measurement | None:
        found = store.load(cell)
        if found is not None and found.error and retry_failed and found.finished < began:
            return None
        return found

    found = find()
    if found is not None:
        return found, False
    with store.claim(cell) as is_mine:
        if not is_mine:
            return None, False
        found = find()  # another may have computed it since
        if found is not None:
            return found, False
        measurement = comparison.compute(*work)
        measurement = dataclasses.replace(measurement, finished=time.time())
        store.save(cell, measurement)
        return measurement, True


def iter_measured(
    comparison: Comparison, task: Task, candidate: Candidate
) -> Iterator[tuple[Cell, Measurement]]:
    """Yield the cells of a model on a task that have been computed, failed ones too."""
    for cell in comparison.list_cells(task, candidate):
        measurement = comparison.store.load(cell)
        if measurement is not None:
            yield cell, measurement


def _starts_from_mnli(task: Task) -> bool:
    return isinstance(task, LabelledTask) and task.starts_from_mnli


def _describe(error: Exception) -> str:
    text = str(error).strip() or type(error).__name__
    name = "" if isinstance(error, InputError) else f"{type(error).__name__}: "
    return (name + text)[:_SHOWN_CHARACTERS]
