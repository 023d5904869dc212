"""Plots of metrics.jsonl in a self-contained HTML file."""

import html
import io
import math
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from neobert_train.config.typed import read_run_json
from neobert_train.errors import InputError
from neobert_train.files import DamagedFileError, read_text, write_atomically
from neobert_train.metrics_table import METRICS, format_metric
from neobert_train.run.directory import RunDirectory
from neobert_train.run.metrics_file import find_latest, read_metrics

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 1080px; color: #222; }
h1 { font-size: 1.5rem; margin-bottom: 0; } h2 { font-size: 1.1rem; margin-top: 2rem; }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(480px, 1fr)); gap: 1rem; }
.plots svg { width: 100%; height: auto; }
table { border-collapse: collapse; } td { padding: .15rem 1.2rem .15rem 0; vertical-align: top; }
td:first-child { color: #666; } pre { background: #f6f6f6; padding: 1rem; overflow-x: auto; }
"""


def write_report(run: RunDirectory) -> None:
    """Draw `report.html` of a run from its metrics, environment and configuration.

    Raises:
        InputError: a file of the run is damaged, or the report cannot be written.
    """
    report = render_report(run)
    try:
        write_atomically(run.report_file, report)
    except OSError as error:
        raise run.explain(error) from error


def render_report(run: RunDirectory) -> str:
    """Return the report as HTML with the plots inline."""
    records = list(read_metrics(run.metrics_file))
    entropy = read_unigram_entropy(run)
    measured = {key for record in records for key in record}
    figures = dict.fromkeys(
        metric.figure for key, metric in METRICS.items() if metric.figure and key in measured
    )
    plots = "\n".join(_draw(title, records, entropy) for title in figures)
    config = _read_config(run.config_file)
    rows = [*summarise(records), *_flatten(_describe_starts(run))]
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{html.escape(run.path.name)}</title>
<style>{STYLE}</style></head><body>
<h1>{html.escape(run.path.name)}</h1>
<div class="plots">
{plots}
</div>
<h2>Run</h2>
{draw_table(rows)}
<h2>Configuration</h2>
<pre>{html.escape(config)}</pre>
</body></html>
"""


def _draw(title: str, records: Sequence[dict[str, Any]], entropy: float | None) -> str:
    """Return one figure as SVG, with the metrics that belong into it."""
    drawn = {key: metric for key, metric in METRICS.items() if metric.figure == title}
    figure, axes = plt.subplots(figsize=(6.4, 3.4), layout="constrained")
    for key, metric in drawn.items():
        points = [(r["step"], r[key]) for r in records if r.get(key) is not None]
        if points:
            marker = None if key.startswith(("train/", "data/")) else "o"
            axes.plot(*zip(*points, strict=True), label=metric.label, marker=marker)
        for (name, value), style in zip(metric.references, ("--", ":"), strict=False):
            axes.axhline(value, color="grey", linestyle=style, label=name)
    if "eval/masked_lm_loss" in drawn and entropy is not None:
        axes.axhline(entropy, color="grey", linestyle=":", label="unigram entropy")
    axes.set(title=title, xlabel="step", ylabel=metric.unit or metric.label)
    axes.grid(alpha=0.3)
    if (len(drawn) > 1 or metric.references) and axes.get_legend_handles_labels()[0]:
        axes.legend()
    return to_svg(figure)


def to_svg(figure: Figure) -> str:
    """Return a figure as an SVG element, and close it."""
    buffer = io.StringIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # letters that the font lacks
        figure.savefig(buffer, format="svg")
    plt.close(figure)
    return buffer.getvalue()[buffer.getvalue().index("<svg") :]


def draw_table(rows: Sequence[Sequence[str]]) -> str:
    """Return rows of text as an HTML table."""
    lines = ("".join(f"<td>{html.escape(cell)}</td>" for cell in row) for row in rows)
    return "<table>" + "\n".join(f"<tr>{line}</tr>" for line in lines) + "</table>"


def summarise(records: Sequence[dict[str, Any]]) -> list[tuple[str, str]]:
    """Return the latest value of what a reader asks for first."""
    latest = find_latest(records)
    return [
        (key, format_metric(key, latest[key]))
        for key, metric in METRICS.items()
        if metric.in_report and key in latest
    ]


def _flatten(values: dict[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    rows = []
    for key, value in values.items():
        if isinstance(value, dict):
            rows += _flatten(value, f"{prefix}{key} ")
        elif value is not None:
            text = " ".join(map(str, value)) if isinstance(value, list) else str(value)
            rows.append((prefix + key, text))
    return rows


def read_unigram_entropy(run: RunDirectory) -> float | None:
    """Return what the held-out loss is compared with; None for a run without held-out documents."""
    if not run.heldout_file.exists():
        return None
    sample = read_run_json(
        run.heldout_file, dict[str, Any], "remove it to draw the report without it"
    )
    entropy = sample.get("unigram_entropy")
    return entropy if isinstance(entropy, float) and math.isfinite(entropy) else None


def _read_config(file: Path) -> str:
    if not file.exists():
        return ""
    try:
        return read_text(file)
    except DamagedFileError as error:
        raise InputError(f"{file} cannot be read ({error}): restore it") from error


def _describe_starts(run: RunDirectory) -> dict[str, Any]:
    """Return the environment of the latest start, and the number of starts."""
    starts = run.read_environments()
    return {**starts[-1], "starts": len(starts)} if starts else {}
