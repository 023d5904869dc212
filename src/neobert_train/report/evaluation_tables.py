"""Results of an evaluation as Markdown, CSV, LaTeX and entries of the Hub."""

import csv
import dataclasses
import io
import re
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from neobert_train.config.tasks import GLUE, GLUE_DATASET, PROBES
from neobert_train.evaluation.results import MEAN, PROTOCOLS, Result, Results
from neobert_train.metrics_table import METRICS

_NO_NUMBER = "-"
MAXIMA_TITLE = "The best cell of each grid, as papers report it"
MAXIMA_NOTE = "Biased upwards: it is chosen on the examples that it is scored on."
_TIED, _ONE_SEED = "†", "°"
# An interval of which one side is that much longer than the other is not written with a ±.
_LOPSIDED = 1.5
_SHOWN_SETTINGS = ("learning_rate", "batch_size", "weight_decay", "epochs", "max_length", "seeds")


def render_markdown(results: Results) -> str:
    """Return the table of scores, what its marks mean, the maxima, and what failed."""
    lines = ["# Results", "", *_render_table(results, format_value)]
    lines += ["", *render_notes(results)]
    if any(row.maximum is not None for row in results.rows):
        lines += ["", f"## {MAXIMA_TITLE}", "", MAXIMA_NOTE, ""]
        lines += _render_table(keep_maxima(results), format_maximum)
    failed = [(row, error) for row in results.rows for error in row.errors]
    if failed:
        lines += ["", "## Failed cells", ""]
        lines += [f"- {row.model} on {row.task}: {_escape(error)}" for row, error in failed]
    return "\n".join(lines) + "\n"


def keep_maxima(results: Results) -> Results:
    """Return the results of the tasks with a best cell among several."""
    chosen = {row.task for row in results.rows if row.maximum is not None}
    tasks = tuple(task for task in results.tasks if task in chosen)
    return dataclasses.replace(results, tasks=tasks)


def render_notes(results: Results) -> list[str]:
    """Return what a reader has to know of the numbers."""
    protocols = {row.protocol for row in results.rows if row.protocol}
    notes = [f"- {name}: {PROTOCOLS[name]}." for name in PROTOCOLS if name in protocols]
    scored = [row for row in results.rows if row.low is not None]
    if scored:
        notes.append(
            "- Scores are times 100, with 95 % intervals (none for those of mteb): as ±, or as their ends "
            "where these lie at different distances."
        )
    if any(row.ties for row in scored):
        notes.append(
            f"- {_TIED} is the best on its task, or not told apart from it (paired, p >= 0.05 after "
            f"Holm's correction over all models and tasks); means are not compared."
        )
    if any(map(_has_one_seed, scored)):
        notes.append(f"- {_ONE_SEED} one seed, or none: the interval is over examples only.")
    for task in results.tasks:
        metric = METRICS.get(f"probe/{task}")
        if metric is not None and metric.references:
            known = ", ".join(f"{name} {_percent(value)}" for name, value in metric.references)
            notes.append(f"- {task}, for comparison: {known}.")
    if any(task in PROBES for task in results.tasks):
        notes.append("- Paragraphs of one address are alike: intervals of probes are too narrow.")
    if any(row.stops_early for row in results.rows):
        notes.append(
            "- The best evaluation of each training counts, which is chosen on the scored examples: too high."
        )
    if any(row.missing for row in results.rows):
        notes.append(f"- {_NO_NUMBER} has cells that are missing or failed.")
    return [*notes, *_describe_settings(results)]


def _describe_settings(results: Results) -> list[str]:
    """Return how tasks were learned, with those together that were learned alike."""
    alike: dict[str, list[str]] = {}
    for task, known in results.settings.items():
        if "training_examples" not in known:
            continue
        parts = [
            "fine-tuned" if "finetune" in known["method"] else "probes of frozen features",
            f"{known['training_examples']:,} training and {known['evaluation_examples']:,} evaluation "
            f"examples",
        ]
        if "steps" in known:
            parts.append(f"steps {_join(known['steps'])}")
        parts += [f"{key} {_join(known[key])}" for key in _SHOWN_SETTINGS if key in known]
        alike.setdefault("; ".join(parts), []).append(task)
    return [f"- {', '.join(tasks)}: {text}." for text, tasks in alike.items()]


def _join(values: Sequence[Any]) -> str:
    return ", ".join(f"{value:g}" if isinstance(value, float) else str(value) for value in values)


def _has_one_seed(row: Result) -> bool:
    return row.protocol != MEAN and not row.over_seeds


def _render_table(results: Results, show: Callable[[Result], str]) -> list[str]:
    head = ["model", *results.tasks]
    lines = [f"| {' | '.join(head)} |", f"| --- |{' ---: |' * len(results.tasks)}"]
    for model in results.models:
        cells = [show(results.find(model, task)) for task in results.tasks]
        lines.append(f"| {' | '.join([_escape(model), *cells])} |")
    return lines


def format_value(row: Result) -> str:
    """Return a score with its interval, or a measurement."""
    if row.value is None:
        return _NO_NUMBER
    if row.protocol == "mteb":
        return _percent(row.value)
    if row.low is None or row.high is None:
        return format_measured(row.value)
    marks = (_TIED if row.ties else "") + (_ONE_SEED if _has_one_seed(row) else "")
    if _is_lopsided(row.low, row.value, row.high):
        return f"{_percent(row.value)} [{_percent(row.low)}, {_percent(row.high)}]{marks}"
    return f"{_percent(row.value)} ± {100 * (row.high - row.low) / 2:.1f}{marks}"


def _is_lopsided(low: float, value: float, high: float) -> bool:
    below, above = value - low, high - value
    return max(below, above) > _LOPSIDED * min(below, above)


def format_measured(value: float) -> str:
    """Return a value of a measurement with four digits, or whole where it is large."""
    return f"{value:,.0f}" if abs(value) >= 10_000 else f"{value:.4g}"


def format_maximum(row: Result) -> str:
    """Return the score of the best cell."""
    return _percent(row.maximum)


def _percent(value: float | None) -> str:
    return _NO_NUMBER if value is None else f"{100 * value:.1f}"


def _escape(text: str) -> str:
    return re.sub(r"([\\`*|\[\]<>])", r"\\\1", text.replace("\n", " "))


def render_csv(results: Results) -> str:
    """Return one line for every model and task, with unrounded numbers."""
    names = (
        "model", "task", "protocol", "value", "low", "high", "over_seeds", "maximum", "ties", "cells",
        "missing", "failed",
    )  # fmt: skip
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(names)
    for row in results.rows:
        values = [getattr(row, name) for name in names[:-1]]
        writer.writerow([*("" if value is None else value for value in values), len(row.errors)])
    return buffer.getvalue()


def render_latex(results: Results) -> str:
    """Return a table for the package booktabs; ties with the best are bold."""
    lines = [
        f"\\begin{{tabular}}{{l{'r' * len(results.tasks)}}}",
        "\\toprule",
        " & ".join(["model", *map(_escape_latex, results.tasks)]) + r" \\",
        "\\midrule",
    ]
    for model in results.models:
        cells = [_format_latex(results.find(model, task)) for task in results.tasks]
        lines.append(" & ".join([_escape_latex(model), *cells]) + r" \\")
    notes = [f"% {note.removeprefix('- ')}" for note in render_notes(results) if _TIED not in note]
    bold = "% Bold: the best of the column, or not told apart from it."
    return "\n".join([bold, *notes, *lines, "\\bottomrule", "\\end{tabular}"]) + "\n"


def _format_latex(row: Result) -> str:
    if row.value is None:
        return "--"
    if row.protocol == "mteb":
        return _percent(row.value)
    if row.low is None or row.high is None:
        return format_measured(row.value).replace(",", "{,}")
    number = _percent(row.value)
    number = rf"\mathbf{{{number}}}" if row.ties else number
    if _is_lopsided(row.low, row.value, row.high):
        return f"${number}\\ [{_percent(row.low)}, {_percent(row.high)}]$"
    return rf"${number} \pm {100 * (row.high - row.low) / 2:.1f}$"


def _escape_latex(text: str) -> str:
    return re.sub(r"([&%$#_{}])", r"\\\1", text.replace("\\", "/"))


def render_hub_results(results: Results, model: str) -> str:
    """Return the entries of `.eval_results/*.yaml` in a model's repository on the Hub.

    The tasks whose datasets are on the Hub are those of GLUE; of them only what was fine-tuned, and
    scored on all examples.

    Args:
        results: of a comparison.
        model: its label.
    """
    date = datetime.now(UTC).date().isoformat()
    entries = []
    for task in GLUE:
        row = results.find(model, task) if task in results.tasks else None
        if row is not None and row.value is not None and row.protocol and row.is_tuned:
            entries.append(
                {
                    "dataset": {"id": GLUE_DATASET, "task_id": task},
                    "value": round(100 * row.value, 2),
                    "date": date,
                    "notes": f"fine-tuned; {row.examples:,} examples of the validation set; "
                    f"{row.protocol}: {PROTOCOLS[row.protocol]}",
                }
            )
    return str(yaml.safe_dump(entries, sort_keys=False, allow_unicode=True)) if entries else ""


def render_card_section(results: Results, model: str) -> list[str]:
    """Return the lines of a model card that show a model's results.

    Args:
        results: of a comparison.
        model: its label.
    """
    rows = [results.find(model, task) for task in results.tasks]
    lines = ["| task | value | of |", "| --- | ---: | --- |"]
    lines += [
        f"| {row.task} | {format_value(row).replace(_TIED, '')} | {row.protocol} |"
        for row in rows
        if row.protocol
    ]
    # A path of this machine is nobody else's.
    others = [
        _escape(Path(name).name if Path(name).exists() else name)
        for name in results.models
        if name != model
    ]
    notes = [note for note in render_notes(results) if _TIED not in note]
    if others:
        notes.append(f"- Compared with {', '.join(others)}.")
    return [*lines, "", *notes, ""]


def list_scored_tasks(results: Results) -> list[str]:
    """Return the tasks that have scores with intervals, their mean among them last."""
    scored = {row.task for row in results.rows if row.low is not None}
    return [task for task in results.tasks if task in scored and task != MEAN] + (
        [MEAN] if MEAN in scored else []
    )
