"""What a comparison has come to: a number for every model and task, and what it is worth."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from neobert_train.config.typed import parse
from neobert_train.errors import InputError
from neobert_train.evaluation.candidates import Candidate
from neobert_train.evaluation.cells import VERSION, Cell, Measurement
from neobert_train.evaluation.comparison import Comparison, iter_measured
from neobert_train.evaluation.metrics import Scoring
from neobert_train.evaluation.selection import (
    Cells,
    divide_parts,
    find_maximum,
    select_cross_fitted,
    split_in_halves,
)
from neobert_train.evaluation.statistics import (
    LEVEL,
    Estimate,
    average_estimates,
    compare_models,
    correct_holm,
    estimate_mean,
)
from neobert_train.evaluation.tasks import LabelledTask, Task
from neobert_train.files import DamagedFileError, parse_json, read_text

MEAN = "mean"
RESULTS_FILE = "results.json"
PROTOCOLS = {
    "cross-fitted": "the setting is chosen on one half of the evaluation examples (and on the other "
    "seeds) and scored on the other half, and the halves are swapped; the mean over seeds",
    "direct": "there is one setting and nothing to choose",
    "mean": "the mean of the tasks with intervals",
    "mteb": "the main score as the library mteb computes it",
    "measured": "a measurement without examples that could be resampled",
}


@dataclass(frozen=True)
class Result:
    """A model on a task.

    Attributes:
        model, task: their labels; of a task with several lengths `TASK@LENGTH`.
        protocol: a key of PROTOCOLS; None where there is no number.
        value: the score as a fraction, or the value of a measurement.
        low, high: its 95 % interval, None of a measurement.
        over_seeds: whether the interval covers other seeds, or only other examples.
        maximum: score of the best cell, as papers report it; None where there was nothing to choose.
        best: hyper-parameters and seed of that cell, as far as they differ within the grid.
        ties: whether it is the best of its column, or not told apart from the best.
        difference: best model's score less this one's, with its interval and corrected p-value.
        cells, missing: numbers of cells computed and not computed.
        errors: why cells failed.
        is_tuned: whether a model was fine-tuned for it, and all evaluation examples are scored.
        stops_early: whether the best evaluation of each training counts, which nothing corrects.
        examples: how many were scored; None of a measurement.
    """

    model: str
    task: str
    protocol: str | None = None
    value: float | None = None
    low: float | None = None
    high: float | None = None
    over_seeds: bool = False
    maximum: float | None = None
    best: dict[str, Any] = field(default_factory=dict)
    ties: bool = False
    difference: dict[str, float] | None = None
    cells: int = 0
    missing: int = 0
    errors: tuple[str, ...] = ()
    is_tuned: bool = False
    stops_early: bool = False
    examples: int | None = None


@dataclass(frozen=True)
class Results:
    """All of a comparison.

    Attributes:
        models: what is known of each, by label.
        tasks: columns, in their order.
        rows: results, by task and then by model.
        settings: how cells were computed, by task: the values of every setting, and the examples.
    """

    models: dict[str, dict[str, Any]]
    tasks: tuple[str, ...]
    rows: tuple[Result, ...]
    settings: dict[str, dict[str, Any]] = field(default_factory=dict)

    def find(self, model: str, task: str) -> Result:
        """Return the result of a model on a task."""
        return next(row for row in self.rows if (row.model, row.task) == (model, task))

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON."""
        return {"version": VERSION, "protocols": PROTOCOLS, "level": LEVEL, **asdict(self)}


def read_results(folder: Path) -> Results:
    """Read what a comparison has written into its folder.

    Raises:
        InputError: there is nothing, or it is damaged or of another version.
    """
    file = folder / RESULTS_FILE
    try:
        values = parse(dict[str, Any], parse_json(read_text(file)))
        if values.get("version") != VERSION:
            raise ValueError(f"it is of version {values.get('version')} and not {VERSION}")
        names = [each.name for each in dataclasses.fields(Results)]
        results: Results = parse(Results, {name: values[name] for name in names if name in values})
    except (DamagedFileError, ValueError) as error:
        raise InputError(
            f"{file} cannot be read as the results of a comparison ({error}): run `evaluate` with "
            f"output={folder} again"
        ) from error
    return results


@dataclass
class _Column:
    """A task with the predictions that stand for each model, in the making.

    Attributes:
        scoring: of the task.
        compared: of the predictions: with the halves as parts where settings were chosen.
        labels: [n].
        predictions: [seeds, n] by model.
        choice_variances: what choosing settings adds to the variance of the mean, by model.
        estimates: of their mean score by model.
    """

    scoring: Scoring
    compared: Scoring
    labels: np.ndarray
    predictions: dict[str, np.ndarray] = field(default_factory=dict)
    choice_variances: dict[str, float] = field(default_factory=dict)
    estimates: dict[str, Estimate] = field(default_factory=dict)


def collect_results(comparison: Comparison) -> Results:
    """Return the numbers of all cells that have been computed."""
    rows: list[Result] = []
    columns: dict[str, _Column] = {}
    for task in comparison.tasks:
        if task.scoring is None or task.labels is None:
            rows += _collect_measured(comparison, task)
            continue
        column = _Column(task.scoring, task.scoring, task.labels)
        try:
            if len(task.list_settings()) > 1:
                # The same halves for every model, also for one of which one setting is left.
                halves = split_in_halves(task.scoring, task.labels)
                column.compared = divide_parts(task.scoring, halves)
        except InputError as error:
            rows += [
                Result(candidate.label, task.name, errors=(str(error),))
                for candidate in comparison.candidates
            ]
            continue
        for candidate in comparison.candidates:
            rows.append(_collect_scored(comparison, task, candidate, column))
        columns[task.name] = column
    rows = _mark_ties(rows, columns)
    rows += _average(columns, [candidate.label for candidate in comparison.candidates])
    models = {
        candidate.label: {
            "digest": candidate.digest, "weights": candidate.weights,
            "parameters": candidate.num_parameters, "max_length": candidate.max_length,
        }
        for candidate in comparison.candidates
    }  # fmt: skip
    settings = {task.name: _describe_settings(comparison, task) for task in comparison.tasks}
    return Results(models, tuple(dict.fromkeys(row.task for row in rows)), tuple(rows), settings)


def replaces_others(results: Results, folder: Path) -> bool:
    """Return whether a folder holds the results of a comparison of other models, tasks or settings."""
    try:
        found = read_results(folder)
    except InputError:
        return False
    return (found.models, found.tasks, found.settings) != (
        results.models,
        results.tasks,
        results.settings,
    )


def _describe_settings(comparison: Comparison, task: Task) -> dict[str, Any]:
    """Return the distinct values of every setting, the seeds and the numbers of examples."""
    values: dict[str, list[Any]] = {}
    for settings in task.list_settings():
        for key, value in settings.items():
            known = values.setdefault(key, [])
            if value not in known:
                known.append(value)
    counts = task.count_examples() if isinstance(task, LabelledTask) else {}
    precision = "bf16" if comparison.conditions.bf16 else "fp32"
    return {**values, "precision": [precision], "seeds": list(task.seeds), **counts}


def _collect_measured(comparison: Comparison, task: Task) -> list[Result]:
    """Return one result for each model and length."""
    rows = []
    for candidate in comparison.candidates:
        found = {
            cell.key: measured for cell, measured in iter_measured(comparison, task, candidate)
        }
        for cell in comparison.list_cells(task, candidate):
            length = cell.settings.get("length")
            name = task.name if length is None else f"{task.name}@{length}"
            measured = found.get(cell.key)
            if measured is None:
                rows.append(Result(candidate.label, name, missing=1))
            elif measured.error:
                rows.append(Result(candidate.label, name, errors=(measured.error,)))
            else:
                value = next(iter(measured.values.values()))
                protocol = "mteb" if "main_score" in measured.values else "measured"
                rows.append(Result(candidate.label, name, protocol=protocol, value=value, cells=1))
    return sorted(rows, key=lambda row: [r.task for r in rows].index(row.task))


def _collect_scored(
    comparison: Comparison, task: Task, candidate: Candidate, column: _Column
) -> Result:
    """Return the result of a model on a task, and note its predictions in the column."""
    cells: dict[str, dict[int, np.ndarray]] = {}
    settings: dict[str, Cell] = {}
    errors, count = [], 0
    for cell, measured in iter_measured(comparison, task, candidate):
        if measured.error or len(measured.predictions or ()) != len(column.labels):
            errors.append(measured.error or "its predictions are not those of the examples")
            continue
        name = json.dumps(cell.settings, sort_keys=True)
        settings[name] = cell
        cells.setdefault(name, {})[cell.seed] = _to_array(measured, column.labels)
        count += 1
    missing = len(comparison.list_cells(task, candidate)) - count - len(errors)
    failed = tuple(dict.fromkeys(errors))
    if not cells:
        return Result(candidate.label, task.name, missing=missing, errors=failed)
    seeds = {seed for setting in cells.values() for seed in setting}
    complete = [name for name, setting in cells.items() if len(setting) == len(seeds)]
    if not complete or missing:
        return Result(candidate.label, task.name, cells=count, missing=missing, errors=failed)
    cells = {name: cells[name] for name in sorted(cells)}  # whatever the order of the grid
    maximum = find_maximum(column.scoring, cells, column.labels)
    protocol = "direct" if len(cells) == 1 else "cross-fitted"
    predictions, choice_variance = _choose_predictions(column, cells)
    estimate = estimate_mean(
        column.compared, predictions, column.labels, choice_variance=choice_variance
    )
    column.predictions[candidate.label] = predictions
    column.choice_variances[candidate.label] = choice_variance
    column.estimates[candidate.label] = estimate
    has_choice = count > 1
    known = next(iter(settings.values())).settings
    return Result(
        candidate.label,
        task.name,
        protocol=protocol,
        value=estimate.value,
        low=estimate.low,
        high=estimate.high,
        over_seeds=estimate.over_seeds,
        maximum=maximum.score if has_choice else None,
        best=_describe_best(settings, maximum.setting, maximum.seed) if has_choice else {},
        cells=count,
        missing=missing,
        errors=failed,
        is_tuned=known.get("method") == "finetune" and known["max_evaluation_examples"] is None,
        stops_early=known.get("evaluate_every_steps") is not None,
        examples=len(column.labels),
    )


def _choose_predictions(column: _Column, cells: Cells) -> tuple[np.ndarray, float]:
    """Return the predictions [seeds, n] that stand for a model, and the variance of the choice."""
    if len(cells) == 1:
        (setting,) = cells.values()
        return np.stack([setting[seed] for seed in sorted(setting)]), 0.0
    fit = select_cross_fitted(column.scoring, cells, column.labels)
    return fit.predictions, fit.choice_variance


def _to_array(measured: Measurement, labels: np.ndarray) -> np.ndarray:
    return np.array(measured.predictions).astype(labels.dtype)


def _describe_best(settings: Mapping[str, Cell], name: str, seed: int) -> dict[str, Any]:
    """Return what differs within the grid, of the best cell."""
    grid = [cell.settings for cell in settings.values()]
    differing = [key for key in grid[0] if any(other[key] != grid[0][key] for other in grid)]
    return {**{key: settings[name].settings[key] for key in differing}, "seed": seed}


def _mark_ties(rows: Sequence[Result], columns: Mapping[str, _Column]) -> list[Result]:
    """Return rows with their difference from the best of the task, corrected over all of them."""
    differences: dict[tuple[str, str], Estimate] = {}
    best: dict[str, str] = {}
    for task, column in columns.items():
        if len(column.estimates) < 2:  # nothing to be better than, or tied with
            continue
        best[task] = max(column.estimates, key=lambda name: column.estimates[name].value)
        for model, predictions in column.predictions.items():
            if model != best[task]:
                differences[model, task] = compare_models(
                    column.compared,
                    column.predictions[best[task]],
                    predictions,
                    column.labels,
                    choice_variance=sum(
                        column.choice_variances[name] for name in (best[task], model)
                    ),
                )
    corrected = correct_holm([each.p_value for each in differences.values()])
    p_values = dict(zip(differences, corrected, strict=True))
    marked = []
    for row in rows:
        found = differences.get((row.model, row.task))
        if best.get(row.task) == row.model:
            row = dataclasses.replace(row, ties=True)
        elif found is not None:
            p_value = p_values[row.model, row.task]
            difference = {
                "value": found.value, "low": found.low, "high": found.high, "p_value": p_value,
            }  # fmt: skip
            row = dataclasses.replace(row, ties=p_value >= 1 - LEVEL, difference=difference)
        marked.append(row)
    return marked


def _average(columns: Mapping[str, _Column], models: Sequence[str]) -> list[Result]:
    """Return the mean over all tasks with a score, of the models that have them all."""
    if len(columns) < 2:
        return []
    rows = []
    for model in models:
        estimates = [column.estimates.get(model) for column in columns.values()]
        known = [estimate for estimate in estimates if estimate is not None]
        if len(known) < len(estimates):
            rows.append(Result(model, MEAN))
            continue
        mean = average_estimates(known)
        rows.append(
            Result(
                model, MEAN, protocol="mean", value=mean.value, low=mean.low, high=mean.high,
                over_seeds=mean.over_seeds,
            )
        )  # fmt: skip
    return rows
