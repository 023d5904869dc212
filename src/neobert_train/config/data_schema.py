"""Settings of the data: sources and their mixture, tokenizer, masking."""

import dataclasses
from dataclasses import dataclass, make_dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any, Optional

from neobert_train.config.setting import setting


class SourceKind(Enum):
    """Where documents come from."""

    files = "files"
    huggingface = "huggingface"
    embedded = "embedded"


class FileFormat(Enum):
    """How documents lie in a file; `auto` goes by the file's name."""

    auto = "auto"
    parquet = "parquet"
    arrow = "arrow"
    jsonl = "jsonl"
    json = "json"
    csv = "csv"
    tsv = "tsv"
    text = "text"


FORMAT_NAMES = f"{', '.join(known.value for known in FileFormat)}; auto goes by the file names"


class TextDocuments(Enum):
    """What one document of a plain text file is."""

    blank_line = "blank_line"
    line = "line"
    file = "file"


class BadRecordPolicy(Enum):
    """What to do with a record that cannot be read."""

    stop = "stop"
    skip = "skip"


class Draw(Enum):
    """What is drawn from one source of a mixture at a time."""

    document = "document"
    micro_batch = "micro_batch"


class MaskingStrategy(Enum):
    """What a token chosen for prediction is replaced by."""

    mask_only = "mask_only"
    bert_80_10_10 = "bert_80_10_10"


class MaskingUnit(Enum):
    """What is chosen for prediction as a whole."""

    token = "token"
    word = "word"
    span = "span"


@dataclass
class SourceConfig:
    """One source of documents."""

    source: SourceKind = setting(
        SourceKind.huggingface, "files (by path or URL), huggingface (Hub) or embedded (shipped texts)."
    )  # fmt: skip
    paths: list[str] = setting(
        list, "source=files: files, folders, globs or URLs (https://, s3://, hf://) to read."
    )
    format: FileFormat = setting(FileFormat.auto, f"source=files: {FORMAT_NAMES}.")
    column: str = setting(
        "content", "Column or JSON key that holds the text; text.en is the field en of text."
    )
    id_column: str | None = setting(
        None, "Column or JSON key that names a document in messages; file and row by default."
    )
    text_documents: TextDocuments = setting(
        TextDocuments.blank_line, "format=text: a document is a block between blank_line, a line or a file."
    )  # fmt: skip
    dataset: str = setting(
        "tiiuae/falcon-refinedweb", "source=huggingface: Hub name, or a loader such as parquet."
    )
    subset: str | None = setting(None, "source=huggingface: name of the dataset's configuration.")
    split: str = setting("train", "source=huggingface: split to read.")
    revision: str | None = setting(
        None, "source=huggingface: branch, tag or commit of the dataset."
    )
    data_files: list[str] = setting(
        list, "source=huggingface: files, globs or URLs to restrict the dataset to."
    )
    min_characters: int = setting(0, "Documents with fewer characters are left out.", at_least=0)
    max_characters: int | None = setting(
        None, "Documents with more characters are left out.", at_least=1
    )
    min_tokens: int = setting(0, "Documents with fewer tokens are left out.", at_least=0)
    max_tokens: int | None = setting(None, "Documents with more tokens are left out.", at_least=1)
    max_epochs: int | None = setting(
        None, "Passes over the documents after which the source is exhausted; endless by default.",
        at_least=1,
    )  # fmt: skip


def _as_overrides(fields: "tuple[dataclasses.Field[Any], ...]") -> list[tuple[str, Any, Any]]:
    """Return the same fields, None by default, which stands for a value that is set elsewhere."""
    return [
        (
            field.name,
            Optional[field.type],  # noqa: UP045 - of a type known only at run time
            dataclasses.field(default=None, metadata=field.metadata),
        )
        for field in fields
    ]


@dataclass
class MixtureWeights:
    """How much of the tokens a source of a mixture gives."""

    weight: float = setting(
        1.0, "Share of the tokens, relative to the weights of the others.", at_least=0.0
    )
    weight_from: dict[int, float] = setting(
        dict, "Weight from a step on, as in {5000:0.3,20000:0.1}.", at_least=0.0
    )


if TYPE_CHECKING:

    class MixtureSourceConfig(MixtureWeights):
        """What type checkers know of the class below."""

else:
    MixtureSourceConfig = make_dataclass(
        "MixtureSourceConfig",
        _as_overrides(dataclasses.fields(SourceConfig)),
        bases=(MixtureWeights,),
        namespace={
            "__doc__": "A source of a mixture; what it leaves out is as in the `data` section.",
            "__module__": __name__,
        },
    )


@dataclass
class DataConfig(SourceConfig):
    """Where documents come from and in which order they are read."""

    mixture: dict[str, MixtureSourceConfig] = setting(
        dict, "Sources by name, read together.", entries=MixtureSourceConfig
    )
    draw: Draw = setting(
        Draw.document, "mixture: document (mixed in every batch) or micro_batch (of one source each)."
    )  # fmt: skip
    prepared_dir: str | None = setting(
        None, "Folder of token shards that `prepare` wrote; read in place of the texts."
    )
    shuffle_window: int = setting(
        1024, "Documents of a lane that are shuffled together; 1 keeps the order of the files.",
        at_least=1,
    )  # fmt: skip
    shuffle_units: int = setting(
        4, "Places of the source that a lane reads at a time, which the shuffle window mixes.",
        at_least=1, at_most=64,
    )  # fmt: skip
    lookahead_documents: int = setting(
        64, "Documents kept ready to fill the end of a micro-batch; more packs tighter.",
        at_least=1, at_most=128,
    )  # fmt: skip
    heldout_fraction: float = setting(
        0.005, "Share of documents, chosen by a hash of their text, kept for evaluation only.",
        at_least=0.0, below=1.0,
    )  # fmt: skip
    on_bad_record: BadRecordPolicy = setting(
        BadRecordPolicy.stop,
        "What an unreadable record does: stop the run, or skip (counted; the first is named).",
    )  # fmt: skip
    max_retries: int = setting(
        8, "Most further attempts at a failed network request, with growing pauses.", at_least=0
    )
    timeout_seconds: float = setting(
        60.0, "Most seconds of one attempt at a network request; of all its attempts and pauses "
        "together, times (max_retries + 1).", above=0.0,
    )  # fmt: skip
    num_workers: int = setting(
        2, "Worker processes per training process that read and tokenise ahead; 0 is none.",
        at_least=0,
    )  # fmt: skip
    prefetch_micro_batches: int = setting(
        4, "Micro-batches each worker keeps ready beside those of the next step.", at_least=1
    )


@dataclass
class TokenizerConfig:
    """The tokenizer, and which entries of its vocabulary stand for something other than text."""

    path: str = setting(
        "bert-base-uncased",
        "A folder, a tokenizer.json or org/name@revision on the Hub; bert-base-uncased is shipped.",
    )
    pad_token: str | None = setting(
        None, "Entry of the vocabulary for padding; as the tokenizer's files say by default."
    )
    unk_token: str | None = setting(
        None,
        "Entry for unknown text that an export names; as the tokenizer's files say by default.",
    )
    cls_token: str | None = setting(
        None, "Entry put before every document; as the tokenizer's files say by default."
    )
    sep_token: str | None = setting(
        None, "Entry put behind every document; as the tokenizer's files say by default."
    )
    mask_token: str | None = setting(
        None, "Entry that stands for a hidden token; as the tokenizer's files say by default."
    )


@dataclass
class MaskingConfig:
    """Which tokens are predicted."""

    rate: float = setting(
        0.2, "Share of the text tokens (never a special token) to predict.", above=0.0, below=1.0
    )
    final_rate: float | None = setting(
        None, "Share that the rate goes to in a straight line; it stays by default.",
        above=0.0, below=1.0,
    )  # fmt: skip
    rate_steps: int | None = setting(
        None, "Step at which final_rate is reached; trainer.max_steps by default.", at_least=1
    )
    strategy: MaskingStrategy = setting(
        MaskingStrategy.mask_only, "mask_only (all become [MASK]) or bert_80_10_10."
    )
    unit: MaskingUnit = setting(
        MaskingUnit.token, "token (each by itself), word (all its tokens) or span (of words)."
    )
    span_words: float = setting(
        3.0, "unit=span: mean length of a span, in words; ten times that at most.", at_least=1.0
    )


if TYPE_CHECKING:

    class MaskingOverrides(MaskingConfig):
        """What type checkers know of the class below."""

else:
    MaskingOverrides = make_dataclass(
        "MaskingOverrides",
        _as_overrides(dataclasses.fields(MaskingConfig)),
        namespace={
            "__doc__": "Which tokens are predicted; what it leaves out is as in the run.",
            "__module__": __name__,
        },
    )
