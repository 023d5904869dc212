"""README.md of an exported model: what it is, how it was trained, what was measured."""

import html
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from neobert_train.config.checks import REPOSITORY
from neobert_train.config.choice import Choice
from neobert_train.config.data_schema import SourceKind
from neobert_train.config.schema import TrainConfig
from neobert_train.config.setting import iter_settings
from neobert_train.metrics_table import METRICS, format_metric
from neobert_train.models.size import ModelSize
from neobert_train.run.checkpoint import TrainingState
from neobert_train.tokenizers.text_tokenizer import TextTokenizer

_MARKDOWN = re.compile(r"[\\`*|~$\[\]]")


_FILL = """
from transformers import pipeline

fill = pipeline("fill-mask", model={name}{trusted})
fill({text})
"""
_EMBED = """
import torch
from transformers import AutoModel, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained({name}{trusted})
model = AutoModel.from_pretrained({name}{trusted})
inputs = tokenizer(["a text", "and a longer one"], padding=True, truncation=True, return_tensors="pt")
with torch.no_grad():
    hidden = model(**inputs).last_hidden_state
is_token = inputs["attention_mask"][..., None]
embeddings = (hidden * is_token).sum(1) / is_token.sum(1)
"""
_ENCODE = """
from sentence_transformers import SentenceTransformer

model = SentenceTransformer({name}{trusted})
embeddings = model.encode(["a text", "and a longer one"])
"""
_CLASSIFY = """
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained({name}{trusted})
model = AutoModelForSequenceClassification.from_pretrained({name}, num_labels=2{trusted})
inputs = tokenizer(["a good text", "a bad one"], padding=True, truncation=True, return_tensors="pt")
model(**inputs, labels=torch.tensor([1, 0])).loss.backward()
"""
_USES = (
    ("Fill in a mask:", _FILL),
    ("Embed texts, as the mean over their tokens (a contrastive fine-tuning makes them far better):", _EMBED),
    ("The same with sentence-transformers, to fine-tune it as well:", _ENCODE),
    ("Fine-tune it, here for classification:", _CLASSIFY),
)  # fmt: skip


@dataclass(frozen=True)
class CardNames:
    """What a card calls the model.

    Attributes:
        title: of the card.
        location: what loads it, a folder or a repository.
        license: of the weights, as the Hub names it; None leaves it out.
        revision: of the repository that is loaded; None for its main one.
    """

    title: str
    location: str
    license: str | None = None
    revision: str | None = None


def render_model_card(
    names: CardNames,
    config: TrainConfig,
    state: TrainingState,
    tokenizer: TextTokenizer,
    size: ModelSize,
    metrics: Mapping[str, Any],
    evaluation: Sequence[str] = (),
) -> str:
    """Write the card as Markdown with the Hub's front matter.

    Args:
        names: of the model.
        config: of the run.
        state: of the exported checkpoint.
        tokenizer: of the model.
        size: of the model.
        metrics: the latest values up to that checkpoint; None for one that was not finite.
        evaluation: lines that show what it was worth in comparisons; none leaves them out.
    """
    example = f"The state of the union is {tokenizer.spellings['mask']}."
    revision = f", revision={json.dumps(names.revision)}" if names.revision else ""
    literals = {
        "name": json.dumps(names.location) + revision,
        "text": json.dumps(example, ensure_ascii=False),
        "trusted": ", trust_remote_code=True" if config.model.needs_remote_code else "",
    }
    uses = _USES if config.model.has_all_heads else _USES[:1]
    measured = {
        metric.label + (f" ({metric.unit})" if metric.unit else ""): format_metric(
            key, metrics[key]
        )
        for key, metric in METRICS.items()
        if metric.in_card and key in metrics
    }
    return "\n".join(
        [
            "---",
            yaml.safe_dump(_build_front_matter(names, config), sort_keys=False).rstrip(),
            "---",
            "",
            f"# {_escape(names.title)}",
            "",
            f"{config.model.describe()} pre-trained with neobert_train by {config.objective.title}.",
            "",
            *(line for use in uses for line in _format_use(*use, literals)),
            "## Recipe",
            "",
            *_table(_describe_recipe(config, state, size)),
            "",
            "## Measured",
            "",
            *(_table(measured) if measured else ["Nothing was measured before this checkpoint."]),
            "",
            *(["## Evaluation", "", *evaluation] if evaluation else []),
        ]
    )


def _build_front_matter(names: CardNames, config: TrainConfig) -> dict[str, Any]:
    """Return what the Hub reads of a card."""
    dataset = _find_dataset(config)
    front: dict[str, Any] = {
        "library_name": "transformers",
        "pipeline_tag": "fill-mask",
        "tags": [config.model.kind, config.objective.kind.replace("_", "-")],
    }
    if config.model.repository and config.model.origin:
        front["base_model"] = config.model.repository
    if names.license:
        front["license"] = names.license
    if dataset and REPOSITORY.fullmatch(dataset):
        front["datasets"] = [dataset]
    return front


def _find_dataset(config: TrainConfig) -> str | None:
    return config.data.dataset if config.data.source is SourceKind.huggingface else None


def _describe_recipe(config: TrainConfig, state: TrainingState, size: ModelSize) -> dict[str, str]:
    return {
        "parameters": f"{size.parameters:,}",
        "layers x width": f"{size.num_layers} x {size.hidden_size}",
        "context": f"{config.batch.context_length:,} tokens",
        "data": _find_dataset(config) or config.data.source.value,
        "tokens trained on": f"{state.tokens:,} in {state.step:,} steps of "
        f"{config.batch.global_batch_tokens:,}",
        "tokens predicted": f"{state.num_targets:,}",
        "masking": f"{config.masking.rate:.0%} of the text tokens, {config.masking.strategy.value}",
        "optimiser": _list_settings(config.optimizer),
        "schedule": _list_settings(config.scheduler),
        "precision": config.trainer.precision.value,
        "seed": str(config.seed),
    }


def _list_settings(choice: Choice) -> str:
    """Return a choice with its settings; of groups of parameters, those that are not the default."""
    usual = {setting.key: setting.value for setting in iter_settings(type(choice)())}
    settings = [
        setting
        for setting in iter_settings(choice)
        if "." not in setting.key or setting.value != usual[setting.key]
    ]
    shown = [
        f"{setting.key.replace('_', ' ')} {getattr(setting.value, 'value', setting.value)}"
        for setting in settings
        if setting.key != "kind" and setting.value is not None
    ]
    return ", ".join([choice.kind, *shown])


def _format_use(introduction: str, code: str, literals: Mapping[str, str]) -> list[str]:
    text = code.strip().format(**literals)
    # Longer than any run of backticks inside.
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return [introduction, "", f"{fence}python", text, fence, ""]


def _table(rows: Mapping[str, str]) -> list[str]:
    lines = [f"| {_escape(key)} | {_escape(value)} |" for key, value in rows.items()]
    return ["| | |", "| --- | --- |", *lines]


def _escape(text: str) -> str:
    """Return text that Markdown and HTML show as it is, in one line."""
    line = " ".join(text.split())
    return html.escape(_MARKDOWN.sub(r"\\\g<0>", line), quote=False)
