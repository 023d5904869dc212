"""Plots of metrics.jsonl in a self-contained HTML file."""

import html
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt

from neobert_train.errors import InputError
from neobert_train.files import DamagedFileError, read_text, write_atomically
from neobert_train.metrics_file import find_latest, format_metric, read_metrics
from neobert_train.run_directory import RunDirectory, read_run_json

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 1080px; color: #222; }
h1 { font-size: 1.5rem; margin-bottom: 0; } h2 { font-size: 1.1rem; margin-top: 2rem; }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(480px, 1fr)); gap: 1rem; }
.plots svg { width: 100%; height: auto; }
table { border-collapse: collapse; } td { padding: .15rem 1.2rem .15rem 0; vertical-align: top; }
td:first-child { color: #666; } pre { background: #f6f6f6; padding: 1rem; overflow-x: auto; }
"""


@dataclass(frozen=True)
class Plot:
    """One figure: a title, the unit of its y axis and the metrics drawn in it."""

    title: str
    unit: str
    keys: tuple[str, ...]


PLOTS = (
    Plot("Loss", "nats a masked token", ("train/loss", "eval/masked_lm_loss")),
    Plot("Accuracy", "share of masked tokens", ("train/accuracy", "eval/masked_lm_accuracy")),
    Plot("Learning rate", "", ("train/learning_rate",)),
    Plot("Gradient norm", "before clipping", ("train/grad_norm",)),
    Plot("Throughput", "tokens/s", ("train/tokens_per_second",)),
    Plot("Packing fill", "share of the global batch", ("data/packing_efficiency",)),
)
_LABELS = {"train": "training", "eval": "held out", "data": "data"}


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
    """The report as HTML with the plots inline."""
    records = list(read_metrics(run.metrics_file))
    entropy = read_unigram_entropy(run)
    plots = "\n".join(_draw(plot, records, entropy) for plot in PLOTS)
    config = _read_config(run.config_file)
    rows = [*_summarise(records), *_flatten(_describe_starts(run))]
    table = "\n".join(
        f"<tr><td>{html.escape(key)}</td><td>{html.escape(value)}</td></tr>" for key, value in rows
    )
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{html.escape(run.path.name)}</title>
<style>{_STYLE}</style></head><body>
<h1>{html.escape(run.path.name)}</h1>
<div class="plots">
{plots}
</div>
<h2>Run</h2>
<table>{table}</table>
<h2>Configuration</h2>
<pre>{html.escape(config)}</pre>
</body></html>
"""


def _draw(plot: Plot, records: Sequence[dict[str, Any]], entropy: float | None) -> str:
    figure, axes = plt.subplots(figsize=(6.4, 3.4), layout="constrained")
    for key in plot.keys:
        points = [(r["step"], r[key]) for r in records if r.get(key) is not None]
        if points:
            marker = "o" if key.startswith("eval/") else None
            axes.plot(*zip(*points, strict=True), label=_LABELS[key.split("/")[0]], marker=marker)
    if plot.title == "Loss" and entropy is not None:
        axes.axhline(entropy, color="grey", linestyle=":", label="unigram entropy")
    axes.set(title=plot.title, xlabel="step", ylabel=plot.unit)
    axes.grid(alpha=0.3)
    if len(plot.keys) > 1 and axes.get_legend_handles_labels()[0]:
        axes.legend()
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg")
    plt.close(figure)
    return buffer.getvalue()[buffer.getvalue().index("<svg") :]


def _summarise(records: Sequence[dict[str, Any]]) -> list[tuple[str, str]]:
    """Return the latest value of what a reader asks for first."""
    latest = find_latest(records)
    wanted = {
        "step": ",.0f",
        "train/tokens": ",.0f",
        "train/loss": ".4f",
        "eval/masked_lm_loss": ".4f",
        "eval/masked_lm_accuracy": ".1%",
        "eval/perplexity": ",.1f",
        "data/packing_efficiency": ".2%",
        "train/tokens_per_second": ",.0f",
        "train/mfu": ".1%",
        "data/bad_records": ",.0f",
        "train/skipped_steps": ",.0f",
        "train/rewinds": ",.0f",
    }
    return [
        (key, format_metric(latest[key], spec)) for key, spec in wanted.items() if key in latest
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
