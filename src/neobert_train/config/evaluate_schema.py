"""The settings of `evaluate`."""

from dataclasses import dataclass
from enum import Enum

from neobert_train.config.data_schema import (
    FORMAT_NAMES,
    FileFormat,
    MaskingOverrides,
    TextDocuments,
)
from neobert_train.config.schema import Precision
from neobert_train.config.setting import setting


class Method(Enum):
    """How a task is learned from its training examples."""

    probe = "probe"
    finetune = "finetune"


@dataclass
class GridConfig:
    """How the tasks with training examples are learned: alike for every model.

    Every combination of `learning_rates`, `batch_sizes`, `weight_decays` and `epochs` is trained with
    every seed.
    """

    method: Method = setting(
        Method.finetune, "finetune: all weights are trained; probe: a linear model on frozen features."
    )  # fmt: skip
    learning_rates: list[float] = setting(
        lambda: [1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4], "Peak learning rates to try.", above=0.0
    )
    batch_sizes: list[int] = setting(
        lambda: [32], "Numbers of examples of a step to try.", at_least=1
    )
    weight_decays: list[float] = setting(lambda: [0.01], "Weight decays to try.", at_least=0.0)
    epochs: list[int] = setting(
        lambda: [1], "Numbers of passes over the training examples to try.", at_least=1
    )
    task_epochs: dict[str, list[int]] = setting(
        dict, "Epochs of single tasks, as in {rte:[2,5,10]}."
    )
    max_steps: int | None = setting(
        1000, "Most steps, whatever the epochs; null sets no bound.", at_least=1
    )
    seeds: list[int] = setting(
        lambda: [0, 1, 2, 3, 4], "Each decides a new head, the dropout and the order of examples.",
        at_least=0, at_most=2**32 - 1,
    )  # fmt: skip
    warmup_fraction: float = setting(
        0.1, "Share of the steps in which the learning rate rises.", at_least=0.0, at_most=1.0
    )
    decay_fraction: float = setting(
        1.0, "Share of the steps after which the learning rate has fallen.", above=0.0, at_most=1.0
    )
    final_fraction: float = setting(
        0.0, "Learning rate at the end, as a share of the peak.", at_least=0.0, at_most=1.0
    )
    evaluate_every_steps: int | None = setting(
        None, "Steps between evaluations, the best of which counts; only at the end by default.", at_least=1
    )  # fmt: skip
    evaluations_per_epoch: int = setting(
        10, "With evaluate_every_steps: evaluations of an epoch at least.", at_least=1
    )
    patience: int | None = setting(
        None, "Evaluations without a gain after which training stops; none by default.", at_least=1
    )
    start_from_mnli: list[str] = setting(
        list, "Tasks that start from the weights of the model's best mnli cell."
    )
    max_length: int = setting(
        512, "Most tokens of an example; fewer for a model that takes fewer.", at_least=8
    )
    max_train_examples: int | None = setting(
        None, "Most training examples, drawn once for all models; all by default.", at_least=8
    )
    max_evaluation_examples: int | None = setting(
        None, "Most evaluation examples, drawn once for all models; all by default.", at_least=8
    )
    dropout: float = setting(
        0.1,
        "Dropout of the new head; a model's own stays as its files say.",
        at_least=0.0,
        below=1.0,
    )
    adam_beta1: float = setting(0.9, "AdamW: decay of the first moment.", at_least=0.0, below=1.0)
    adam_beta2: float = setting(
        0.999, "AdamW: decay of the second moment.", at_least=0.0, below=1.0
    )
    adam_epsilon: float = setting(
        1e-8, "AdamW: what is added to the root of the second.", above=0.0
    )
    max_grad_norm: float | None = setting(
        1.0, "Gradients are clipped to this norm; null does not clip.", above=0.0
    )


@dataclass
class TokenTaskConfig:
    """Tasks that are measured on text and learn nothing."""

    lengths: list[int] = setting(
        lambda: [128, 512], "pseudo_perplexity, throughput: lengths of the texts in tokens.", at_least=8
    )  # fmt: skip
    texts_per_length: int = setting(32, "pseudo_perplexity: texts of each length.", at_least=1)
    positions_per_text: int = setting(
        64, "pseudo_perplexity: tokens of a text that are predicted, evenly spaced; all are at most.",
        at_least=1,
    )  # fmt: skip
    throughput_tokens: int = setting(
        65_536, "throughput: tokens of each measurement, in batches of micro_batch_tokens.", at_least=8
    )  # fmt: skip


@dataclass
class MTEBConfig:
    """What `tasks=[mteb]` stands for."""

    benchmark: str = setting("MTEB(eng, v2)", "Benchmark of MTEB, as its library names it.")
    tasks: list[str] = setting(list, "Single tasks of it; all by default.")


@dataclass
class EvaluateConfig:
    """Compare models on tasks, or measure one on text."""

    models: list[str] = setting(
        list,
        "Models to compare: run directories (RUN@STEP), folders, and Hub names (org/name@revision).",
    )
    tasks: list[str] = setting(
        lambda: ["masked_lm"], "What to measure; `glue` stands for its eight tasks. See docs/evaluation.md."
    )  # fmt: skip
    output: str | None = setting(
        None, "models: folder for cells and tables; a second call computes what is missing in it."
    )
    data_dir: str | None = setting(
        None, "Folder with tasks, as FOLDER/sst2/train-00000-of-00001.parquet; GLUE is on the Hub by default."
    )  # fmt: skip
    plan: bool = setting(False, "models: only say how many cells there are, and what they need.")
    retry_failed: bool = setting(True, "models: compute again the cells that failed before.")
    grid: GridConfig = setting(GridConfig, "")
    measure: TokenTaskConfig = setting(TokenTaskConfig, "")
    mteb: MTEBConfig = setting(MTEBConfig, "")
    query_prompt: str | None = setting(
        None, "retrieval, nanobeir, mteb: text before queries; the model's own by default."
    )
    document_prompt: str | None = setting(
        None, "retrieval, nanobeir, mteb: text before documents; the model's own by default."
    )
    run_dir: str | None = setting(None, "Run directory to measure on text; give this or model.")
    model: str | None = setting(
        None, "Exported folder or org/name@revision to measure on text; give this or run_dir."
    )
    trust_remote_code: bool = setting(
        False, "Run the Python code that comes with models, which may do anything."
    )
    step: int | None = setting(
        None, "run_dir: step of the checkpoint; the newest by default.", at_least=0
    )
    paths: list[str] = setting(
        list, "Files, folders, globs or URLs of texts; the run's own held-out documents by default."
    )
    format: FileFormat = setting(FileFormat.auto, f"paths: {FORMAT_NAMES}.")
    column: str = setting(
        "content", "Column or JSON key that holds the text; text.en is the field en of text."
    )
    text_documents: TextDocuments = setting(
        TextDocuments.blank_line, "Text files: a document is a block between blank_line, a line or a file."
    )  # fmt: skip
    context_length: int | None = setting(
        None, "Most tokens of a document; those of the training by default, as far as the model says.",
        at_least=8,
    )  # fmt: skip
    micro_batch_tokens: int = setting(
        16_384, "Tokens of one forward pass, which masks depend on: a run's own, and max_tokens, give its "
        "held-out loss.", at_least=8,
    )  # fmt: skip
    max_tokens: int = setting(1_048_576, "Most tokens to evaluate on.", at_least=1)
    masking: MaskingOverrides = setting(MaskingOverrides, "")
    seed: int | None = setting(
        None, "Decides which tokens are masked; the run's own (or 0) by default.", at_least=0
    )
    precision: Precision | None = setting(
        None, "bf16 or fp32; auto is bf16 where the hardware has it, null only where that is a GPU."
    )  # fmt: skip
