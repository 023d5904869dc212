"""The table of metrics: what every reader of metrics.jsonl shows."""

from pathlib import Path

from neobert_train.metrics_table import METRICS, format_metric

OPERATIONS = Path(__file__).parents[1] / "docs" / "operations.md"


def test_values_are_shown_as_the_table_says():
    assert format_metric("eval/masked_lm_accuracy", 0.12345) == "12.35%"
    assert format_metric("train/tokens", 12_345_678) == "12,345,678"
    text = "0.500 (bag of words 0.199, chance 0.014)"
    assert format_metric("probe/next_paragraph", 0.5) == text
    assert format_metric("train/loss", None) == "not a finite number"


def test_the_documentation_lists_every_metric_as_the_table_names_it():
    lines = OPERATIONS.read_text(encoding="utf-8").splitlines()
    kinds = ("| `step`", "| `train/", "| `eval/", "| `probe/", "| `data/")
    listed = [line for line in lines if line.startswith(kinds)]
    units = {key: f" ({metric.unit})" if metric.unit else "" for key, metric in METRICS.items()}
    assert listed == [
        f"| `{key}` | {metric.label}{units[key]} |" for key, metric in METRICS.items()
    ]
