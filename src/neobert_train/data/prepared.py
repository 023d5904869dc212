"""Token shards that `prepare` wrote, read in place of the texts they were made of.

    FOLDER/
      manifest.json                     what was prepared, with which tokenizer; written last
      <source>/00012-0003.tokens.npy    [num_tokens] uint16 or uint32, all documents in a row
      <source>/00012-0003.records.npy   [num_records] RECORD, one for each record of the file
      <source>/00012-0003.json          sizes and sha256 of the two; written after them

A shard is part 3 of file 12 of a source. Every record of the file has its place, also an empty, a
bad or a held-out one, so that units, windows and batches are those of the texts themselves, for
any number of lanes, context, bounds of length and held-out share. What is kept of the tokenizer,
the files and their division stands in the manifest; the texts are not needed any more.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from neobert_train.config.data_schema import DataConfig, SourceConfig
from neobert_train.config.derived import resolve_sources
from neobert_train.data.sources import (
    BadRecord,
    Division,
    SourceUnit,
    TokenizedRecord,
    Unit,
    divide_files,
)
from neobert_train.data.tokenization import TextTokenizer
from neobert_train.errors import InputError

VERSION = 1
MANIFEST = "manifest.json"
# begin and next_cursor are those of the record in its file; end counts the tokens of the shard up
# to its last; the rest is what `Admission` asks for.
RECORD = np.dtype(
    [
        ("begin", "<i8"),
        ("next_cursor", "<i8"),
        ("end", "<i8"),
        ("heldout_key", "<u8"),
        ("num_characters", "<u4"),
        ("kind", "<u4"),
    ]
)
DOCUMENT, BLANK, BAD = range(3)
_RECORDS_PER_READ = 1024
# What says nothing about the records and their tokens: it may differ between prepare and train.
_FREE = ("min_", "max_", "id_column")


@dataclass(frozen=True, slots=True)
class PreparedFile:
    """The shards of one file.

    Attributes:
        path: of the file that they were made of.
        shards: without their suffixes, in the order of the file.
        division: of the file.
        units_per_lane: see `SourceUnit`.
    """

    path: str
    shards: tuple[str, ...]
    division: Division
    units_per_lane: int


@dataclass(frozen=True, slots=True)
class PreparedUnit:
    """The records of one part of a prepared file; cursors are those of the file itself."""

    file: PreparedFile
    part: int = 0
    parts: int = 1

    def iter_records(self, cursor: int) -> Iterator[TokenizedRecord | BadRecord]:
        """The records from `cursor` on.

        Raises:
            InputError: a shard cannot be read.
        """
        for shard in self.file.shards:
            records, tokens = _open_shard(shard)
            begins = records["begin"]
            chosen = self.file.division.select(begins, self.part, self.parts)
            first = int(np.searchsorted(begins[chosen], cursor))
            for start in range(first, len(chosen), _RECORDS_PER_READ):
                yield from self._iter_block(
                    records, tokens, chosen[start : start + _RECORDS_PER_READ]
                )

    def describe(self, next_cursor: int) -> str:
        """Such as `texts.parquet, record up to 7`, in the numbers of the file's format."""
        return f"{self.file.path}, record up to {next_cursor:,}"

    @property
    def path(self) -> str:
        """Of the file itself."""
        return self.file.path

    def find_size(self) -> int:
        """Not known."""
        return 0

    @property
    def units_per_lane(self) -> int:
        """As for the file itself."""
        return self.file.units_per_lane

    def take_part(self, part: int, parts: int) -> "PreparedUnit":
        """Another part of the same file."""
        return replace(self, part=part, parts=parts)

    @property
    def takes_turns(self) -> bool:
        """As for the file itself."""
        return self.file.division.ends is None

    def find_division(self) -> Division:
        """As for the file itself."""
        return self.file.division

    def _iter_block(
        self, records: np.ndarray, tokens: np.ndarray, chosen: np.ndarray
    ) -> Iterator[TokenizedRecord | BadRecord]:
        block = records[chosen]
        ends = block["end"].tolist()
        starts = np.where(chosen > 0, records["end"][chosen - 1], 0).tolist()
        for index, (cursor, key, num_characters, kind) in enumerate(
            zip(
                block["next_cursor"].tolist(),
                block["heldout_key"].tolist(),
                block["num_characters"].tolist(),
                block["kind"].tolist(),
                strict=True,
            )
        ):
            if kind == BAD:
                reason = f"{self.describe(cursor)}: could not be read when it was prepared"
                yield BadRecord(reason, int(block["begin"][index]), cursor)
            else:
                ids = tokens[starts[index] : ends[index]]
                yield TokenizedRecord(ids, num_characters, kind == BLANK, key, cursor)


@lru_cache(maxsize=1024)
def _open_shard(shard: str) -> tuple[np.ndarray, np.ndarray]:
    """Records and tokens, mapped into memory; as plain arrays, whose slices are cheap."""
    try:
        records = np.load(f"{shard}.records.npy", mmap_mode="r", allow_pickle=False)
        tokens = np.load(f"{shard}.tokens.npy", mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise InputError(
            f"{shard}: the token shard cannot be read ({error}): run `prepare` again, which mends "
            f"what is damaged"
        ) from error
    return np.asarray(records), np.asarray(tokens)


def open_prepared(
    config: DataConfig, tokenizer: TextTokenizer, num_lanes: int
) -> Mapping[str, Sequence[Unit]]:
    """The units of every configured source from `data.prepared_dir`.

    Raises:
        InputError: the folder is incomplete, or was prepared with another tokenizer or from other
            sources.
    """
    folder = Path(str(config.prepared_dir))
    manifest = _read_manifest(folder)
    if manifest["tokenizer"] != tokenizer.fingerprint:
        raise InputError(
            f"{folder} was prepared with another tokenizer (sha256 "
            f"{manifest['tokenizer'][:12]}, not {tokenizer.fingerprint[:12]}): give the "
            f"tokenizer.path it was prepared with, or prepare another data.prepared_dir"
        )
    units = {}
    for name, source in resolve_sources(config).items():
        key = fingerprint_source(source)
        if key not in manifest["sources"]:
            raise InputError(
                f"{folder} was not prepared from the source '{name}' as it is configured: run "
                f"`prepare` with the same settings"
            )
        files = [_to_unit(folder, file) for file in manifest["sources"][key]["files"]]
        units[name] = divide_files(files, num_lanes)
    return units


def _read_manifest(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    try:
        manifest: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(
            f"{folder} holds no {MANIFEST}: run `prepare` with the same settings first; what it has "
            f"done already is not done again"
        ) from error
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read ({error}): run `prepare` again") from error
    if manifest.get("version") != VERSION:
        raise InputError(
            f"{path} is of version {manifest.get('version')}, and this program reads {VERSION}: "
            f"prepare another data.prepared_dir"
        )
    return manifest


def _to_unit(folder: Path, file: dict[str, Any]) -> SourceUnit:
    shards = []
    for entry in file["shards"]:
        shard = folder / entry["shard"]
        for suffix, size in entry["bytes"].items():
            path = shard.with_name(f"{shard.name}.{suffix}.npy")
            found = path.stat().st_size if path.exists() else None
            if found != size:
                state = "is missing" if found is None else f"has {found:,} bytes, not {size:,}"
                raise InputError(f"{path} {state}: run `prepare` again, which mends it")
        shards.append(str(shard))
    ends = file["shards"][0]["ends"]
    prepared = PreparedFile(
        file["path"], tuple(shards), Division(ends and tuple(ends)), file["units_per_lane"]
    )
    return PreparedUnit(prepared)


def fingerprint_source(source: SourceConfig) -> str:
    """A name for the settings of a source that decide its records."""
    values = {
        field.name: str(getattr(source, field.name))
        for field in fields(source)
        if not field.name.startswith(_FREE)
    }
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]
