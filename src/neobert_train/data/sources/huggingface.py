"""Datasets streamed with Hugging Face `datasets`, one unit per shard or part of one."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from neobert_train.data.sources.source import END_OF_UNIT, BadRecord, Record
from neobert_train.errors import InputError

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
class HuggingFaceUnit:
    """Every `parts`-th row of one shard of a streamed dataset."""

    source: StreamedDataset
    column: str
    shard: int
    num_shards: int
    part: int = 0
    parts: int = 1

    def iter_records(self, cursor: int) -> Iterator[Record | BadRecord]:
        """The rows from `cursor` on; a failed read is one bad record that ends the unit."""
        first_group, first_row = divmod(cursor, _GROUP)
        try:
            shard = _open_dataset(self.source).shard(num_shards=self.num_shards, index=self.shard)
            groups = shard.reshard()
            for group in range(first_group, groups.num_shards):
                rows = groups.shard(num_shards=groups.num_shards, index=group)
                skipped = first_row if group == first_group else 0
                for row, record in enumerate(rows.skip(skipped), skipped):
                    if row % self.parts == self.part:
                        yield self._to_record(record, group, row)
        except Exception as error:  # datasets raises whatever the reader and the network raise
            reason = f"{self.source.dataset}, shard {self.shard}: cannot be read ({error})"
            yield BadRecord(reason, END_OF_UNIT)

    def _to_record(self, record: dict[str, Any], group: int, row: int) -> Record | BadRecord:
        text = record.get(self.column)
        next_cursor = group * _GROUP + row + 1
        place = f"{self.source.dataset}, shard {self.shard}, row group {group}, row {row + 1}"
        if text is not None and not isinstance(text, str):
            kind = type(text).__name__
            return BadRecord(f"{place}: '{self.column}' holds a {kind}, not text", next_cursor)
        try:
            (text or "").encode("utf-8")
        except UnicodeEncodeError:
            return BadRecord(f"{place}: '{self.column}' holds a lone surrogate", next_cursor)
        return Record(text or "", next_cursor)


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


def build_huggingface_units(
    source: StreamedDataset, column: str, num_lanes: int
) -> list[HuggingFaceUnit]:
    """The units of a streamed dataset, at least one a lane.

    Raises:
        InputError: the dataset cannot be opened or lacks the column.
    """
    try:
        dataset = _open_dataset(source)
        columns = dataset.column_names or list(next(iter(dataset), ()))
    except StopIteration:  # of a builder that finds nothing to infer the columns from
        columns = []
    except Exception as error:  # whatever the Hub, the network or a builder raises
        raise InputError(
            f"the dataset '{source.dataset}' (split '{source.split}') cannot be opened: "
            f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error) else ''}"
        ) from error
    if not columns:
        raise InputError(f"the dataset '{source.dataset}' (split '{source.split}') has no rows")
    if column not in columns:
        raise InputError(
            f"the dataset '{source.dataset}' has no column '{column}': write data.column=... with "
            f"one of {', '.join(columns)}"
        )
    num_shards = dataset.num_shards
    parts = -(-num_lanes // num_shards)
    return [
        HuggingFaceUnit(source, column, shard, num_shards, part, parts)
        for shard in range(num_shards)
        for part in range(parts)
    ]
