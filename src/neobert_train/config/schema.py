"""Every setting of a training run: name, type, default, range and one line on what it does.

The model, the objective, the optimizer and the scheduler have the settings of the kind chosen for them,
which are in `choices`. The defaults are those of NeoBERT's first pre-training phase (arXiv 2502.19587,
section 3 and table 3); the YAML groups under `configs/` only name deviations from them.
"""

from dataclasses import dataclass
from enum import Enum

from neobert_train.config.choices import (
    AdamWConfig,
    CosineConfig,
    MaskedLMConfig,
    ObjectiveConfig,
    OptimizerConfig,
    SchedulerConfig,
)
from neobert_train.config.data_schema import DataConfig, MaskingConfig, TokenizerConfig
from neobert_train.config.model_schema import ModelConfig, NeoBERTModelConfig
from neobert_train.config.setting import setting


class Resume(Enum):
    """What to do with a run directory that already holds a run."""

    auto = "auto"
    never = "never"
    must = "must"
    changed = "changed"


class Precision(Enum):
    """Number format of the forward and backward pass; weights and moments are kept in fp32."""

    auto = "auto"
    bf16 = "bf16"
    fp32 = "fp32"


class OnDivergence(Enum):
    """What to do when step after step has no finite loss or gradient."""

    stop = "stop"
    rewind = "rewind"


class OnSpike(Enum):
    """What to do with a step whose loss is far above those before it."""

    warn = "warn"
    skip = "skip"
    rewind = "rewind"


class OnWriteError(Enum):
    """What a checkpoint that cannot be written does to the run."""

    go_on = "go_on"
    stop = "stop"


class WandbMode(Enum):
    """Whether metrics also go to Weights & Biases."""

    disabled = "disabled"
    offline = "offline"
    online = "online"


@dataclass
class BatchConfig:
    """The global batch, defined once and independent of hardware."""

    global_batch_tokens: int = setting(
        2_097_152, "Tokens of one optimiser step over all processes.", at_least=1
    )
    micro_batch_tokens: int = setting(
        65_536,
        "Tokens of one forward and backward pass; sets the device memory needed.",
        at_least=1,
    )
    context_length: int = setting(
        1024, "Most tokens of one document, [CLS] and [SEP] included; longer ones are split.",
        at_least=8,
    )  # fmt: skip


@dataclass
class TrainerConfig:
    """How long to train and what to report."""

    max_steps: int = setting(1_000_000, "Optimiser steps of the whole run.", at_least=1)
    max_tokens: int | None = setting(
        None, "The run also ends once it has trained on this many tokens.", at_least=1
    )
    max_seconds: float | None = setting(
        None, "The run also ends once it has trained this long, all its starts together.", above=0.0
    )
    time_limit: str | None = setting(
        None, "Stop with a checkpoint before this start has taken so long, as in 23:50:00 (h:m:s)."
    )
    precision: Precision = setting(
        Precision.auto, "bf16 or fp32 for forward and backward; auto is bf16 where the hardware has it."
    )  # fmt: skip
    deterministic: bool = setting(
        False,
        "Compute the same bits in every start on GPUs too, which takes longer; CPUs always do.",
    )
    step_timeout_seconds: float | None = setting(
        1800.0, "A step or evaluation that takes longer ends the run and shows where it hangs; null is off.",
        above=0.0,
    )  # fmt: skip
    log_every_steps: int = setting(10, "Steps between two lines of metrics.", at_least=1)
    evaluate_every_steps: int = setting(
        2000, "Steps between two evaluations on held-out documents; 0 evaluates at the end only.",
        at_least=0,
    )  # fmt: skip


@dataclass
class DivergenceConfig:
    """Steps that do harm: without a finite loss or gradient, or with a loss far too high."""

    max_skipped_steps: int = setting(
        10, "Steps in a row without a finite loss or gradient, each of them skipped, before `action`.",
        at_least=1,
    )  # fmt: skip
    action: OnDivergence = setting(
        OnDivergence.stop, "stop, or rewind: weights of the last checkpoint, documents after these."
    )
    spike_factor: float = setting(
        2.0, "A loss above this many times the running median is a spike; 0 looks for none.",
        at_least=0.0,
    )  # fmt: skip
    spike_window: int = setting(100, "Steps that the running median is taken over.", at_least=2)
    on_spike: OnSpike = setting(
        OnSpike.warn, "warn (looks at logged steps only), skip the step, or rewind."
    )
    max_rewinds: int = setting(5, "Rewinds of one start, after which the run stops.", at_least=0)


@dataclass
class EvaluationConfig:
    """What a run is evaluated on: held-out documents, and probes of its features."""

    max_tokens: int = setting(
        262_144, "Most held-out tokens to evaluate on; 0 turns evaluation off.", at_least=0
    )
    scan_documents: int = setting(
        1_000_000, "Most documents to look through for held-out ones when a run starts.", at_least=1
    )
    probes: list[str] = setting(
        list, "Probes of the frozen features while training: party, decade, next_paragraph."
    )
    probe_every_steps: int = setting(
        2000, "Steps between two rounds of probes; 0 has them at the start and the end only.",
        at_least=0,
    )  # fmt: skip


@dataclass
class CheckpointConfig:
    """When checkpoints are written and how many stay."""

    save_every_steps: int = setting(1000, "Steps between two checkpoints.", at_least=1)
    keep_last: int = setting(3, "Newest checkpoints to keep.", at_least=1)
    keep_every_steps: int = setting(
        0, "Checkpoints of multiples of this step are kept for good; 0 keeps none for good.",
        at_least=0,
    )  # fmt: skip
    keep_best: bool = setting(True, "Keep the one with the lowest held-out loss as well.")
    on_error: OnWriteError = setting(
        OnWriteError.go_on, "A checkpoint that cannot be written: go_on (and warn) or stop (exit 3)."
    )  # fmt: skip


@dataclass
class DeepSpeedConfig:
    """How optimiser state, gradients and weights are spread over processes."""

    zero_stage: int = setting(
        1, "ZeRO stage: 0 none, 1 optimiser state, 2 and gradients, 3 and weights.",
        at_least=0, at_most=3,
    )  # fmt: skip


@dataclass
class LoggingConfig:
    """Where metrics go besides metrics.jsonl and the terminal."""

    progress: bool = setting(True, "Show a live progress bar on a terminal.")
    report: bool = setting(True, "Draw report.html at checkpoints and at the end.")
    wandb: WandbMode = setting(WandbMode.disabled, "disabled, offline or online.")
    wandb_project: str = setting("neobert_train", "Weights & Biases project.")
    wandb_name: str | None = setting(
        None, "Weights & Biases run name; the run directory's by default."
    )


@dataclass
class HubConfig:
    """Where checkpoints are pushed to while training continues."""

    repository: str | None = setting(
        None,
        "org/name on the Hub for the checkpoints of checkpoint.keep_every_steps, and the last one as main.",
    )
    private: bool = setting(False, "Create the repository as a private one.")
    license: str | None = setting(
        None, "Licence of the weights for the model cards, as the Hub names it, such as apache-2.0."
    )
    wait_seconds: float = setting(
        600.0, "How long a complete run waits at most for what is still being pushed.", at_least=0.0
    )


@dataclass
class TrainConfig:
    """A training run from raw text to the last checkpoint."""

    output_dir: str = setting("runs/default", "Run directory; the same directory again resumes.")
    seed: int = setting(
        0, "Decides the initial weights, the order of documents and the masks.", at_least=0
    )
    resume: Resume = setting(
        Resume.auto,
        "auto continues a run that exists, must needs one, never refuses it, changed takes new settings.",
    )
    init_from: str | None = setting(
        None,
        "Start from these weights: an exported folder, org/name@revision on the Hub, or a run directory.",
    )
    batch: BatchConfig = setting(BatchConfig, "")
    data: DataConfig = setting(DataConfig, "")
    tokenizer: TokenizerConfig = setting(TokenizerConfig, "")
    masking: MaskingConfig = setting(MaskingConfig, "")
    model: ModelConfig = setting(NeoBERTModelConfig, "")
    objective: ObjectiveConfig = setting(MaskedLMConfig, "")
    optimizer: OptimizerConfig = setting(AdamWConfig, "")
    scheduler: SchedulerConfig = setting(CosineConfig, "")
    trainer: TrainerConfig = setting(TrainerConfig, "")
    divergence: DivergenceConfig = setting(DivergenceConfig, "")
    evaluation: EvaluationConfig = setting(EvaluationConfig, "")
    checkpoint: CheckpointConfig = setting(CheckpointConfig, "")
    deepspeed: DeepSpeedConfig = setting(DeepSpeedConfig, "")
    logging: LoggingConfig = setting(LoggingConfig, "")
    hub: HubConfig = setting(HubConfig, "")
