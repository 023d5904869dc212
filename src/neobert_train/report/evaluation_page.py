"""Results of an evaluation as a self-contained HTML page, and all their files."""

import html
from pathlib import Path

import matplotlib.pyplot as plt

from neobert_train.evaluation.results import RESULTS_FILE, Results
from neobert_train.files import write_atomically, write_json
from neobert_train.report.evaluation_tables import (
    MAXIMA_NOTE,
    MAXIMA_TITLE,
    format_maximum,
    format_value,
    keep_maxima,
    list_scored_tasks,
    render_csv,
    render_latex,
    render_markdown,
    render_notes,
)
from neobert_train.report.render import STYLE, draw_table, to_svg

_TABLE_STYLE = "td { text-align: right; } td:first-child { text-align: left; }"


def write_results(results: Results, output: Path) -> list[Path]:
    """Write `results.json`, `.md`, `.csv`, `.tex` and `.html` into a folder; return their paths.

    Raises:
        OSError: a file cannot be written.
    """
    texts = {
        "results.md": render_markdown(results),
        "results.csv": render_csv(results),
        "results.tex": render_latex(results),
        "results.html": render_page(results),
    }
    write_json(output / RESULTS_FILE, results.to_dict())
    for name, text in texts.items():
        write_atomically(output / name, text)
    return [output / name for name in (RESULTS_FILE, *texts)]


def render_page(results: Results) -> str:
    """Return the page: dots with intervals for every task, the table, and what its marks mean."""
    rows = [
        ["", *results.tasks],
        *(
            [model, *(format_value(results.find(model, task)) for task in results.tasks)]
            for model in results.models
        ),
    ]
    notes = "\n".join(
        f"<li>{html.escape(note.removeprefix('- '))}</li>" for note in render_notes(results)
    )
    maxima = ""
    if any(row.maximum is not None for row in results.rows):
        tasks = keep_maxima(results).tasks
        best = [
            [model, *(format_maximum(results.find(model, task)) for task in tasks)]
            for model in results.models
        ]
        maxima = f"<h2>{MAXIMA_TITLE}</h2><p>{MAXIMA_NOTE}</p>{draw_table([['', *tasks], *best])}"
    failed = [[row.model, row.task, error] for row in results.rows for error in row.errors]
    failures = f"<h2>Failed cells</h2>{draw_table(failed)}" if failed else ""
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Evaluation</title>
<style>{STYLE}{_TABLE_STYLE}</style></head><body>
<h1>Evaluation</h1>
{_draw(results)}
{draw_table(rows)}
<ul>
{notes}
</ul>
{maxima}
{failures}
</body></html>
"""


def _draw(results: Results) -> str:
    """Return a figure with a panel for each task with intervals; nothing where there is none."""
    tasks = list_scored_tasks(results)
    if not tasks:
        return ""
    models = list(results.models)
    columns = min(3, len(tasks))
    lines = -(-len(tasks) // columns)
    height = 0.9 + 0.32 * len(models)
    figure, panels = plt.subplots(
        lines, columns, figsize=(3.6 * columns, height * lines), layout="constrained", squeeze=False,
        sharey=True,
    )  # fmt: skip
    for panel in panels.flat[len(tasks) :]:
        panel.set_axis_off()
    for task, panel in zip(tasks, panels.flat, strict=False):
        for place, model in enumerate(models):
            row = results.find(model, task)
            if row.value is None or row.low is None or row.high is None:
                continue
            panel.plot([100 * row.low, 100 * row.high], [place, place], color=f"C{place % 10}")
            panel.plot(100 * row.value, place, "o", color=f"C{place % 10}")
        panel.set_title(task)
        panel.set_yticks(range(len(models)), [model.replace("$", r"\$") for model in models])
        panel.set_ylim(len(models) - 0.5, -0.5)
        panel.grid(alpha=0.3, axis="x")
    return to_svg(figure)
