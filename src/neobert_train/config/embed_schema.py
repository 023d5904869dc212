"""The settings of `embed`: which texts belong together, and how a model learns it."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum

from neobert_train.config.schema import Precision
from neobert_train.config.setting import setting

_NAME = re.compile(r"[\w-]+")


class Pooling(Enum):
    """What makes one vector of the hidden states of a text."""

    none = "none"
    mean = "mean"
    cls = "cls"


class Decay(Enum):
    """How the learning rate falls after the warm-up, from its peak towards zero."""

    linear = "linear"
    cosine = "cosine"
    constant = "constant"


@dataclass
class PairsConfig:
    """One set of training data: rows of texts that belong together, and of some that do not."""

    paths: list[str] = setting(
        list,
        "Files, folders, globs or URLs of JSONL, parquet, CSV or TSV: one row for each anchor.",
    )
    dataset: str = setting(
        "", "Dataset of the Hub, or a folder as the Hub has it; give this or paths."
    )
    subset: str | None = setting(None, "dataset: name of its configuration.")
    split: str = setting("train", "dataset: name of its split.")
    revision: str | None = setting(None, "dataset: branch, tag or commit; main by default.")
    anchor: str = setting(
        "anchor", "Column of the query; set.0 is the first entry of the list set."
    )
    positive: str = setting(
        "positive", "Column of a text that belongs to the anchor; of a list, its first entry."
    )
    negatives: list[str] = setting(
        list, "Columns of texts that do not belong to it, or patterns such as negative_*; may be lists."
    )  # fmt: skip
    num_negatives: int | None = setting(
        None, "Negatives of a row to use; all that its first row has by default.", at_least=1
    )
    score: str | None = setting(
        None, "Column of a number that says how near the two texts are; needs min_score."
    )
    min_score: float | None = setting(None, "score: rows at or below it are left out.")
    max_rows: int | None = setting(None, "Most rows to read; all by default.", at_least=1)
    anchor_prompt: str | None = setting(
        None, "Text before anchors of this set; query_prompt by default."
    )
    positive_prompt: str | None = setting(
        None, "Text before positives and negatives of this set; document_prompt by default."
    )

    def iter_problems(self, prefix: str = "") -> Iterator[str]:
        """Yield what is wrong with a set whose settings are in range; keys begin with `prefix`."""
        if bool(self.paths) == bool(self.dataset):
            yield f"give either {prefix}paths=[pairs.jsonl] or {prefix}dataset=org/name, and not both"
        for key in ("subset", "revision") if self.paths else ():
            if getattr(self, key) is not None:
                yield f"{prefix}{key} belongs to {prefix}dataset=org/name, and files have none"
        columns = [self.anchor, self.positive, *self.negatives]
        for column in sorted({name for name in columns if columns.count(name) > 1}):
            yield f"the column '{column}' is given twice among {prefix}anchor, positive and negatives"
        if (self.score is None) != (self.min_score is None):
            yield f"write {prefix}score=COLUMN and {prefix}min_score=NUMBER together, or neither"
        if self.num_negatives is not None and not self.negatives:
            yield f"{prefix}num_negatives is set without columns: write {prefix}negatives=[negative]"


@dataclass
class _ModelSettings:
    """Which model becomes an embedder, and where it goes."""

    preset: str = setting(
        "files", "Settings to start from; preset=NAME chooses, and all can be changed."
    )
    model: str = setting("", "Run directory, exported folder, or org/name@revision on the Hub.")
    step: int | None = setting(
        None, "model=RUN: step of the checkpoint; the newest by default.", at_least=0
    )
    trust_remote_code: bool = setting(
        False, "model: run the Python code that comes with it, which may do anything."
    )
    output: str = setting(
        "", "Folder to write: while it trains its checkpoints, at the end the model."
    )


@dataclass
class EmbedConfig(PairsConfig, _ModelSettings):
    """Train a sentence-transformers model from an encoder."""

    datasets: dict[str, PairsConfig] = setting(
        dict, "Several sets, each under a name; a batch is drawn from one.", entries=PairsConfig
    )
    sampling_exponent: float = setting(
        0.5, "Sets are drawn with probability proportional to rows^this; 1 is in proportion, 0 evenly.",
        at_least=0.0, at_most=2.0,
    )  # fmt: skip
    pooling: Pooling = setting(
        Pooling.mean, "mean over the tokens of a text, or its first token (cls)."
    )
    max_length: int | None = setting(
        None, "Tokens after which texts are cut; by default 512, or less where the model takes less.",
        at_least=8,
    )  # fmt: skip
    query_prompt: str = setting("", "Text before queries, kept in the model as the prompt `query`.")
    document_prompt: str = setting(
        "", "Text before documents, kept in the model as the prompt `document`."
    )
    pool_prompts: bool = setting(
        True, "Whether the tokens of a prompt count in the mean over tokens."
    )
    temperature: float = setting(
        0.05, "Cosine similarities are divided by it before the softmax.", above=0.0, at_most=10.0
    )
    batch_size: int = setting(
        128,
        "Rows of a step: their positives and negatives are negatives of each other.",
        at_least=2,
    )
    mini_batch_size: int = setting(
        32,
        "Texts that go through the network at a time; changes memory and speed only.",
        at_least=1,
    )
    epochs: int = setting(1, "Passes over the data, where max_steps is not set.", at_least=1)
    max_steps: int | None = setting(
        None, "Optimiser steps; those of `epochs` by default.", at_least=1
    )
    lr: float = setting(8e-5, "Peak learning rate.", above=0.0)
    warmup_fraction: float = setting(
        0.05, "Share of the steps over which the learning rate rises to its peak.",
        at_least=0.0, at_most=1.0,
    )  # fmt: skip
    decay: Decay = setting(Decay.linear, "linear or cosine to zero after the warm-up, or constant.")
    weight_decay: float = setting(0.0, "Decoupled weight decay of matrices.", at_least=0.0)
    betas: list[float] = setting(
        lambda: [0.9, 0.999], "AdamW's two decay rates of its moments.", at_least=0.0, below=1.0
    )
    max_grad_norm: float = setting(
        1.0, "Gradients are scaled down to this L2 norm; 0 leaves them.", at_least=0.0
    )
    precision: Precision = setting(
        Precision.auto, "bf16 (of fp32 weights) or fp32; auto is bf16 where the hardware has it."
    )
    seed: int = setting(0, "Decides the order of the data, and dropout.", at_least=0)
    log_every_steps: int = setting(10, "Steps from one line of metrics to the next.", at_least=1)
    save_every_steps: int = setting(200, "Steps from one checkpoint to the next.", at_least=1)

    def list_sets(self) -> dict[str, PairsConfig]:
        """Return the sets of training data by name; one that has no name is called `pairs`."""
        return self.datasets or {"pairs": self}

    def iter_problems(self, prefix: str = "") -> Iterator[str]:
        """Yield what is wrong with settings that are all in range."""
        if not self.model.strip():
            yield "model is not set: write model=runs/NAME, model=FOLDER or model=org/name"
        if not self.output.strip():
            yield "output is not set: write output=FOLDER for the embedder"
        if self.pooling is Pooling.none:
            yield "pooling=none gives no vector of a text: write pooling=mean or pooling=cls"
        if len(self.betas) != 2:
            yield f"betas={self.betas} must be two numbers: write betas=[0.9,0.999]"
        if not (self.datasets or self.paths or self.dataset):
            yield (
                "there is no data: write paths=[pairs.jsonl], dataset=org/name, preset=msmarco or "
                "preset=neobert"
            )
        elif not self.datasets:
            yield from super().iter_problems()
        elif self.paths or self.dataset:
            key, value = ("paths", self.paths) if self.paths else ("dataset", self.dataset)
            yield (
                f"{key}={value} stands beside datasets: write datasets.mine.{key}=... to add it to "
                f"them, or leave out the preset or datasets"
            )
        for name, pairs in self.datasets.items():
            if not _NAME.fullmatch(name):
                yield f"datasets: the name '{name}' may hold letters, digits, _ and - only"
            yield from pairs.iter_problems(f"datasets.{name}.")
