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
from dataclasses import dataclass, fields
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from neobert_train.config.data_schema import DataConfig, SourceConfig
from neobert_train.config.derived import resolve_sources
from neobert_train.config.typed import parse
from neobert_train.data.sources import (
    BadRecord,
    Division,
    Format,
    TokenizedRecord,
    Unit,
    divide_files,
)
from neobert_train.errors import InputError
from neobert_train.files import DamagedFileError, parse_json, read_text
from neobert_train.storage.failures import describe_system_error, is_of_system
from neobert_train.storage.versions import FileVersion
from neobert_train.tokenizers.text_tokenizer import TextTokenizer
from neobert_train.urls import hide_in_values, identify_value

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
# Files kept mapped for the next unit, each of which holds a file descriptor.
_MOST_KEPT_FILES = 128
# What says nothing about the records and their tokens: it may differ between prepare and train.
_FREE = ("min_", "max_", "id_column")


@dataclass(frozen=True, slots=True)
class PreparedShard:
    """The two files of a shard.

    Attributes:
        path: without their suffixes.
        records_sha256, tokens_sha256: of their content, in hexadecimal.
        vocab_size: above every token id.
    """

    path: str
    records_sha256: str
    tokens_sha256: str
    vocab_size: int

    def open_records(self) -> np.ndarray:
        """Return the records, [num_records] RECORD, mapped into memory.

        Raises:
            InputError: the file is damaged.
        """
        return _open(f"{self.path}.records.npy", self.records_sha256, None)

    def open_tokens(self) -> np.ndarray:
        """Return the tokens of all documents, [num_tokens] uint16 or uint32, mapped into memory.

        Raises:
            InputError: the file is damaged, or holds ids that the tokenizer does not know.
        """
        return _open(f"{self.path}.tokens.npy", self.tokens_sha256, self.vocab_size)


@dataclass(frozen=True, slots=True)
class PreparedFile:
    """The shards of one file.

    Attributes:
        name: of the file that they were made of.
        version: of that file.
        shards: in the order of the file.
    """

    name: str
    version: FileVersion
    shards: tuple[PreparedShard, ...]


@dataclass(frozen=True, slots=True)
class PreparedRecords(Format):
    """The records of a prepared file; cursors are those of the file itself.

    Attributes:
        division: of the file itself.
        units_per_lane: of its format.
    """

    division: Division
    units_per_lane: int

    def iter_records(self, unit: Unit, cursor: int) -> Iterator[TokenizedRecord | BadRecord]:
        """Yield the records from `cursor` on.

        Raises:
            InputError: a shard cannot be read.
        """
        for shard in unit.file.shards:
            records = shard.open_records()
            begins = records["begin"]
            chosen = self.division.select(begins, unit.part, unit.parts)
            first = int(np.searchsorted(begins[chosen], cursor))
            if first == len(chosen):
                continue
            tokens = shard.open_tokens()
            if len(tokens) != records["end"][-1]:
                raise InputError(f"{shard.path}: records and tokens differ: run `prepare` again")
            for start in range(first, len(chosen), _RECORDS_PER_READ):
                block = chosen[start : start + _RECORDS_PER_READ]
                yield from self._iter_block(unit, records, tokens, block)

    def find_division(self, file: PreparedFile) -> Division:
        """Return that of the file itself."""
        return self.division

    def describe(self, next_cursor: int) -> str:
        """Name a record as `record up to 7`, in the numbers of the file's format."""
        return f"record up to {next_cursor:,}"

    def _iter_block(
        self, unit: Unit, records: np.ndarray, tokens: np.ndarray, chosen: np.ndarray
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
                reason = f"{unit.describe(cursor)}: could not be read when it was prepared"
                yield BadRecord(reason, int(block["begin"][index]), cursor)
            else:
                ids = tokens[starts[index] : ends[index]]
                yield TokenizedRecord(ids, num_characters, kind == BLANK, key, cursor)


@lru_cache(maxsize=_MOST_KEPT_FILES)
def _open(path: str, sha256: str, vocab_size: int | None) -> np.ndarray:
    """Return a file as a plain array, whose slices are cheap, mapped into memory."""
    try:
        _check_content(path, sha256, vocab_size)
        return _map(path)
    except (OSError, ValueError) as error:
        if is_of_system(error) and not isinstance(error, FileNotFoundError):
            raise describe_system_error(error, path) from error
        raise InputError(
            f"{path} cannot be used ({error}): run `prepare` again, which writes anew what is damaged"
        ) from error


@cache  # once per file and process, however often it is opened
def _check_content(path: str, sha256: str, vocab_size: int | None) -> None:
    """Raise ValueError for a file of other bytes than `prepare` wrote, or of no sense."""
    with open(path, "rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != sha256:
            raise ValueError("its sha256 is not that of the manifest")
    array = _map(path)
    if vocab_size is None:
        if array.dtype != RECORD or array.ndim != 1:
            raise ValueError("it holds no records")
        if (np.diff(array["end"], prepend=0) < 0).any():
            raise ValueError("its records do not follow each other")
    elif array.dtype not in (np.uint16, np.uint32) or array.ndim != 1:
        raise ValueError("it holds no tokens")
    elif len(array) and array.max() >= vocab_size:
        raise ValueError(
            f"it holds the token id {array.max()}, and the tokenizer has {vocab_size} entries"
        )


def _map(path: str) -> np.ndarray:
    return np.asarray(np.load(path, mmap_mode="r", allow_pickle=False))


def open_prepared(
    config: DataConfig, tokenizer: TextTokenizer, num_lanes: int
) -> Mapping[str, Sequence[Unit]]:
    """Return the units of every configured source from `data.prepared_dir`.

    Raises:
        InputError: the folder is incomplete, or was prepared with another tokenizer or from other
            sources.
    """
    folder = Path(str(config.prepared_dir))
    manifest = _read_manifest(folder)
    if manifest.get("tokenizer") != tokenizer.fingerprint:
        raise InputError(
            f"{folder} was prepared with another tokenizer (sha256 "
            f"{str(manifest.get('tokenizer'))[:12]}, not {tokenizer.fingerprint[:12]}): give the "
            f"tokenizer.path it was prepared with, or prepare another data.prepared_dir"
        )
    units = {}
    for name, source in resolve_sources(config).items():
        key = fingerprint_source(source)
        if key not in manifest.get("sources", {}):
            raise InputError(
                f"{folder} was not prepared from the source '{name}' as it is configured: run "
                f"`prepare` with the same settings"
            )
        try:
            described = manifest["sources"][key]["files"]
            files = [_to_unit(folder, file, tokenizer.vocab_size) for file in described]
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise InputError(
                f"{folder / MANIFEST} is damaged ({type(error).__name__}: {error}): run `prepare` again"
            ) from error
        units[name] = divide_files(files, num_lanes)
    return units


def _read_manifest(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    try:
        if not path.exists():
            raise InputError(
                f"{folder} holds no {MANIFEST}: run `prepare` with the same settings first; what it has "
                f"done already is not done again"
            )
        manifest: dict[str, Any] = parse(dict[str, Any], parse_json(read_text(path)))
    except (DamagedFileError, ValueError) as error:
        raise InputError(f"{path} cannot be read ({error}): run `prepare` again") from error
    if manifest.get("version") != VERSION:
        raise InputError(
            f"{path} is of version {manifest.get('version')}, and this program reads {VERSION}: "
            f"prepare another data.prepared_dir"
        )
    return manifest


def _to_unit(folder: Path, file: dict[str, Any], vocab_size: int) -> Unit:
    shards = []
    for entry in file["shards"]:
        shard = folder / entry["shard"]
        for suffix, size in entry["bytes"].items():
            path = shard.with_name(f"{shard.name}.{suffix}.npy")
            found = path.stat().st_size if path.exists() else None
            if found != size:
                state = "is missing" if found is None else f"has {found:,} bytes, not {size:,}"
                raise InputError(f"{path} {state}: run `prepare` again, which writes it anew")
        digests = entry["sha256"]
        shards.append(PreparedShard(str(shard), digests["records"], digests["tokens"], vocab_size))
    first = file["shards"][0]
    ends = first["ends"]
    known = PreparedRecords(Division(ends and tuple(ends)), file["units_per_lane"])
    return Unit(PreparedFile(file["path"], read_version(first), tuple(shards)), known)


def read_version(entry: dict[str, Any]) -> FileVersion:
    """Return the version of the file that a shard was made of, from its entry."""
    marks = entry.get("marks", {})  # there are none in folders that 0.1.0 wrote
    return FileVersion(entry["file_bytes"] or None, tuple(marks.items()))


def fingerprint_source(source: SourceConfig) -> str:
    """Return a name for the settings of a source that decide its records."""
    values = {
        field.name: str(hide_in_values(getattr(source, field.name), identify_value))
        for field in fields(source)
        if not field.name.startswith(_FREE)
    }
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]
