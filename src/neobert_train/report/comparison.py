"""Several runs laid over each other in one self-contained HTML file."""

import html
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt

from neobert_train.config.saved import load_train_config
from neobert_train.config.setting import iter_settings
from neobert_train.errors import InputError
from neobert_train.files import write_atomically
from neobert_train.metrics_table import METRICS, Metric
from neobert_train.report.render import STYLE, draw_table, summarise, to_svg
from neobert_train.run.directory import RunDirectory
from neobert_train.run.metrics_file import read_metrics

COMPARISON_FILE = "comparison.html"
# They differ between any two runs, and say nothing of what was compared.
_OWN = ("output_dir", "logging.", "hub.")


def write_comparison(runs: Sequence[RunDirectory]) -> Path:
    """Draw `comparison.html` in the folder that the run directories share; return its path.

    Raises:
        InputError: one of them holds no metrics or a damaged file, or the file cannot be written.
    """
    folder = Path(os.path.commonpath([run.path.absolute() for run in runs]))
    file, text = folder / COMPARISON_FILE, render_comparison(runs)
    try:
        write_atomically(file, text)
    except OSError as error:
        raise InputError(f"{file} cannot be written: {error}") from error
    return file


def render_comparison(runs: Sequence[RunDirectory]) -> str:
    """Return the comparison as HTML: curves over tokens, last values, and settings that differ."""
    if len({run.path.resolve() for run in runs}) < len(runs):
        raise InputError("a run directory is named twice: name each once")
    names = _name_runs([run.path for run in runs])
    records = {
        name: list(read_metrics(run.metrics_file)) for name, run in zip(names, runs, strict=True)
    }
    for name, found in records.items():
        if not found:
            raise InputError(f"{name} holds no metrics yet: leave it out, or train it first")
    measured = {key for found in records.values() for record in found for key in record}
    drawn = {key: m for key, m in METRICS.items() if m.figure and key in measured}
    plots = [_draw(key, metric, records) for key, metric in drawn.items()]
    latest = {name: dict(summarise(found)) for name, found in records.items()}
    settings = {
        name: {
            setting.key: str(getattr(setting.value, "name", setting.value))
            for setting in iter_settings(load_train_config(run.config_file))
        }
        for name, run in zip(names, runs, strict=True)
    }
    differing = {
        key: row for key, row in _transpose(settings).items()
        if len(set(row)) > 1 and not key.startswith(_OWN)
    }  # fmt: skip
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{len(runs)} runs</title>
<style>{STYLE}</style></head><body>
<h1>{html.escape(", ".join(names))}</h1>
<div class="plots">
{"".join(plots)}
</div>
<h2>Last values</h2>
{draw_table([("", *names), *((key, *row) for key, row in _transpose(latest).items())])}
<h2>Settings that differ</h2>
{draw_table([("", *names), *((key, *row) for key, row in differing.items())])}
</body></html>
"""


def _name_runs(paths: Sequence[Path]) -> list[str]:
    """Return the last parts of the paths, or the whole where these are not different."""
    short = [path.resolve().name for path in paths]
    return short if len(set(short)) == len(short) else [str(path) for path in paths]


def _draw(key: str, metric: Metric, records: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """Return one metric of all runs over the tokens that they had trained on, as SVG."""
    figure, axes = plt.subplots(figsize=(6.4, 3.4), layout="constrained")
    for name, found in records.items():
        both = ((r.get("train/tokens"), r.get(key)) for r in found)
        points = [point for point in both if None not in point]
        if points:
            marker = None if key.startswith(("train/", "data/")) else "o"
            axes.plot(*zip(*points, strict=True), label=_to_label(name), marker=marker)
    axes.set(title=metric.label, xlabel="tokens", ylabel=metric.unit or metric.label)
    axes.grid(alpha=0.3)
    if axes.get_legend_handles_labels()[0]:
        axes.legend()
    return to_svg(figure)


def _to_label(name: str) -> str:
    """Return a name as a legend shows it: not as a formula, nor left out for its underscore."""
    return " " + name.replace("$", r"\$")


def _transpose(columns: Mapping[str, Mapping[str, str]]) -> dict[str, list[str]]:
    """Return by key the values of all runs, in their order; empty where a run has none."""
    keys = dict.fromkeys(key for column in columns.values() for key in column)
    return {key: [column.get(key, "") for column in columns.values()] for key in keys}
