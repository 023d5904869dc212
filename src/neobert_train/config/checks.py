"""Everything that can be wrong with a configuration, found at once and without torch."""

import re
from collections.abc import Iterator
from typing import Any

from neobert_train.config.choices import CHOICES
from neobert_train.config.command_schema import (
    DoctorConfig,
    ExportConfig,
    PrepareConfig,
    StatusConfig,
    TokenizerAlgorithm,
    TrainTokenizerConfig,
)
from neobert_train.config.data_schema import SourceConfig, SourceKind
from neobert_train.config.derived import (
    compute_num_lanes,
    compute_weights,
    parse_duration,
    resolve_sources,
)
from neobert_train.config.divisors import find_divisors
from neobert_train.config.embed_schema import EmbedConfig
from neobert_train.config.evaluate_checks import iter_evaluate_problems
from neobert_train.config.evaluate_schema import EvaluateConfig
from neobert_train.config.model_schema import has_quack
from neobert_train.config.schema import EvaluationConfig, Precision, TrainConfig
from neobert_train.config.setting import iter_settings
from neobert_train.config.suggestion import suggest
from neobert_train.config.tasks import PROBES

# What fits where somebody means something else.
_ADVICE = {
    "trainer.max_steps=0": (
        " (without training, `doctor` tries whether a run can start, `plan` says what it needs and "
        "`inspect_data` shows what it reads)"
    )
}
# org/name on the Hub.
REPOSITORY = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*", re.ASCII)
_DEFAULT_SOURCE = SourceConfig()
_SOURCE_NAME = re.compile(r"[\w-]+")


def find_problems(config: Any, world_size: int = 1) -> list[str]:
    """Return all problems of a typed configuration, each with its fix; empty when it is sound."""
    problems = find_range_problems(config)
    if problems:
        return problems  # the checks below divide by values that must be in range
    if isinstance(config, DoctorConfig | StatusConfig):
        return problems  # the one lists the others behind what it found, the other needs none
    if isinstance(config, TrainConfig):
        problems += find_experiment_problems(config, world_size)
    elif isinstance(config, EvaluateConfig):
        problems += iter_evaluate_problems(config)
    elif isinstance(config, ExportConfig):
        problems += _iter_export_problems(config)
    elif isinstance(config, EmbedConfig):
        problems += config.iter_problems()
        if world_size > 1:
            problems.append(f"embed runs in one process, and {world_size} are launched: launch one")
    return problems


def find_experiment_problems(config: TrainConfig, world_size: int = 1) -> list[str]:
    """Return the problems of an experiment whose settings are all in range."""
    return [
        *_iter_batch_problems(config, world_size),
        *_iter_model_problems(config),
        *_iter_choice_problems(config),
        *_iter_optimizer_problems(config),
        *_iter_data_problems(config),
        *_iter_training_problems(config),
        *_iter_probe_problems(config.evaluation),
    ]


def find_range_problems(config: Any) -> list[str]:
    """Return the settings that are out of their own range, whatever the others are."""
    return list(_iter_range_problems(config))


def _iter_range_problems(config: Any) -> Iterator[str]:
    for setting in iter_settings(config):
        values = _list_values(setting.value)
        numbers = [v for v in values if isinstance(v, int | float) and not isinstance(v, bool)]
        for number in numbers:
            if not setting.range.admits(number):
                advice = _ADVICE.get(f"{setting.key}={number}", "")
                yield (
                    f"{setting.key}={number} is out of range: it must be "
                    f"{str(setting.range) or 'finite'}{advice}"
                )


def _list_values(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return list(value.values())
    return value if isinstance(value, list) else [value]


def _iter_batch_problems(config: TrainConfig, world_size: int) -> Iterator[str]:
    batch = config.batch
    if batch.context_length > batch.micro_batch_tokens:
        yield (
            f"batch.context_length={batch.context_length} does not fit in "
            f"batch.micro_batch_tokens={batch.micro_batch_tokens}: a micro-batch holds whole "
            f"documents, so write batch.micro_batch_tokens={batch.context_length} or more"
        )
    if batch.global_batch_tokens % batch.micro_batch_tokens:
        lanes = max(1, round(batch.global_batch_tokens / batch.micro_batch_tokens))
        yield (
            f"batch.global_batch_tokens={batch.global_batch_tokens} is not a multiple of "
            f"batch.micro_batch_tokens={batch.micro_batch_tokens}: write for example "
            f"batch.global_batch_tokens={lanes * batch.micro_batch_tokens}"
        )
        return
    lanes = compute_num_lanes(config)
    if lanes % world_size:
        sizes = ", ".join(map(str, find_divisors(lanes)))
        yield (
            f"{world_size} processes cannot share {lanes} lanes (batch.global_batch_tokens / "
            f"batch.micro_batch_tokens) evenly: launch one of {sizes} processes"
        )


def _iter_model_problems(config: TrainConfig) -> Iterator[str]:
    context_length = config.batch.context_length
    longest = config.model.announce_length(context_length)
    if context_length > longest:
        yield (
            f"batch.context_length={context_length} exceeds model.max_length={longest}, which the "
            f"exported model announces: write model.max_length={context_length}"
        )
    if has_quack(config.model) and config.trainer.precision is Precision.fp32:
        yield (
            "model.feed_forward=quack computes in bf16: write model.feed_forward=torch or "
            "trainer.precision=bf16"
        )
    if has_quack(config.model) and config.deepspeed.zero_stage == 3:
        yield (
            "model.feed_forward=quack needs whole weights, which deepspeed=zero3 gathers for "
            "the layers of torch only: write model.feed_forward=torch or deepspeed=zero1"
        )


def _iter_choice_problems(config: TrainConfig) -> Iterator[str]:
    """Yield what the kinds chosen say of their own settings."""
    for section in CHOICES:
        yield from getattr(config, section).iter_problems()
    yield from config.scheduler.iter_decay_problems(config.trainer.max_steps)


def _iter_optimizer_problems(config: TrainConfig) -> Iterator[str]:
    optimizer, stage = config.optimizer, config.deepspeed.zero_stage
    if optimizer.needs_whole_matrices and stage:
        yield (
            f"optimizer={optimizer.kind} updates whole matrices, of which deepspeed=zero{stage} gives "
            f"every process a slice: write deepspeed=zero0"
        )
    heads = getattr(config.model, "num_attention_heads", None)
    together = getattr(optimizer, "heads_per_matrix", None)
    if heads and together and heads % together:
        yield (
            f"optimizer.heads_per_matrix={together} does not divide model.num_attention_heads={heads}: "
            f"choose it among {', '.join(map(str, find_divisors(heads)))}"
        )


def _iter_data_problems(config: TrainConfig) -> Iterator[str]:
    data = config.data
    for name, source in resolve_sources(data).items():
        yield from _iter_source_problems(f"data.mixture.{name}" if data.mixture else "data", source)
    changes = {step for entry in data.mixture.values() for step in entry.weight_from}
    for step in sorted({1, *changes}):
        if not any(compute_weights(data, step)):
            yield f"no source of data.mixture has a weight above 0 from step {step} on: raise one"
    for name, entry in data.mixture.items():
        if not _SOURCE_NAME.fullmatch(name):
            yield f"data.mixture: the name '{name}' may hold letters, digits, _ and - only"
        if any(step < 1 for step in entry.weight_from):
            yield f"data.mixture.{name}.weight_from holds a step below 1: the first step is 1"
    if config.evaluation.max_tokens and data.heldout_fraction == 0.0:
        yield (
            "data.heldout_fraction=0 leaves nothing to evaluate on: write a fraction above 0, "
            "or evaluation.max_tokens=0 to train without evaluation"
        )
    if config.masking.rate_steps is not None and config.masking.final_rate is None:
        yield "masking.rate_steps is set without masking.final_rate: write the rate to arrive at"
    if isinstance(config, PrepareConfig) and not data.prepared_dir:
        yield "data.prepared_dir is not set: write data.prepared_dir=FOLDER for the token shards"
    if isinstance(config, TrainTokenizerConfig):
        yield from _iter_tokenizer_problems(config)


def _iter_tokenizer_problems(config: TrainTokenizerConfig) -> Iterator[str]:
    if not config.output.strip():
        yield "output is empty: write output=FOLDER for the tokenizer"
    least = 256 + 5
    if config.algorithm is TokenizerAlgorithm.bpe and config.vocab_size < least:
        yield (
            f"vocab_size={config.vocab_size} has no room for the 256 bytes and 5 special tokens that "
            f"algorithm=bpe begins with: write vocab_size={least} or more"
        )


def _iter_source_problems(prefix: str, source: SourceConfig) -> Iterator[str]:
    if source.source is SourceKind.files and not source.paths:
        yield f"{prefix}.paths is empty: write {prefix}.paths=[my_texts/*.parquet]"
    if source.source is SourceKind.huggingface and not source.dataset:
        yield f"{prefix}.dataset is not set: write {prefix}.dataset=org/name, or data=refinedweb"
    if source.source is not SourceKind.files and source.paths:
        yield (
            f"{prefix}.paths is set but {prefix}.source={source.source.value}: write "
            f"{'data=files' if prefix == 'data' else f'{prefix}.source=files'} to read them"
        )
    if source.source is not SourceKind.huggingface:
        for name in ("dataset", "subset", "split", "revision", "data_files"):
            if getattr(source, name) != getattr(_DEFAULT_SOURCE, name):
                yield (
                    f"{prefix}.{name} is set but {prefix}.source={source.source.value}: write "
                    f"{prefix}.source=huggingface to read from the Hub, or leave it out"
                )
    for unit in ("characters", "tokens"):
        least, most = getattr(source, f"min_{unit}"), getattr(source, f"max_{unit}")
        if most is not None and least > most:
            yield (
                f"{prefix}.min_{unit}={least} exceeds {prefix}.max_{unit}={most}, which leaves no "
                f"document: lower the one or raise the other"
            )


def _iter_training_problems(config: TrainConfig) -> Iterator[str]:
    yield from _iter_repository_problems("hub.repository", config.hub.repository)
    saved, kept = config.checkpoint.save_every_steps, config.checkpoint.keep_every_steps
    if config.hub.repository is not None and kept % saved:
        yield (
            f"checkpoint.keep_every_steps={kept} is no multiple of checkpoint.save_every_steps="
            f"{saved}, so that not all of these steps come to hub.repository: write "
            f"checkpoint.keep_every_steps={max(1, round(kept / saved)) * saved}"
        )
    if not config.output_dir.strip():
        yield "output_dir is empty: write output_dir=runs/NAME"
    if config.trainer.time_limit is not None:
        try:
            parse_duration(config.trainer.time_limit)
        except ValueError:
            yield (
                f"trainer.time_limit={config.trainer.time_limit} is no duration: write "
                f"trainer.time_limit='23:50:00' (hours:minutes:seconds)"
            )


def _iter_probe_problems(evaluation: EvaluationConfig) -> Iterator[str]:
    for name in evaluation.probes:
        if name not in PROBES:
            yield f"evaluation.probes: there is no probe {name}: {suggest(name, PROBES)}"
    usual = EvaluationConfig().probe_every_steps
    if not evaluation.probes and evaluation.probe_every_steps != usual:
        yield (
            f"evaluation.probe_every_steps={evaluation.probe_every_steps} is set without a probe: "
            f"write evaluation.probes=[{','.join(PROBES)}] or some of them"
        )


def _iter_export_problems(config: ExportConfig) -> Iterator[str]:
    if not config.run_dir:
        yield "run_dir is not set: write run_dir=runs/NAME"
    if config.revision is not None and config.push_to_hub is None:
        yield f"revision={config.revision} is a branch on the Hub: write push_to_hub=org/name too"
    yield from _iter_repository_problems("push_to_hub", config.push_to_hub)


def _iter_repository_problems(key: str, name: str | None) -> Iterator[str]:
    if name is not None and not REPOSITORY.fullmatch(name):
        yield f"{key}={name} is no repository of the Hub: write {key}=org/name"
