"""The table of metrics: what every reader of metrics.jsonl shows."""

from neobert_train.metrics_table import format_metric


def test_values_are_shown_as_the_table_says():
    assert format_metric("eval/masked_lm_accuracy", 0.12345) == "12.35%"
    assert format_metric("train/tokens", 12_345_678) == "12,345,678"
    assert format_metric("train/loss", None) == "not a finite number"
