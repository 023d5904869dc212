"""The settings of every command: those of a training run with a few more, or its own."""

from dataclasses import dataclass
from enum import Enum
from typing import Any

from neobert_train.config.embed_schema import EmbedConfig, Pooling
from neobert_train.config.evaluate_schema import EvaluateConfig
from neobert_train.config.schema import TrainConfig
from neobert_train.config.setting import setting


@dataclass
class PlanConfig(TrainConfig):
    """What an experiment needs on named hardware."""

    device: str = setting("h100", "Device to plan for; see the list that `plan` prints.")
    num_devices: int = setting(8, "Devices to plan for.", at_least=1)
    # Estimated from the operations and bytes of a compiled step of 28 x 768 on an H100, with torch's own
    # packed attention.
    mfu: float = setting(
        0.34,
        "Share of the device's peak that training reaches, as train/mfu of a run; 0.34 is not measured.",
        above=0.0,
        at_most=1.0,
    )


@dataclass
class DoctorConfig(TrainConfig):
    """What this machine has, and what an experiment would use of it."""


@dataclass
class StatusConfig(TrainConfig):
    """How the latest start of the run in output_dir ended."""

    wait_seconds: float = setting(
        0.0,
        "How long to wait for a process that still trains, and may be about to end.",
        at_least=0.0,
    )


@dataclass
class PrepareConfig(TrainConfig):
    """Tokenise once what an experiment reads, into data.prepared_dir."""

    num_processes: int | None = setting(
        None, "Processes that tokenise side by side; one per CPU core by default.", at_least=1
    )


@dataclass
class InspectDataConfig(TrainConfig):
    """Show what the global batch of a step holds."""

    step: int = setting(1, "Step whose global batch to show; the first is 1.", at_least=1)
    documents: int = setting(8, "Documents to show with their masked text.", at_least=0)


class TokenizerAlgorithm(Enum):
    """How text is cut into tokens."""

    wordpiece = "wordpiece"
    unigram = "unigram"
    bpe = "bpe"


@dataclass
class TrainTokenizerConfig(TrainConfig):
    """Train a tokenizer on the documents of an experiment."""

    output: str = setting("tokenizer", "Folder to write; tokenizer.path=FOLDER then uses it.")
    algorithm: TokenizerAlgorithm = setting(
        TokenizerAlgorithm.wordpiece, "wordpiece, unigram or bpe (byte-level)."
    )
    vocab_size: int = setting(
        30_522, "Entries of the vocabulary, the five special tokens included.", at_least=100
    )
    lowercase: bool = setting(
        False, "Lower-case the text and strip the accents of its Latin, Greek and Cyrillic letters."
    )
    min_frequency: int = setting(
        2, "Occurrences that a token of wordpiece or bpe needs at least.", at_least=1
    )
    max_documents: int = setting(1_000_000, "Most documents to train on.", at_least=1)


class ExportFormat(Enum):
    """What is exported."""

    transformers = "transformers"
    onnx = "onnx"


@dataclass
class ExportConfig:
    """Write a checkpoint as a folder that transformers loads."""

    run_dir: str = setting("", "Run directory to export from.")
    step: int | None = setting(
        None, "Step of the checkpoint; the newest sound one by default.", at_least=0
    )
    output: str | None = setting(None, "Folder to write; RUN_DIR/export by default.")
    format: ExportFormat = setting(
        ExportFormat.transformers, "transformers, or onnx: with onnx/model.onnx beside it."
    )
    pooling: Pooling = setting(
        Pooling.none, "mean or cls make the folder a sentence-transformers model; none leaves it to users."
    )  # fmt: skip
    evaluations: list[str] = setting(
        list,
        "Folders of `evaluate models=[...]`, whose results for this checkpoint go into the card.",
    )
    license: str | None = setting(
        None, "Licence of the weights for the model card, as the Hub names it, such as apache-2.0."
    )
    push_to_hub: str | None = setting(None, "Hub repository org/name to upload the folder to.")
    revision: str | None = setting(
        None, "push_to_hub: branch to upload to, such as step-00010000; main by default."
    )
    private: bool = setting(False, "Create the Hub repository as a private one.")


SCHEMAS: dict[str, type[Any]] = {
    "train": TrainConfig,
    "prepare": PrepareConfig,
    "inspect_data": InspectDataConfig,
    "train_tokenizer": TrainTokenizerConfig,
    "evaluate": EvaluateConfig,
    "embed": EmbedConfig,
    "export": ExportConfig,
    "plan": PlanConfig,
    "doctor": DoctorConfig,
    "status": StatusConfig,
}
