"""Tokenises sources into the shards of `prepared.py`, in parallel, and continues where it stopped."""

import itertools
import multiprocessing
from collections.abc import Generator, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import astuple, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from neobert_train.config.data_schema import BadRecordPolicy, DataConfig, TokenizerConfig
from neobert_train.config.derived import resolve_sources
from neobert_train.config.schema import TrainConfig
from neobert_train.config.typed import Count, parse
from neobert_train.data.lane.admission import (
    Admission,
    Kind,
    compute_heldout_key,
    handle_bad_record,
)
from neobert_train.data.lane.encoding import Entry, iter_encoded
from neobert_train.data.shards.prepared import (
    BAD,
    BLANK,
    DOCUMENT,
    MANIFEST,
    RECORD,
    VERSION,
    fingerprint_source,
    read_version,
)
from neobert_train.data.sources import (
    Unit,
    list_files_of_source,
)
from neobert_train.data.workers import begin_worker, start_workers
from neobert_train.errors import InputError
from neobert_train.files import (
    DamagedFileError,
    clear_drafts,
    hash_file,
    open_atomically,
    parse_json,
    read_text,
    write_json,
)
from neobert_train.lock import acquire_lock
from neobert_train.tokenizers.loading import build_tokenizer
from neobert_train.tokenizers.text_tokenizer import TextTokenizer

# Of a source file; about a minute of one core, so that little is lost when it is stopped.
_SHARD_BYTES = 64 << 20
_SUFFIXES = ("records.npy", "tokens.npy", "json")
_LOCK_WAIT_SECONDS = 10.0
_KINDS = {Kind.document: DOCUMENT, Kind.empty: BLANK}
_MANY_FILES = 1000  # so many are work enough for any number of processes


@dataclass(frozen=True, slots=True)
class ShardJob:
    """One shard to be written.

    Attributes:
        unit: the part of a file that it holds.
        folder: of the source, in the prepared folder.
        name: of the shard in it.
        tokenizer: what to tokenise with.
        fingerprint: of the tokenizer, which a shard found must have been made with.
        on_bad_record: whether an unreadable record is an error.
    """

    unit: Unit
    folder: str
    name: str
    tokenizer: TokenizerConfig
    fingerprint: str
    on_bad_record: BadRecordPolicy

    @property
    def shard(self) -> Path:
        """The path of the shard without suffixes."""
        return Path(self.folder) / self.name

    def describe(self) -> dict[str, Any]:
        """Return what decides the content of the shard, together with the version of its file."""
        return {
            "shard": str(self.shard.relative_to(Path(self.folder).parent)),
            "path": self.unit.name,
            "part": self.unit.part,
            "parts": self.unit.parts,
            "tokenizer": self.fingerprint,
        }


@dataclass(frozen=True, slots=True)
class ShardResult:
    """What became of a shard: its entry for the manifest, and whether it was there already."""

    entry: dict[str, Any]
    found: bool


def list_jobs(config: TrainConfig, tokenizer: TextTokenizer) -> dict[str, list[list[ShardJob]]]:
    """Return the shards of every source, by its fingerprint and file.

    Raises:
        InputError: a source cannot be read.
    """
    data, jobs = config.data, dict[str, list[list[ShardJob]]]()
    for source in resolve_sources(data).values():
        key = fingerprint_source(source)
        if key in jobs:
            continue  # another view of the same documents
        folder = str(Path(str(data.prepared_dir)) / key)
        files = list_files_of_source(data, source)
        jobs[key] = [
            [
                ShardJob(
                    unit,
                    folder,
                    f"{number:05d}-{unit.part:04d}",
                    config.tokenizer,
                    tokenizer.fingerprint,
                    data.on_bad_record,
                )
                for unit in file.divide(parts)
            ]
            for number, file in enumerate(files)
            for parts in [_count_shards(file, len(files))]
        ]
    return jobs


def _count_shards(unit: Unit, num_files: int) -> int:
    """Return how many shards a file becomes: pieces of the usual size, if it can be divided."""
    takes_turns = unit.format.units_per_lane <= 1
    if takes_turns or num_files >= _MANY_FILES:
        return 1
    return max(1, round((unit.file.version.size or 0) / _SHARD_BYTES))


def claim_folder(folder: Path, jobs: Sequence[ShardJob]) -> BinaryIO:
    """Keep other processes from preparing into a folder, and clear what killed ones left.

    Args:
        folder: is made where it is missing.
        jobs: what is to be written into it.

    Returns:
        The open lock file; others are kept out until it is closed or this process ends.

    Raises:
        InputError: another process prepares into it, or it cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = acquire_lock(folder / ".lock", _LOCK_WAIT_SECONDS, "data.prepared_dir")
        files = [
            job.shard.with_name(f"{job.name}.{suffix}") for job in jobs for suffix in _SUFFIXES
        ]
        for source in {Path(job.folder) for job in jobs if Path(job.folder).is_dir()}:
            clear_drafts(source, files)
        clear_drafts(folder, [folder / MANIFEST])
    except OSError as error:
        raise InputError(
            f"{folder} cannot be written ({error.strerror}): make room or fix its permissions, or write "
            f"data.prepared_dir=... to choose another folder"
        ) from error
    return lock


def run_jobs(jobs: Sequence[ShardJob], num_processes: int) -> Generator[ShardResult, None, None]:
    """Write the shards that are not there yet, side by side; results come as they are ready.

    Raises:
        InputError: a record or file cannot be read, or a process was killed.
        KeyboardInterrupt: a signal to stop came; shards that are being written are given up.
    """
    context = multiprocessing.get_context("spawn")  # forked tokenizer threads would deadlock
    waiting = iter(jobs)
    with start_workers():
        pool = ProcessPoolExecutor(num_processes, context, begin_worker)
    with pool:
        try:
            others = multiprocessing.active_children()
            with start_workers():
                first = itertools.islice(waiting, num_processes)
                running = {pool.submit(write_shard, job) for job in first}
            while running:
                done, running = wait(running, return_when=FIRST_COMPLETED)
                running |= {
                    pool.submit(write_shard, job) for job in itertools.islice(waiting, len(done))
                }
                for future in done:
                    yield future.result()
        except BrokenProcessPool as error:
            raise InputError(
                "a process that tokenises was killed, for example because memory ran out: write "
                "num_processes=... for fewer of them; the same command continues"
            ) from error
        except (KeyboardInterrupt, GeneratorExit):  # nobody waits for the shards at hand
            for process in {*multiprocessing.active_children()} - {*others}:
                process.kill()
            raise
        finally:
            pool.shutdown(cancel_futures=True)


def write_shard(job: ShardJob) -> ShardResult:
    """Write one shard, unless it is there and sound.

    Raises:
        InputError: a bad record under the policy `stop`, or a document that cannot be encoded.
    """
    found = _find_shard(job)
    if found is not None:
        return ShardResult(found, found=True)
    tokenizer = _build_tokenizer_once(*astuple(job.tokenizer))
    dtype = np.uint16 if tokenizer.vocab_size <= 1 << 16 else np.uint32
    rows: list[tuple[int, ...]] = []
    tokens: list[np.ndarray] = []
    end = 0
    rule = Admission()  # lengths and the held-out share are settled when the shard is read
    entries = (
        Entry(record, rule.classify(record), job.unit) for record in job.unit.iter_records(0)
    )
    for record, kind, ids in (
        (entry.record, entry.kind, entry.ids)
        for group in iter_encoded(entries, tokenizer)
        for entry in group
    ):
        if kind is Kind.bad:
            handle_bad_record(record, job.on_bad_record)
            rows.append((record.begin, record.next_cursor, end, 0, 0, BAD))
            continue
        if ids is not None:
            tokens.append(ids.astype(dtype))
            end += len(ids)
        row = end, compute_heldout_key(record.text), min(len(record.text), 2**32 - 1), _KINDS[kind]
        rows.append((record.begin, record.next_cursor, *row))
    Path(job.folder).mkdir(parents=True, exist_ok=True)
    arrays = {
        "records": np.array(rows, dtype=RECORD),
        "tokens": np.concatenate(tokens) if tokens else np.empty(0, dtype),
    }
    version = job.unit.file.version
    entry: dict[str, Any] = {
        **job.describe(),
        "file_bytes": version.size or 0,
        "marks": dict(version.marks),
        "ends": None if job.unit.part else job.unit.find_division().ends,
        "records": len(rows),
        "tokens": end,
        "bytes": {},
        "sha256": {},
    }
    for suffix, array in arrays.items():
        path = job.shard.with_name(f"{job.name}.{suffix}.npy")
        _save_atomically(path, array)
        entry["bytes"][suffix], entry["sha256"][suffix] = path.stat().st_size, hash_file(path)
    write_json(job.shard.with_name(f"{job.name}.json"), entry)
    return ShardResult(entry, found=False)


@lru_cache(maxsize=1)
def _build_tokenizer_once(*settings: Any) -> TextTokenizer:
    return build_tokenizer(TokenizerConfig(*settings))


def _find_shard(job: ShardJob) -> dict[str, Any] | None:
    """Return the entry of a shard that is there, complete and sound."""
    try:
        text = read_text(job.shard.with_name(f"{job.name}.json"))
        entry: dict[str, Any] = parse(dict[str, Any], parse_json(text))
        if any(entry.get(key) != value for key, value in job.describe().items()):
            return None
        if read_version(entry).find_change(job.unit.file.version):
            return None
        digests = parse(dict[str, str], entry.get("sha256"))
        for suffix in ("records", "tokens"):
            parse(Count, entry.get(suffix))
            path = job.shard.with_name(f"{job.name}.{suffix}.npy")
            if hash_file(path) != digests.get(suffix):
                return None
    except (OSError, ValueError, KeyError, DamagedFileError):
        return None
    return entry


def _save_atomically(path: Path, array: np.ndarray) -> None:
    with open_atomically(path) as file:
        np.save(file, array, allow_pickle=False)


def write_manifest(
    config: DataConfig,
    tokenizer: TextTokenizer,
    jobs: dict[str, list[list[ShardJob]]],
    entries: dict[str, dict[str, Any]],
) -> None:
    """Write down what the folder holds, once it holds all of it.

    Args:
        config: of the data.
        tokenizer: that made the tokens.
        jobs: as from `list_jobs`.
        entries: of every shard, by its name in the folder.
    """
    root = Path(str(config.prepared_dir))
    sources: dict[str, Any] = {}
    for key, files in jobs.items():
        described = []
        for shards in files:
            unit = shards[0].unit
            names = [str(job.shard.relative_to(root)) for job in shards]
            described.append(
                {
                    "path": unit.name,
                    "units_per_lane": unit.format.units_per_lane,
                    "shards": [entries[name] for name in names],
                }
            )
        sources[key] = {"files": described}
    manifest = {
        "version": VERSION,
        "tokenizer": tokenizer.fingerprint,
        "vocab_size": tokenizer.vocab_size,
        "sources": sources,
    }
    write_json(root / MANIFEST, manifest)
