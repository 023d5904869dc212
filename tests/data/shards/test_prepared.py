"""Prepared token shards: the same batches as from the texts, and nothing else is taken for them."""

import gzip
import hashlib
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from functools import cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neobert_train.config.schema import TrainConfig
from neobert_train.config.typed import parse
from neobert_train.data.corpus import open_corpus
from neobert_train.data.lane.lane import Lane, LaneState
from neobert_train.data.shards import preparation
from neobert_train.data.shards.preparation import (
    claim_folder,
    list_jobs,
    run_jobs,
    write_manifest,
    write_shard,
)
from neobert_train.data.shards.prepared import RECORD, PreparedShard
from neobert_train.errors import InputError
from neobert_train.tokenizers import loading
from support.configs import compose

load_tokenizer = cache(loading.load_tokenizer)
WORDS = ["alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta", "iota", "kappa"]


def make_texts(count: int, seed: int) -> list[str]:
    generator = np.random.default_rng(seed)
    texts = [
        " ".join(generator.choice(WORDS, size=size)) for size in generator.integers(1, 120, count)
    ]
    texts[3], texts[7] = "", " \n\t "
    return [f"{text} {number}" if text.strip() else text for number, text in enumerate(texts)]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    """Files of every format, with empty documents, and one bad line."""
    folder = tmp_path_factory.mktemp("corpus")
    parquet = pa.table({"text": make_texts(150, 0), "id": range(150)})
    pq.write_table(parquet, folder / "a.parquet", row_group_size=20)
    pq.write_table(parquet.slice(0, 40), folder / "b.parquet")
    lines = [json.dumps({"text": text}) for text in make_texts(90, 1)]
    lines[20:20] = ["{broken", "", "   "]
    (folder / "c.jsonl").write_text("\n".join(lines) + "\n")
    with gzip.open(folder / "d.jsonl.gz", "wt") as file:
        file.write("\n".join(json.dumps({"text": text}) for text in make_texts(50, 2)))
    (folder / "e.txt").write_text("\n\n".join(t for t in make_texts(30, 3) if t.strip()))
    (folder / "f.json").write_text(json.dumps([{"text": text} for text in make_texts(30, 4)]))
    pa.csv.write_csv(pa.table({"text": make_texts(30, 5)}), folder / "g.csv")
    with pa.ipc.new_stream(folder / "h.arrow", parquet.schema) as writer:
        writer.write_table(parquet.slice(100, 40), max_chunksize=15)
    return folder


def make_config(corpus: Path, *overrides: str, lanes: int = 2) -> TrainConfig:
    base = [
        "data=files", f"data.paths=[{corpus}]", "data.column=text", "data.on_bad_record=skip",
        "data.heldout_fraction=0.1", "data.shuffle_window=32", "batch.context_length=64",
        "batch.micro_batch_tokens=256", f"batch.global_batch_tokens={256 * lanes}",
    ]  # fmt: skip
    return compose("train", *base, *overrides)


def prepare(config: TrainConfig, folder: Path) -> list:
    """What the command does, in this process; returns the results."""
    config.data.prepared_dir = str(folder)
    tokenizer = load_tokenizer(config.tokenizer.path)
    jobs = list_jobs(config, tokenizer)
    results = [write_shard(job) for files in jobs.values() for file in files for job in file]
    entries = {result.entry["shard"]: result.entry for result in results}
    write_manifest(config.data, tokenizer, jobs, entries)
    return results


def read_batches(config: TrainConfig, lane: int, count: int, state: LaneState | None = None):
    tokenizer = load_tokenizer(config.tokenizer.path)
    reader = Lane(config, open_corpus(config, tokenizer), tokenizer, lane)
    return list(itertools.islice(reader.iter_batches(state or LaneState()), count))


def assert_same(batches, others):
    assert len(batches) == len(others)
    for batch, other in zip(batches, others, strict=True):
        for name in ("input_ids", "position_ids", "cu_seqlens", "masked_positions", "labels"):
            assert np.array_equal(getattr(batch, name), getattr(other, name))
        assert batch.lane_state == other.lane_state


@pytest.fixture(scope="module")
def prepared(corpus, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("prepared")
    prepare(make_config(corpus), folder)
    return folder


@pytest.mark.parametrize("lanes", [1, 3, 40])
@pytest.mark.parametrize(
    "settings",
    [
        [],
        ["batch.context_length=16", "data.heldout_fraction=0.3", "seed=5"],
        ["data.min_tokens=30", "data.max_characters=500"],
        ["data.shuffle_window=1", "data.shuffle_units=2", "masking.strategy=bert_80_10_10"],
        ["data.mixture.all.weight=0.5", "data.mixture.long.min_tokens=60", "data.draw=micro_batch"],
    ],
)
def test_batches_are_those_of_the_texts(corpus, prepared, lanes, settings):
    raw = make_config(corpus, *settings, lanes=lanes)
    shards = make_config(corpus, *settings, f"data.prepared_dir={prepared}", lanes=lanes)
    for lane in sorted({0, lanes - 1}):
        batches = read_batches(raw, lane, 40)
        assert_same(read_batches(shards, lane, 40), batches)
        # A run may go from the texts to the shards and back at any step.
        state = parse(LaneState, json.loads(json.dumps(batches[19].lane_state)))
        assert_same(read_batches(shards, lane, 10, state), batches[20:30])
        assert_same(read_batches(raw, lane, 10, state), batches[20:30])


@settings(deadline=None, max_examples=8)
@given(shard_bytes=st.sampled_from([500, 5000]), parts=st.integers(1, 25))
def test_shards_of_a_file_together_are_the_file(tmp_path_factory, corpus, shard_bytes, parts):
    folder = tmp_path_factory.mktemp("small")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(preparation, "_SHARD_BYTES", shard_bytes)
        config = make_config(corpus)
        assert len(prepare(config, folder)) > 5
    tokenizer = load_tokenizer(config.tokenizer.path)
    units = open_corpus(config, tokenizer)["corpus"]
    config.data.prepared_dir = None
    for unit, raw in zip(units, open_corpus(config, tokenizer)["corpus"], strict=True):
        for part in range(parts):
            found = list(unit.divide(parts)[part].iter_records(0))
            expected = list(raw.divide(parts)[part].iter_records(0))
            assert [r.next_cursor for r in found] == [r.next_cursor for r in expected]
            for middle in {0, len(found) // 2, len(found)}:
                cursor = found[middle - 1].next_cursor if middle else 0
                again = list(unit.divide(parts)[part].iter_records(cursor))
                assert [r.next_cursor for r in again] == [r.next_cursor for r in found[middle:]]


def test_tokens_take_two_bytes_and_a_record_forty(prepared):
    for path in prepared.rglob("*.tokens.npy"):
        assert np.load(path, mmap_mode="r", allow_pickle=False).dtype == np.uint16
    assert RECORD.itemsize == 40


def test_what_is_done_is_not_done_again_and_damage_is_mended(corpus, tmp_path):
    config = make_config(corpus)
    assert not any(result.found for result in prepare(config, tmp_path))
    before = read_batches(config, 0, 5)
    assert all(result.found for result in prepare(config, tmp_path))
    shards = sorted(tmp_path.rglob("*.tokens.npy"))
    content = bytearray(shards[0].read_bytes())
    content[-3] ^= 1
    shards[0].write_bytes(content)
    shards[1].unlink()
    assert [result.found for result in prepare(config, tmp_path)].count(False) == 2
    assert_same(read_batches(config, 0, 5), before)


def test_a_file_that_changed_is_prepared_again(corpus, tmp_path):
    copy = tmp_path / "corpus"
    copy.mkdir()
    for path in corpus.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    config = make_config(copy)
    prepare(config, tmp_path / "prepared")
    with open(copy / "c.jsonl", "a") as file:
        file.write(json.dumps({"text": "one more document"}) + "\n")
    assert [result.found for result in prepare(config, tmp_path / "prepared")].count(False) == 1


@pytest.mark.parametrize("damage", ["missing", "short"])
def test_a_damaged_shard_is_named_before_training_begins(corpus, tmp_path, damage):
    config = make_config(corpus)
    prepare(config, tmp_path)
    shard = sorted(tmp_path.rglob("*.records.npy"))[2]
    if damage == "missing":
        shard.unlink()
    else:
        shard.write_bytes(shard.read_bytes()[:-8])
    with pytest.raises(InputError) as error:
        read_batches(config, 0, 1)
    assert str(shard) in str(error.value)
    assert "run `prepare` again" in str(error.value)


@pytest.mark.parametrize("suffix", ["records", "tokens"])
def test_a_flipped_bit_is_noticed_before_it_is_trained_on(corpus, tmp_path, suffix):
    config = make_config(corpus)
    prepare(config, tmp_path)
    shard = max(tmp_path.rglob(f"*.{suffix}.npy"), key=lambda path: path.stat().st_size)
    content = bytearray(shard.read_bytes())
    content[-1000] ^= 1
    shard.write_bytes(content)
    with pytest.raises(InputError) as error:
        read_batches(config, 0, 100)
    assert f"{shard} cannot be used (its sha256 is not that of the manifest)" in str(error.value)
    assert "run `prepare` again" in str(error.value)


def test_the_tokens_of_a_shard_are_looked_at_where_a_unit_reads_them(corpus, tmp_path, monkeypatch):
    monkeypatch.setattr(preparation, "_SHARD_BYTES", 500)
    config = make_config(corpus)
    prepare(config, tmp_path)
    damaged = min(tmp_path.glob("*/00000-*.tokens.npy"))
    damaged.write_bytes(bytes(damaged.stat().st_size))
    tokenizer = load_tokenizer(config.tokenizer.path)
    unit = open_corpus(config, tokenizer)["corpus"][0]
    assert list(unit.divide(2)[1].iter_records(0))
    with pytest.raises(InputError, match="sha256"):
        list(unit.divide(2)[0].iter_records(0))


def test_files_are_hashed_once_and_few_are_kept_open(tmp_path, monkeypatch):
    hashed, shards, digest = [], [], hashlib.file_digest

    def note(file, name):
        hashed.append(file.name)
        return digest(file, name)

    monkeypatch.setattr(hashlib, "file_digest", note)
    for number in range(100):
        np.save(tmp_path / f"{number}.records.npy", np.zeros(3, dtype=RECORD))
        np.save(tmp_path / f"{number}.tokens.npy", np.arange(number, dtype=np.uint16))
        paths = [tmp_path / f"{number}.{suffix}.npy" for suffix in ("records", "tokens")]
        digests = [hashlib.sha256(path.read_bytes()).hexdigest() for path in paths]
        shards.append(PreparedShard(str(tmp_path / str(number)), *digests, vocab_size=100))
    before = len(os.listdir("/proc/self/fd"))
    for shard in [*shards, *shards]:
        assert len(shard.open_records()) == 3
        shard.open_tokens()
    assert len(set(hashed)) == len(hashed) == 200
    assert len(os.listdir("/proc/self/fd")) - before <= 130  # each array that is kept holds one


@pytest.mark.parametrize("forgery", ["vocabulary", "records", "no sha256", "a list"])
def test_a_forged_manifest_is_noticed(corpus, tmp_path, forgery):
    config = make_config(corpus)
    prepare(config, tmp_path)
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    (source,) = manifest["sources"].values()
    entry = source["files"][0]["shards"][0]
    forged = tmp_path / f"{entry['shard']}.{'records' if forgery == 'records' else 'tokens'}.npy"
    array = np.load(forged)
    if forgery == "vocabulary":
        array[-1] = 30_522
    elif forgery == "records":
        array["end"][-1] = -1
    np.save(forged, array)
    digest = hashlib.sha256(forged.read_bytes()).hexdigest()
    entry["sha256"]["records" if forgery == "records" else "tokens"] = digest
    if forgery == "no sha256":
        del entry["sha256"]
    if forgery == "a list":
        source["files"][0] = []
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    expected = {
        "vocabulary": f"{forged} cannot be used (it holds the token id 30522, and the tokenizer has 30522",
        "records": f"{forged} cannot be used (its records do not follow each other)",
    }.get(forgery, f"{tmp_path / 'manifest.json'} is damaged")
    with pytest.raises(InputError) as error:
        read_batches(config, 0, 100)
    assert expected in str(error.value)


def test_shards_of_another_tokenizer_or_source_or_none_are_refused(corpus, prepared, tmp_path):
    with pytest.raises(InputError, match="run `prepare` with the same settings first"):
        read_batches(make_config(corpus, f"data.prepared_dir={tmp_path}"), 0, 1)
    given_dir = f"data.prepared_dir={prepared}"
    with pytest.raises(InputError, match="was not prepared from the source 'corpus'"):
        read_batches(make_config(corpus, given_dir, "data.column=id"), 0, 1)
    shipped = json.loads(Path(load_shipped()).read_text(encoding="utf-8"))
    shipped["normalizer"]["lowercase"] = False
    other = tmp_path / "tokenizer.json"
    other.write_text(json.dumps(shipped), encoding="utf-8")
    with pytest.raises(InputError, match="was prepared with another tokenizer"):
        read_batches(make_config(corpus, given_dir, f"tokenizer.path={other}"), 0, 1)


def load_shipped() -> str:
    from neobert_train.tokenizers.loading import SHIPPED_TOKENIZER

    return str(SHIPPED_TOKENIZER / "tokenizer.json")


def test_processes_side_by_side_write_the_same_shards_and_errors_come_through(corpus, tmp_path):
    config = make_config(corpus)
    one = {r.entry["shard"]: r.entry for r in prepare(config, tmp_path / "one")}
    config.data.prepared_dir = str(tmp_path / "two")
    tokenizer = load_tokenizer(config.tokenizer.path)
    jobs = list_jobs(config, tokenizer)
    flat = [job for files in jobs.values() for file in files for job in file]
    assert {r.entry["shard"]: r.entry for r in run_jobs(flat, 2)} == one
    strict = make_config(
        corpus, "data.on_bad_record=stop", f"data.prepared_dir={tmp_path / 'three'}"
    )
    jobs = list_jobs(strict, tokenizer)
    flat = [job for files in jobs.values() for file in files for job in file]
    with pytest.raises(InputError, match=r"c\.jsonl, line 21: not JSON"):
        list(run_jobs(flat, 2))


def test_killed_while_it_prepares_it_goes_on_and_gives_the_same(corpus, tmp_path):
    """A real kill -9 of the command and its processes, in the middle of its work."""
    words = np.random.default_rng(0).choice(WORDS, size=(12, 40_000))
    for number, row in enumerate(words):
        pq.write_table(pa.table({"text": [" ".join(row)] * 4}), tmp_path / f"{number:02d}.parquet")
    command = [
        sys.executable, "-m", "neobert_train", "prepare", "data=files", f"data.paths=[{tmp_path}/*.parquet]",
        "data.column=text", f"data.prepared_dir={tmp_path}/prepared", "logging.progress=false",
    ]  # fmt: skip

    def count_done():
        files = tmp_path.glob("prepared/*/*.json")
        return sum(not path.name.startswith(".") for path in files)  # temporary ones do

    process = subprocess.Popen(command, start_new_session=True)
    deadline = time.monotonic() + 300
    while count_done() < 2 and time.monotonic() < deadline:
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    time.sleep(0.5)  # its children end by themselves
    assert not (tmp_path / "prepared" / "manifest.json").exists()
    done = count_done()
    assert 2 <= done < 12
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert "48 records" in output
    assert f"in 12 shards, {done} of which were there already" in output
    config = make_config(tmp_path, f"data.paths=[{tmp_path}/*.parquet]")
    raw = read_batches(config, 0, 5)
    config.data.prepared_dir = f"{tmp_path}/prepared"
    assert_same(read_batches(config, 0, 5), raw)


def test_one_process_at_a_time_prepares_into_a_folder(corpus, tmp_path, monkeypatch):
    monkeypatch.setattr(preparation, "_LOCK_WAIT_SECONDS", 0.0)
    config, folder = make_config(corpus, f"data.prepared_dir={tmp_path / 'new'}"), tmp_path / "new"
    tokenizer = load_tokenizer(config.tokenizer.path)
    listed = list_jobs(config, tokenizer)
    jobs = [job for files in listed.values() for file in files for job in file]
    lock = claim_folder(folder, jobs)
    with pytest.raises(InputError, match=r"writes in .*: stop it, or write data.prepared_dir="):
        claim_folder(folder, jobs)
    lock.close()
    source = Path(jobs[0].folder)
    source.mkdir()
    for name in (f".tmp-7-{jobs[0].name}.tokens.npy", f"{jobs[0].name}.json", ".tmp-mine"):
        (source / name).touch()
    (folder / ".tmp-7-manifest.json").touch()
    claim_folder(folder, jobs).close()
    left = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert left == {".lock", f"{source.name}/{jobs[0].name}.json", f"{source.name}/.tmp-mine"}
