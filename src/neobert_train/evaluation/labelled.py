"""Tasks that are learned from labelled examples: GLUE's eight, and the user's own.

DATA_DIR/sst2/train-00000-of-00001.parquet       as nyu-mll/glue has it on the Hub
DATA_DIR/classification/train.csv                text,label
DATA_DIR/classification/topics/test.jsonl        of the task classification/topics
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from neobert_train.config.tasks import GLUE, GLUE_DATASET
from neobert_train.data.sources.rows import list_row_suffixes
from neobert_train.errors import InputError
from neobert_train.evaluation.data_files import (
    find_split,
    read_columns,
)
from neobert_train.evaluation.metrics import Scoring
from neobert_train.files import hash_json
from neobert_train.hub import HubError, download_files
from neobert_train.tuning.examples import Examples

# Of a task with one file: one row in so many is for evaluation.
_ROWS_PER_EVALUATION_ROW = 5


@dataclass(frozen=True)
class LabelledData:
    """The examples of a task, and how predictions of them are scored.

    Attributes:
        train, evaluation: examples.
        scoring: of predictions for the evaluation examples.
        classes: names by id; None for regression.
        digest: hash of all examples.
    """

    train: Examples
    evaluation: Examples
    scoring: Scoring
    classes: tuple[str, ...] | None
    digest: str


@dataclass(frozen=True)
class _GlueTask:
    """A task of GLUE (Wang et al. 2018, arXiv 1804.07461), as nyu-mll/glue names its columns."""

    columns: tuple[str, ...]
    metrics: tuple[str, ...]
    classes: tuple[str, ...] | None = ("0", "1")
    splits: tuple[str, ...] = ("validation",)


_GLUE = {
    "cola": _GlueTask(("sentence",), ("matthews",)),
    "sst2": _GlueTask(("sentence",), ("accuracy",)),
    "mrpc": _GlueTask(("sentence1", "sentence2"), ("accuracy", "f1")),
    "stsb": _GlueTask(("sentence1", "sentence2"), ("pearson", "spearman"), classes=None),
    "qqp": _GlueTask(("question1", "question2"), ("accuracy", "f1")),
    "mnli": _GlueTask(
        ("premise", "hypothesis"), ("accuracy",), ("0", "1", "2"),
        ("validation_matched", "validation_mismatched"),
    ),
    "qnli": _GlueTask(("question", "sentence"), ("accuracy",)),
    "rte": _GlueTask(("sentence1", "sentence2"), ("accuracy",)),
}  # fmt: skip
assert tuple(_GLUE) == GLUE


def load_glue(name: str, data_dir: Path | None) -> LabelledData:
    """Load a task of GLUE from a folder, or (None) from the Hub.

    Raises:
        InputError: a file is missing or cannot be read, or the Hub cannot be reached.
    """
    task = _GLUE[name]
    folder = _download(name) if data_dir is None else data_dir / name
    train = _read_glue(folder, "train", name)
    parts = [_read_glue(folder, split, name) for split in task.splits]
    labels = np.concatenate([part.labels for part in parts])
    pairs = [part.pairs for part in parts if part.pairs is not None]
    evaluation = Examples(
        [text for part in parts for text in part.texts],
        [text for part in pairs for text in part] if pairs else None,
        labels,
    )
    sets = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
    scoring = Scoring(task.metrics, sets if len(parts) > 1 else None)
    return LabelledData(train, evaluation, scoring, task.classes, _hash(train, evaluation))


def load_own(task: str, data_dir: Path) -> LabelledData:
    """Load a task on the user's own files.

    `classification` has the columns `text`, `label` and, for pairs of texts, `text_pair`; its
    metrics are accuracy and macro F1. `token_classification` has lists, `tokens` and `labels`; its
    metrics are the same, over words.

    Args:
        task: `classification` or `token_classification`, with or without `/NAME`.
        data_dir: holds the folder of that name with `train.*` and `validation.*` or `test.*`, or one
            file of that name, of which every fifth row, by the hash of its text, is for evaluation.

    Raises:
        InputError: a file or column is missing, a label has no class in training, or there is one
            class only.
    """
    on_words = task.partition("/")[0] == "token_classification"
    train_files, evaluation_files = _find_own(data_dir, task)
    rows = _read_own(train_files, on_words)
    if evaluation_files:
        evaluation_rows = _read_own(evaluation_files, on_words)
    else:
        rows, evaluation_rows = _divide(rows, train_files)
    if (rows.pairs is None) != (evaluation_rows.pairs is None):
        raise InputError(
            f"{evaluation_files[0]} and {train_files[0]} differ: only one of them has the column text_pair"
        )
    names = sorted({label for row in rows.labels for label in (row if on_words else [row])})
    if len(names) < 2:
        raise InputError(
            f"{train_files[0]}: all labels of the training examples are {names[0]!r}: give two "
            f"classes or more"
        )
    ids = {name: number for number, name in enumerate(names)}
    train = _to_ids(rows, ids, train_files, on_words)
    evaluation = _to_ids(evaluation_rows, ids, evaluation_files or train_files, on_words)
    scoring = Scoring(("accuracy", "macro_f1"), None)
    return LabelledData(train, evaluation, scoring, tuple(names), _hash(train, evaluation))


def draw(examples: Examples, most: int | None, scoring: Scoring) -> tuple[Examples, Scoring]:
    """Return a part of the examples that is the same for every model, with their scoring.

    Args:
        examples: all.
        most: of how many; None for all.
        scoring: of all.
    """
    if most is None or len(examples) <= most:
        return examples, scoring
    drawn = np.sort(np.random.default_rng(0).choice(len(examples), most, replace=False))
    parts = None if scoring.parts is None else scoring.parts[drawn]
    return examples.take(drawn), Scoring(scoring.metrics, parts)


def _download(name: str) -> Path:
    try:
        return download_files(GLUE_DATASET, [f"{name}/*.parquet"], kind="dataset") / name
    except HubError as error:
        raise InputError(
            f"the task {name} cannot be had from the Hub ({error}): put nyu-mll/glue's folder {name} into a "
            f"folder of yours, and write data_dir=FOLDER"
        ) from error


def _read_glue(folder: Path, split: str, name: str) -> Examples:
    task, files = _GLUE[name], find_split(folder, split)
    if not files:
        raise InputError(
            f"{folder} has no file {split}-00000-of-00001.parquet: data_dir=... is a folder with {name}/ as "
            f"nyu-mll/glue has it on the Hub"
        )
    rows = read_columns(files, [*task.columns, "label"])
    texts = [rows.take_texts(column, may_be_empty=True) for column in task.columns]
    scores = rows.take_numbers("label")
    if task.classes is None:
        labels = np.array(scores)
    else:
        labels = np.array(scores, np.int64)
        unknown = (labels < 0) | (labels >= len(task.classes)) | (labels != np.array(scores))
        if unknown.any():
            row = int(np.flatnonzero(unknown)[0])
            raise InputError(
                f"{rows.places[row]}: label is {scores[row]:g}, and {name} has the labels 0 to "
                f"{len(task.classes) - 1}: take a split that has labels"
            )
    if len(np.unique(labels)) < 2:
        raise InputError(f"{files[0]}: all labels are {scores[0]:g}: give examples of two or more")
    return Examples(texts[0], texts[1] if len(texts) > 1 else None, labels)


def _find_own(data_dir: Path, task: str) -> tuple[list[Path], list[Path]]:
    """Return the files for training, and for evaluation (none where these are a part of the first)."""
    folder = data_dir / task
    train = find_split(folder, "train")
    evaluation = find_split(folder, "validation") or find_split(folder, "test")
    if train and evaluation:
        return train, evaluation
    single = find_split(folder.parent, folder.name)
    if single:
        return single, []
    missing = [name for name, files in (("train", train), ("validation", evaluation)) if not files]
    raise InputError(
        f"{folder} has no files {' and '.join(missing)}, and there is no {folder}.csv: write train.csv and "
        f"validation.csv or test.csv (or {', '.join(list_row_suffixes())}) there; see docs/evaluation.md"
    )


@dataclass(frozen=True)
class _Rows:
    """Rows with the labels as they are written."""

    texts: list[Any]
    pairs: list[str] | None
    labels: list[Any]


def _read_own(files: Sequence[Path], on_words: bool) -> _Rows:
    if not on_words:
        rows = read_columns(files, ["text", "label"], ["text_pair"])
        return _Rows(
            rows.take_texts("text"),
            rows.take_texts("text_pair") if "text_pair" in rows else None,
            list(map(_check_label, rows.places, rows.values["label"])),
        )
    rows = read_columns(files, ["tokens", "labels"])
    sentences, tags = rows.values["tokens"], rows.values["labels"]
    for place, words, labels in zip(rows.places, sentences, tags, strict=True):
        sound = isinstance(words, list) and isinstance(labels, list) and len(words) == len(labels)
        if not sound or not words or not all(isinstance(word, str) for word in words):
            raise InputError(
                f"{place}: tokens and labels must be lists of equal length, the first of texts"
            )
    of_words = [
        [_check_label(place, label) for label in labels]
        for place, labels in zip(rows.places, tags, strict=True)
    ]
    return _Rows(sentences, None, of_words)


def _check_label(place: str, value: Any) -> str:
    if value is None or value != value or not str(value).strip():
        raise InputError(f"{place}: there is no label: write one or remove the row")
    return value if isinstance(value, str) else json.dumps(value, default=str)


def _divide(rows: _Rows, files: Sequence[Path]) -> tuple[_Rows, _Rows]:
    """Divide rows by the hash of their text, so that equal texts are on one side."""
    hashes = [hashlib.sha256(str(text).encode()).digest()[0] for text in rows.texts]
    held_out = [number % _ROWS_PER_EVALUATION_ROW == 0 for number in hashes]
    if all(held_out) or not any(held_out):
        raise InputError(
            f"{files[0]} has too few rows to be divided into training and evaluation: give train and "
            f"validation files"
        )

    def take(wanted: bool) -> _Rows:
        kept = [i for i, out in enumerate(held_out) if out == wanted]
        pairs = None if rows.pairs is None else [rows.pairs[i] for i in kept]
        return _Rows([rows.texts[i] for i in kept], pairs, [rows.labels[i] for i in kept])

    return take(False), take(True)


def _to_ids(rows: _Rows, ids: dict[str, int], files: Sequence[Path], on_words: bool) -> Examples:
    flat = [label for row in rows.labels for label in (row if on_words else [row])]
    unknown = sorted({label for label in flat if label not in ids})
    if unknown:
        raise InputError(
            f"{files[0]}: the label {unknown[0]!r} is in no training example, which has {', '.join(ids)}"
        )
    return Examples(rows.texts, rows.pairs, np.array([ids[label] for label in flat], np.int64))


def _hash(*parts: Examples) -> str:
    return hash_json([[list(part.texts), part.pairs, part.labels.tolist()] for part in parts])
