"""Datasets of the Hugging Face Hub.

Those that are parquet files, as almost all are, are read like other remote files: `datasets` only
says which files belong to a split. Others are streamed with `datasets`, one unit per shard or part
of one.
"""

import hashlib
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeVar

from neobert_train.config.data_schema import BadRecordPolicy, SourceConfig
from neobert_train.data.sources.fields import (
    describe_kind,
    find_id,
    find_value,
    join_names,
    list_names,
)
from neobert_train.data.sources.files import identify_files, list_units, warn_on_main
from neobert_train.data.sources.lines import MOST_DOCUMENT_BYTES, describe_length
from neobert_train.data.sources.source import (
    END_OF_UNIT,
    BadRecord,
    Record,
    Unit,
)
from neobert_train.data.sources.tables import Rows
from neobert_train.errors import InputError
from neobert_train.storage.failures import is_of_system
from neobert_train.storage.retries import run_aside
from neobert_train.storage.stored_files import Network, StoredFile
from neobert_train.storage.versions import FileVersion

T = TypeVar("T")

_SHOWN_AFTER_SECONDS = 10.0
# A cursor is (row group of the shard) * _GROUP + (row in it): datasets can open a row group by
# itself, so that a resume reads one of them instead of a file of half a gigabyte.
_GROUP = 1 << 32


@dataclass(frozen=True, slots=True)
class StreamedDataset:
    """What `datasets.load_dataset(..., streaming=True)` is called with."""

    dataset: str
    subset: str | None
    split: str
    revision: str | None
    data_files: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class DatasetShard:
    """One of `num_shards` shards of a streamed dataset, and the version of all its files."""

    source: StreamedDataset
    number: int
    num_shards: int
    version: FileVersion

    @property
    def name(self) -> str:
        """Such as `org/name, shard 3`."""
        return f"{self.source.dataset}, shard {self.number}"


@dataclass(frozen=True, slots=True)
class StreamedRows(Rows):
    """The rows of a shard, which parts take in turns."""

    def iter_records(self, unit: Unit, cursor: int) -> Iterator[Record | BadRecord]:
        """Yield the rows from `cursor` on; damage is one bad record that ends the unit."""
        first_group, first_row = divmod(cursor, _GROUP)
        place, file = cursor, unit.file
        try:
            shard = _open_dataset(file.source).shard(num_shards=file.num_shards, index=file.number)
            groups = shard.reshard()
            for group in range(first_group, groups.num_shards):
                rows = groups.shard(num_shards=groups.num_shards, index=group)
                skipped = first_row if group == first_group else 0
                for place, record in enumerate(rows.skip(skipped), group * _GROUP + skipped + 1):
                    if (place - 1) % unit.parts == unit.part:
                        yield self._to_record(record, unit.describe(place), place)
        except Exception as error:  # datasets raises whatever the reader and the network raise
            if is_of_system(error):
                raise
            yield BadRecord(f"{unit.name}: cannot be read ({error})", place, END_OF_UNIT)

    def describe(self, next_cursor: int) -> str:
        """Name a record as `row group 0, row 7`; rows count from 1."""
        group, row = divmod(next_cursor, _GROUP)
        return f"row group {group}, row {row}"

    def _to_record(self, record: dict[str, Any], name: str, next_cursor: int) -> Record | BadRecord:
        text, begin = _find_value(record, self.column), next_cursor - 1
        if text is not None and not isinstance(text, str):
            reason = f"{name}: '{self.column}' holds {describe_kind(text)}, not text"
            return BadRecord(reason, begin, next_cursor, is_setting=True)
        try:
            (text or "").encode("utf-8")
        except UnicodeEncodeError:
            reason = f"{name}: '{self.column}' holds a lone surrogate"
            return BadRecord(reason, begin, next_cursor)
        if text and len(text) > MOST_DOCUMENT_BYTES:
            return BadRecord(f"{name}: {describe_length(len(text))}", begin, next_cursor)
        return Record(text or "", begin, next_cursor, find_id(record, self.id_column))


def _find_value(record: Mapping[str, Any], name: str) -> Any:
    """Return the value of a row under a column or, as in `text.en`, inside one; None where it has none."""
    try:
        return find_value(record, name)
    except KeyError:
        return None


@lru_cache(maxsize=2)
def _open_dataset(source: StreamedDataset) -> Any:
    import datasets

    # The progress bars of downloads would fight with ours.
    datasets.disable_progress_bars()
    return datasets.load_dataset(
        source.dataset,
        name=source.subset,
        split=source.split,
        revision=source.revision,
        data_files=list(source.data_files) or None,
        streaming=True,
    )


def list_huggingface_files(
    source: SourceConfig, network: Network, on_bad_record: BadRecordPolicy
) -> Sequence[Unit]:
    """Return the files or shards of a dataset, each as one unit.

    Raises:
        InputError: the dataset cannot be opened or lacks the column.
    """
    streamed = StreamedDataset(
        source.dataset, source.subset, source.split, source.revision, tuple(source.data_files)
    )
    is_parquet, files = _ask(lambda: _find_files(streamed), streamed, network)
    if is_parquet:
        return list_units(source, files, network, on_bad_record)
    num_shards = _ask(lambda: _check_stream(streamed, source), streamed, network)
    warn_on_main(
        "%s is not made of parquet files: `datasets` streams it, slowly; `prepare` reads it once",
        source.dataset,
    )
    rows, version = StreamedRows(source.column, source.id_column), _find_version(files, network)
    return [
        Unit(DatasetShard(streamed, shard, num_shards, version), rows)
        for shard in range(num_shards)
    ]


def _ask(function: Callable[[], T], source: StreamedDataset, network: Network) -> T:
    """Return what a function that asks the Hub returns, within the time of a request.

    Raises:
        InputError: it fails.
    """
    timer = threading.Timer(
        _SHOWN_AFTER_SECONDS, warn_on_main, ("waiting for the dataset %s", source.dataset)
    )
    timer.daemon = True
    timer.start()
    try:
        return run_aside(function, network.limit_seconds)
    except InputError:
        raise
    except TimeoutError as error:
        raise _describe_failure(
            source,
            f"nothing came in {network.limit_seconds:g} seconds, data.timeout_seconds times "
            f"(data.max_retries + 1): check that this machine reaches its host",
        ) from error
    except Exception as error:  # whatever the Hub, the network or a builder raises
        reason = str(error).strip().splitlines()[0] if str(error).strip() else ""
        raise _describe_failure(source, f"{type(error).__name__}: {reason}") from error
    finally:
        timer.cancel()


@lru_cache(maxsize=8)  # the sources of a mixture may be the same dataset, filtered
def _find_files(source: StreamedDataset) -> tuple[bool, tuple[str, ...]]:
    """Return whether a split is nothing but parquet files, and the files, if any are known."""
    import datasets
    from datasets.packaged_modules.parquet.parquet import Parquet

    builder = datasets.load_dataset_builder(
        source.dataset,
        name=source.subset,
        revision=source.revision,
        data_files=list(source.data_files) or None,
    )
    splits = builder.config.data_files or {}
    # A slice such as train[:10%] is no name of a split.
    is_whole = source.split in splits
    names = [source.split] if is_whole else sorted(splits)
    files = tuple(str(file) for name in names for file in splits[name])
    return is_whole and isinstance(builder, Parquet), files


def _find_version(files: Sequence[str], network: Network) -> FileVersion:
    """Return one version for all files of a dataset, which its shards do not tell apart."""
    if not files:
        return FileVersion(None)
    found, problems = identify_files([StoredFile(file, network) for file in files])
    if problems:  # such as an archive inside an archive, which only `datasets` can open
        return FileVersion(None)
    versions = [file.version for file in found]
    sizes = [version.size or 0 for version in versions]
    marks = hashlib.sha256(repr([version.marks[:1] for version in versions]).encode())
    return FileVersion(sum(sizes), (("hash of all files", marks.hexdigest()[:32]),))


def _check_stream(streamed: StreamedDataset, source: SourceConfig) -> int:
    """Return the number of shards of a dataset that has rows and the configured columns."""
    wanted = {"column": source.column, "id_column": source.id_column}
    try:
        dataset = _open_dataset(streamed)
        row = dict.fromkeys(dataset.column_names or ())
        if not row or any(name and name not in row for name in wanted.values()):
            row = next(iter(dataset), row)  # which may hold `text.en`
    except StopIteration:  # of a builder that finds nothing to infer the columns from
        row = {}
    if not row:
        raise InputError(f"the dataset '{source.dataset}' (split '{source.split}') has no rows")
    for key, name in wanted.items():
        try:
            _ = name and find_value(row, name)
        except KeyError:
            raise InputError(
                f"the dataset '{source.dataset}' has no column '{name}': write data.{key}=... with "
                f"one of {join_names(list_names(row))}"
            ) from None
    return int(dataset.num_shards)


def _describe_failure(source: StreamedDataset, reason: str) -> InputError:
    return InputError(
        f"the dataset '{source.dataset}' (split '{source.split}') cannot be opened: {reason}"
    )
