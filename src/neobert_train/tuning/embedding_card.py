"""README.md of an embedder: how to use it, what it was trained on and how."""

import json
import re
from pathlib import Path

import yaml

from neobert_train.config.checks import REPOSITORY
from neobert_train.config.embed_schema import EmbedConfig
from neobert_train.hub import split_revision
from neobert_train.tuning.embedder_folder import Result, Start

_MARKDOWN = re.compile(r"[\\`*|~$\[\]<>]")
_USE = """
from sentence_transformers import SentenceTransformer

model = SentenceTransformer({name}{trusted})
queries = model.encode_query(["how do I train an encoder?"])
documents = model.encode_document(["Encoders are trained by predicting masked words."])
print(model.similarity(queries, documents))
"""


def render_card(
    folder: Path, config: EmbedConfig, start: Start, result: Result, length: int, needs_code: bool
) -> str:
    """Write the card as Markdown with the Hub's front matter.

    Args:
        folder: of the embedder, as the user wrote it.
        config: of the training.
        start: what it was begun from.
        result: what came of it.
        length: tokens after which texts are cut.
        needs_code: whether it loads only with the code in its folder.
    """
    code = _USE.strip().format(
        name=json.dumps(str(folder)), trusted=", trust_remote_code=True" if needs_code else ""
    )
    return "\n".join(
        [
            "---",
            yaml.safe_dump(_build_front_matter(config, start), sort_keys=False).rstrip(),
            "---",
            "",
            f"# {_escape(folder.resolve().name)}",
            "",
            "A sentence-transformers model: it maps texts to vectors whose cosine says how near they are. "
            f"Trained with neobert_train from {_escape(start.model)}.",
            "",
            "```python",
            code,
            "```",
            "",
            "## Training data",
            "",
            "| set | rows | from | negatives of its own |",
            "| --- | --- | --- | --- |",
            *_list_sets(config, start),
            "",
            "## Recipe",
            "",
            "| | |",
            "| --- | --- |",
            *(f"| {key} | {_escape(value)} |" for key, value in _describe(config, result, length)),
            "",
        ]
    )


def _build_front_matter(config: EmbedConfig, start: Start) -> dict[str, object]:
    """Return what the Hub reads of a card."""
    front: dict[str, object] = {
        "library_name": "sentence-transformers",
        "pipeline_tag": "sentence-similarity",
        "tags": ["sentence-transformers", "feature-extraction"],
    }
    base = split_revision(start.model)[0]
    if REPOSITORY.fullmatch(base):
        front["base_model"] = base
    datasets = {pairs.dataset for pairs in config.list_sets().values()}
    named = sorted(name for name in datasets if REPOSITORY.fullmatch(name))
    if named:
        front["datasets"] = named
    return front


def _list_sets(config: EmbedConfig, start: Start) -> list[str]:
    lines = []
    for name, pairs in config.list_sets().items():
        parts = [pairs.dataset, pairs.subset, pairs.split] if pairs.dataset else pairs.paths
        origin = " ".join(
            part.rpartition("/")[2] if pairs.paths else part for part in parts if part
        )
        has = "yes" if pairs.negatives else "no"
        lines.append(f"| {_escape(name)} | {start.rows[name]:,} | {_escape(origin)} | {has} |")
    return lines


def _describe(config: EmbedConfig, result: Result, length: int) -> list[tuple[str, str]]:
    prompts = {"query": config.query_prompt, "document": config.document_prompt}
    shown = ", ".join(f"{name} {text!r}" for name, text in prompts.items() if text) or "none"
    loss = (
        "not logged"
        if result.loss is None
        else f"{result.loss:.4f} nats, mean of the last logged steps"
    )
    return [
        (
            "loss",
            f"InfoNCE over cosines, temperature {config.temperature:g}, negatives from the batch",
        ),
        (
            "batch",
            f"{config.batch_size} rows of one set, drawn with p ~ rows^{config.sampling_exponent:g}",
        ),
        ("steps", f"{result.steps:,} ({result.rows:,} rows, with repetitions)"),
        ("pooling", config.pooling.value),
        ("prompts", shown),
        ("longest text", f"{length:,} tokens"),
        ("optimiser", f"AdamW, learning rate {config.lr:g}, weight decay {config.weight_decay:g}"),
        ("schedule", f"{config.warmup_fraction:.0%} warm-up, then {config.decay.value}"),
        ("seed", str(config.seed)),
        ("final loss", loss),
    ]


def _escape(text: str) -> str:
    """Return text that Markdown shows as it is, in one line."""
    return _MARKDOWN.sub(r"\\\g<0>", " ".join(text.split()))
