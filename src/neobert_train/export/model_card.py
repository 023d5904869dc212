"""README.md of an exported model: what it is, how it was trained, what was measured."""

import html
import json
import re
from collections.abc import Mapping
from typing import Any

import yaml

from neobert_train.accounting import compute_model_size
from neobert_train.checkpoint import TrainingState
from neobert_train.config.data_schema import SourceKind
from neobert_train.config.schema import TrainConfig
from neobert_train.metrics_file import format_metric
from neobert_train.tokenizers.text_tokenizer import TextTokenizer

_REPOSITORY = re.compile(r"[\w-][\w.-]*/[\w.-]+", re.ASCII)
_MARKDOWN = re.compile(r"[\\`*|~$\[\]]")
_METRICS = {
    "train/loss": ("training loss (nats a masked token)", ".4f"),
    "eval/masked_lm_loss": ("held-out loss (nats a masked token)", ".4f"),
    "eval/masked_lm_accuracy": ("held-out accuracy", ".2%"),
    "eval/perplexity": ("held-out perplexity", ",.2f"),
}


def render_model_card(
    name: str,
    config: TrainConfig,
    state: TrainingState,
    tokenizer: TextTokenizer,
    metrics: Mapping[str, Any],
) -> str:
    """The card as Markdown with the Hub's front matter.

    Args:
        name: title of the model.
        config: of the run.
        state: of the exported checkpoint.
        tokenizer: of the model.
        metrics: the latest values up to that checkpoint; None for one that was not finite.
    """
    size = compute_model_size(config.model, tokenizer.vocab_size)
    dataset = config.data.dataset if config.data.source is SourceKind.huggingface else None
    front: dict[str, Any] = {
        "library_name": "transformers",
        "pipeline_tag": "fill-mask",
        "tags": ["neobert", "masked-lm"],
    }
    if dataset and _REPOSITORY.fullmatch(dataset):
        front["datasets"] = [dataset]
    example = f"The state of the union is {tokenizer.spellings['mask']}."
    code = (
        "from transformers import pipeline\n\n"
        f'fill = pipeline("fill-mask", model={json.dumps(name)}, trust_remote_code=True)\n'
        f"fill({json.dumps(example, ensure_ascii=False)})"
    )
    # Longer than any run of backticks inside.
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", code)), default=0))
    recipe = {
        "parameters": f"{size.parameters:,}",
        "layers x width": f"{config.model.num_hidden_layers} x {config.model.hidden_size}",
        "context": f"{config.batch.context_length:,} tokens",
        "data": dataset or config.data.source.value,
        "tokens trained on": f"{state.tokens:,} in {state.step:,} steps of "
        f"{config.batch.global_batch_tokens:,}",
        "tokens predicted": f"{state.masked_tokens:,}",
        "masking": f"{config.masking.rate:.0%} of the text tokens, {config.masking.strategy.value}",
        "optimiser": f"AdamW, peak learning rate {config.optimizer.lr:g}, betas "
        f"{config.optimizer.betas}, weight decay {config.optimizer.weight_decay:g}, clipping at "
        f"{config.optimizer.max_grad_norm:g}",
        "schedule": f"{config.scheduler.name.value}, {config.scheduler.warmup_steps:,} steps of warm-up",
        "precision": config.trainer.precision.value,
        "seed": str(config.seed),
    }
    measured = {
        label: format_metric(metrics[key], spec)
        for key, (label, spec) in _METRICS.items()
        if key in metrics
    }
    return "\n".join(
        [
            "---",
            yaml.safe_dump(front, sort_keys=False).rstrip(),
            "---",
            "",
            f"# {_escape(name)}",
            "",
            "A [NeoBERT](https://arxiv.org/abs/2502.19587) text encoder pre-trained with "
            "neobert_train by masked-language modelling.",
            "",
            f"{fence}python",
            code,
            fence,
            "",
            "## Recipe",
            "",
            *_table(recipe),
            "",
            "## Measured",
            "",
            *(_table(measured) if measured else ["Nothing was measured before this checkpoint."]),
            "",
        ]
    )


def _table(rows: Mapping[str, str]) -> list[str]:
    lines = [f"| {_escape(key)} | {_escape(value)} |" for key, value in rows.items()]
    return ["| | |", "| --- | --- |", *lines]


def _escape(text: str) -> str:
    """Return text that Markdown and HTML show as it is, in one line."""
    line = " ".join(text.split())
    return html.escape(_MARKDOWN.sub(r"\\\g<0>", line), quote=False)
