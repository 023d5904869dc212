"""What metrics.jsonl holds, and how each value is shown; a new metric is a line here."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Metric:
    """How a value of metrics.jsonl is shown.

    Attributes:
        label: what it is, in words.
        unit: of its values; empty where the label says it.
        spec: format specification of a value as text.
        figure: title of the figure of the report in which it is drawn; None for none.
        in_report: whether the table of the report shows its latest value.
        in_card: whether the model card does.
        references: what to compare a value with, by name.
    """

    label: str
    unit: str = ""
    spec: str = ",.0f"
    figure: str | None = None
    in_report: bool = False
    in_card: bool = False
    references: tuple[tuple[str, float], ...] = ()


_LOSS_UNIT = "nats per masked token"

# In the order in which they are shown.
METRICS = {
    "step": Metric("optimiser steps", in_report=True),
    "train/tokens": Metric("tokens trained on, without padding", in_report=True),
    "train/masked_tokens": Metric("tokens predicted"),
    "train/loss": Metric(
        "training loss", _LOSS_UNIT, ".4f", figure="Loss", in_report=True, in_card=True
    ),
    "eval/masked_lm_loss": Metric(
        "held-out loss", _LOSS_UNIT, ".4f", figure="Loss", in_report=True, in_card=True
    ),
    "train/accuracy": Metric(
        "training accuracy", "share of masked tokens", ".2%", figure="Accuracy"
    ),
    "eval/masked_lm_accuracy": Metric(
        "held-out accuracy",
        "share of masked tokens",
        ".2%",
        figure="Accuracy",
        in_report=True,
        in_card=True,
    ),
    "eval/perplexity": Metric("held-out perplexity", spec=",.2f", in_report=True, in_card=True),
    "probe/party": Metric(
        "probe: party of the speaker",
        "share of paragraphs",
        ".1%",
        figure="Probe: party of the speaker",
        in_report=True,
        in_card=True,
        references=(("bag of words", 0.675), ("chance", 0.521)),
    ),
    "probe/decade": Metric(
        "probe: decade of the address",
        "share of paragraphs",
        ".1%",
        figure="Probe: decade of the address",
        in_report=True,
        in_card=True,
        references=(("bag of words", 0.491), ("chance", 0.167)),
    ),
    "probe/next_paragraph": Metric(
        "probe: retrieval of the next paragraph",
        "mean reciprocal rank",
        ".3f",
        figure="Probe: retrieval of the next paragraph",
        in_report=True,
        in_card=True,
        references=(("bag of words", 0.199), ("chance", 0.014)),
    ),
    "train/learning_rate": Metric("learning rate", spec=".2e", figure="Learning rate"),
    "train/grad_norm": Metric("gradient norm before clipping", spec=".3f", figure="Gradient norm"),
    "train/tokens_per_second": Metric(
        "throughput", "tokens/s", figure="Throughput", in_report=True
    ),
    "train/flops_per_second": Metric("work of the model", "FLOP/s", ".3g"),
    "train/mfu": Metric("share of the peak rate", spec=".1%", in_report=True),
    "train/step_seconds": Metric("duration of a step", "s", ".3f"),
    "train/data_wait_seconds": Metric("of it, waiting for data", "s", ".3f"),
    "train/skipped_steps": Metric("steps that were skipped", in_report=True),
    "train/rewinds": Metric("times the run went back to a checkpoint", in_report=True),
    "data/packing_efficiency": Metric(
        "tokens without padding",
        "share of the global batch",
        ".2%",
        figure="Packing",
        in_report=True,
    ),
    "data/unknown_share": Metric("share of the text that the tokenizer does not know", spec=".2%"),
    "data/documents": Metric("documents read"),
    "data/empty_records": Metric("records without text"),
    "data/bad_records": Metric("records that cannot be read", in_report=True),
    "data/filtered_records": Metric("records left out by filters"),
    "data/<source>/tokens": Metric("tokens of a source"),
    "data/<source>/epoch": Metric("passes over a source, on average over lanes", spec=".2f"),
    "data/<source>/share": Metric("share of the tokens that are of a source", spec=".2%"),
}


def format_metric(key: str, value: float | None) -> str:
    """Return a value as text, with what to compare it with; None stands for one that was not finite."""
    metric = METRICS[key]
    text = "not a finite number" if value is None else format(value, metric.spec)
    references = ", ".join(f"{name} {format(v, metric.spec)}" for name, v in metric.references)
    return f"{text} ({references})" if references else text
