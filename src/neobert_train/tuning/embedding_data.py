"""Sets of anchors with their positives and negatives, from files and from datasets of the Hub."""

import hashlib
import itertools
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
from datasets import Dataset

from neobert_train.config.embed_schema import EmbedConfig, PairsConfig
from neobert_train.data.sources.rows import Row, iter_file_rows
from neobert_train.errors import InputError
from neobert_train.hub import describe_hub_error
from neobert_train.tuning.pair_files import list_pair_files
from neobert_train.tuning.pair_rows import Picker, RowError, describe_problems

logger = logging.getLogger(__name__)

_ROWS_AT_A_TIME = 10_000
_PROBLEMS_SHOWN = 5


@dataclass(frozen=True)
class Pairs:
    """A set of data, ready to be trained on.

    Attributes:
        rows: with the columns anchor, positive, negative_1, negative_2, ... of texts.
        digest: sha256 of all texts in their order.
    """

    rows: Dataset
    digest: str


def load_sets(config: EmbedConfig, announce: Callable[[str], None]) -> dict[str, Pairs]:
    """Load all sets of data, by name.

    Args:
        config: which they are.
        announce: told what is being read.

    Raises:
        InputError: one cannot be read, lacks a column or a text, or has fewer rows than a batch.
    """
    datasets.disable_progress_bars()
    loaded = {}
    for name, pairs in config.list_sets().items():
        prefix = f"datasets.{name}." if config.datasets else ""
        announce(f"reading {pairs.dataset or ', '.join(pairs.paths)}")
        rows = _load_files(pairs, prefix) if pairs.paths else _load_dataset(pairs, prefix)
        origin = f"{prefix}paths" if pairs.paths else f"{prefix}dataset={pairs.dataset}"
        if len(rows) < config.batch_size:
            fix = f"write batch_size={len(rows)} or less" if len(rows) > 1 else "give more data"
            raise InputError(
                f"{origin}: {len(rows)} rows are fewer than a batch (batch_size={config.batch_size}): "
                f"{fix}"
            )
        loaded[name] = Pairs(rows, _compute_digest(rows))
    return loaded


def _load_files(config: PairsConfig, prefix: str) -> Dataset:
    rows = itertools.chain.from_iterable(map(iter_file_rows, list_pair_files(config, prefix)))
    first = next(rows, None)
    if first is None:
        raise InputError(f"{prefix}paths: {', '.join(config.paths)} hold no rows")
    try:
        picker = Picker.build(config, first[1], prefix)
        picker.find_columns(first[1])
    except RowError as error:
        raise InputError(f"{first[0]}: {error}") from error
    _warn_of_unused(picker, first[1], f"{prefix}paths")
    wanted = itertools.islice(itertools.chain([first], rows), config.max_rows)
    names = picker.columns
    batches = [
        pa.RecordBatch.from_arrays([pa.array(texts, pa.large_string()) for texts in columns], names)
        for columns in _iter_columns(_iter_texts(wanted, picker), len(names))
    ]
    schema = pa.schema([(name, pa.large_string()) for name in names])
    return Dataset(pa.Table.from_batches(batches, schema))


def _iter_texts(rows: Iterable[Row], picker: Picker) -> Iterator[list[str]]:
    """Yield the texts of each row; rows whose score is too low are left out.

    Raises:
        InputError: naming the first rows that lack a text, and counting the others.
    """
    problems: list[str] = []
    total = 0
    for place, row in rows:
        try:
            texts = picker.pick(row)
        except RowError as error:
            total += 1
            if len(problems) < _PROBLEMS_SHOWN:
                problems.append(f"{place}: {error}")
            continue
        if texts is not None and not problems:
            yield texts
    if problems:
        raise InputError.from_problems(list(describe_problems(problems, total)))


def _iter_columns(rows: Iterator[list[str]], width: int) -> Iterator[list[list[str]]]:
    while chunk := list(itertools.islice(rows, _ROWS_AT_A_TIME)):
        yield [[row[column] for row in chunk] for column in range(width)]


def _load_dataset(config: PairsConfig, prefix: str) -> Dataset:
    """Load a dataset of the Hub; rows of it that lack a text are left out with a warning.

    Raises:
        InputError: it cannot be reached, is none, or lacks a column.
    """
    label = f"{prefix}dataset={config.dataset}"
    try:
        raw = datasets.load_dataset(
            config.dataset, config.subset, split=config.split, revision=config.revision
        )
    except Exception as error:  # whatever the library, the Hub client or the network raises
        raise InputError(f"{label} cannot be loaded: {_explain(error, config)}") from error
    if not len(raw):
        raise InputError(f"{label} holds no rows in {prefix}split={config.split}")
    if config.max_rows is not None:
        raw = raw.select(range(min(len(raw), config.max_rows)))
    try:
        picker = Picker.build(config, raw[0], prefix)
        picker.find_columns(raw[0])
        picker.pick(raw[0])
    except RowError as error:
        if error.is_setting:
            raise InputError(f"{label}: {error}") from error
        picker = _find_picker(raw, config, prefix, label)
    _warn_of_unused(picker, raw[0], label)
    features = datasets.Features({name: datasets.Value("large_string") for name in picker.columns})
    rows = raw.map(
        _pick_batch, batched=True, remove_columns=raw.column_names, features=features,
        fn_kwargs={"picker": picker}, desc=None,
    )  # fmt: skip
    if config.score is None and len(rows) < len(raw):
        logger.warning("%s: %d rows without a text are left out", label, len(raw) - len(rows))
    return rows


def _warn_of_unused(picker: Picker, row: Mapping[str, Any], label: str) -> None:
    unused = picker.list_unused_negatives(row)
    if unused:
        logger.warning(
            "%s: the texts of %s are not used: write %snegatives=[%s] to learn from them",
            label, ", ".join(unused), picker.prefix, ",".join(unused),
        )  # fmt: skip


def _find_picker(raw: Dataset, config: PairsConfig, prefix: str, label: str) -> Picker:
    """Return the picker by the first row that has all texts.

    Raises:
        InputError: none of the first rows has.
    """
    reason: RowError | None = None
    for row in itertools.islice(raw, _ROWS_AT_A_TIME):
        try:
            picker = Picker.build(config, row, prefix)
            picker.pick(row)
            return picker
        except RowError as error:
            reason = reason or error
    assert reason is not None
    raise InputError(f"{label}, row 1: {reason}") from reason


def _pick_batch(batch: Mapping[str, list[Any]], picker: Picker) -> dict[str, list[str]]:
    """Return the texts of a batch of rows by column; rows that lack one are left out."""
    picked: dict[str, list[str]] = {name: [] for name in picker.columns}
    for values in zip(*batch.values(), strict=True):
        try:
            texts = picker.pick(dict(zip(batch, values, strict=True)))
        except RowError:
            continue
        for name, text in zip(picked, texts or (), strict=False):
            picked[name].append(text)
    return picked


def _explain(error: BaseException, config: PairsConfig) -> str:
    text = (str(error).strip() or type(error).__name__).splitlines()[0]
    if not isinstance(error, OSError) or Path(config.dataset).is_dir():
        return text
    reason = describe_hub_error(error, config.dataset, config.revision)
    return f"{reason}; without a network give files, as in paths=[pairs.parquet]"


def _compute_digest(rows: Dataset) -> str:
    digest = hashlib.sha256(repr((rows.column_names, len(rows))).encode())
    for batch in rows.with_format("arrow").iter(_ROWS_AT_A_TIME):
        for column in batch.columns:
            digest.update("\0".join(column.to_pylist()).encode(errors="surrogatepass"))
    return digest.hexdigest()
