"""Training data on a web server that misbehaves: the same batches, or an error with the URL."""

import gzip
import itertools
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from neobert_train.config.schema import TrainConfig
from neobert_train.data.corpus import open_corpus
from neobert_train.data.lane.lane import Lane, LaneState, initial_states
from neobert_train.data.loader import StepLoader
from neobert_train.data.sources.text import Sequential
from neobert_train.errors import InputError
from neobert_train.storage.stored_files import StorageError
from support.configs import compose
from support.misbehaving_server import Fault

NAMES = ["a.parquet", "b.jsonl", "c.jsonl.gz", "d.arrow", "e.json"]


def make_config(*paths: str, timeout: float = 20.0, **data) -> TrainConfig:
    quoted = ",".join(f'"{path}"' for path in paths)
    overrides = [
        "data=files", f"data.paths=[{quoted}]", "data.shuffle_window=16", "data.heldout_fraction=0",
        "batch.context_length=64", "batch.micro_batch_tokens=512", "batch.global_batch_tokens=1024",
        f"data.timeout_seconds={timeout}", *(f"data.{key}={value}" for key, value in data.items()),
    ]  # fmt: skip
    return compose("train", *overrides)


@pytest.fixture
def served(server):
    """Files of every format, each of some thousand rows."""
    texts = [f"row {n} " + "some words of a document " * (n % 9) for n in range(1500)]
    table = pa.table({"text": texts})
    pq.write_table(table, server.folder / "a.parquet", row_group_size=100)
    lines = "".join(json.dumps({"text": text}) + "\n" for text in texts).encode()
    (server.folder / "b.jsonl").write_bytes(lines)
    (server.folder / "c.jsonl.gz").write_bytes(gzip.compress(lines))
    with pa.ipc.new_file(server.folder / "d.arrow", table.schema) as writer:
        writer.write_table(table, max_chunksize=100)
    (server.folder / "e.json").write_text(json.dumps([{"text": text} for text in texts]))
    return server


def read_batches(config: TrainConfig, tokenizer, count: int = 12):
    units = open_corpus(config, tokenizer)
    return list(
        itertools.islice(Lane(config, units, tokenizer, 1).iter_batches(LaneState()), count)
    )


def assert_same(batches, others):
    for batch, other in zip(batches, others, strict=True):
        assert np.array_equal(batch.input_ids, other.input_ids)
        assert np.array_equal(batch.labels, other.labels)


@pytest.mark.parametrize("name", NAMES)
def test_a_url_gives_the_batches_of_the_file(served, tokenizer, name):
    local = read_batches(make_config(str(served.folder / name)), tokenizer)
    assert_same(read_batches(make_config(served.url(name)), tokenizer), local)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "faults",
    [
        [Fault(status=503)] * 3 + [Fault(status=429, retry_after="1")],
        [Fault(reset_after=-1), Fault(reset_after=0), Fault(reset_after=200)],
        [Fault(close_after=0), Fault(close_after=100), Fault(shorten_to=50)],
        [Fault(shifts_range=True)] * 3,
    ],
    ids=["busy", "reset", "truncated", "other bytes"],
)
def test_faults_that_pass_change_nothing(served, pauses, tokenizer, name, faults):
    local = read_batches(make_config(str(served.folder / name)), tokenizer)
    config = make_config(served.url(name))
    units = open_corpus(config, tokenizer)  # then the server begins to fail
    batches = Lane(config, units, tokenizer, 1).iter_batches(LaneState())
    served.script(*faults)
    assert_same(itertools.islice(batches, 12), local)
    assert not served._faults, "all of them were met"


def test_a_stalled_answer_is_given_up_and_asked_for_again(served, pauses, tokenizer):
    local = read_batches(make_config(str(served.folder / "a.parquet")), tokenizer)
    config = make_config(served.url("a.parquet"), timeout=0.5)
    units = open_corpus(config, tokenizer)
    batches = Lane(config, units, tokenizer, 1).iter_batches(LaneState())
    served.script(Fault(stall_after=10), Fault(stall_after=-1))
    assert_same(itertools.islice(batches, 12), local)
    assert pauses


@pytest.mark.parametrize("policy", ["stop", "skip"])
@pytest.mark.parametrize("name", NAMES)
def test_a_server_that_stays_broken_ends_the_run_with_its_url(
    served, pauses, tokenizer, name, policy
):
    """Also under `skip`: an outage is no property of the records."""
    config = make_config(served.url(name), on_bad_record=policy, max_retries=3)
    units = open_corpus(config, tokenizer)
    served.script(Fault(status=500), repeat=True)
    with pytest.raises(InputError) as error:
        next(Lane(config, units, tokenizer, 1).iter_batches(LaneState()))
    assert served.url(name) in str(error.value)
    assert "500" in str(error.value)
    assert len(pauses) == 3


def test_an_expired_token_says_so_and_shows_no_secret(served, tokenizer):
    url = served.url("b.jsonl") + "?signature=planted-secret"
    units = open_corpus(config := make_config(url, format="jsonl"), tokenizer)
    served.script(Fault(status=401), repeat=True)
    with pytest.raises(InputError) as error:
        next(Lane(config, units, tokenizer, 1).iter_batches(LaneState()))
    assert "the token may be missing, expired" in str(error.value)
    assert "planted-secret" not in str(error.value)


def test_a_worker_process_hands_the_error_over(served, tokenizer):
    config = make_config(served.url("b.jsonl"), max_retries=1)
    units = open_corpus(config, tokenizer)
    served.script(Fault(status=500), repeat=True)
    config.data.num_workers = 1
    loader = StepLoader(config, units, initial_states([0, 1]))
    try:
        with pytest.raises(InputError, match="500"):
            loader.next_step()
    finally:
        loader.close()


def test_a_missing_file_is_a_problem_at_the_start_also_under_skip(served, tokenizer):
    urls = [served.url("b.jsonl"), served.url("gone.jsonl")]
    with pytest.raises(InputError, match=r"gone\.jsonl: no such file"):
        open_corpus(make_config(*urls, on_bad_record="skip"), tokenizer)


def test_a_glob_and_a_folder_of_a_server_are_listed(served, tokenizer):
    local = read_batches(make_config(str(served.folder)), tokenizer)
    folder = served.url("").rstrip("/")
    for pattern in (f"{folder}/", f"{folder}/*.*"):
        assert_same(read_batches(make_config(pattern), tokenizer), local)


def test_a_server_without_ranges_serves_lines_in_their_order(served, tokenizer, caplog):
    served.ignores_ranges = True
    config = make_config(served.url("b.jsonl"))
    units = open_corpus(config, tokenizer)["corpus"]
    assert "gives no part of a file by itself" in caplog.text
    assert {type(unit.format) for unit in units} == {Sequential}
    texts = sorted(record.text for unit in units for record in unit.iter_records(0))
    lines = (served.folder / "b.jsonl").read_text().splitlines()
    assert texts == sorted(json.loads(line)["text"] for line in lines)


def test_a_file_that_changes_while_it_is_read_is_an_error(served, pauses, tokenizer):
    path = served.folder / "large.jsonl"
    path.write_text(json.dumps({"text": "word " * 200}) + "\n")
    path.write_bytes(path.read_bytes() * 5000)
    units = open_corpus(make_config(served.url("large.jsonl")), tokenizer)["corpus"]
    records = units[0].divide(1)[0].iter_records(0)
    next(records)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(StorageError, match="changed"):
        list(records)
