"""The loader of one process: the same steps from any number of workers, and how workers end."""

import itertools
import json
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace

import psutil
import pytest
import torch

from neobert_train.batch import Batch
from neobert_train.config.derived import compute_num_lanes
from neobert_train.data.lane.lane import initial_states
from neobert_train.data.loader import StepLoader, WorkerError
from neobert_train.data.sources import build_units
from neobert_train.errors import InputError
from support.misbehaving_server import Fault, MisbehavingServer

TENSORS = ["input_ids", "position_ids", "cu_seqlens", "masked_positions", "labels"]
LINES = b"".join(b"speech number %d and so on\n" % number for number in range(400))
SECONDS_TO_END = 10  # a worker looks every second whether its parent still lives

# Reads lines of text with one worker, and then closes, fails or goes on as it is told.
PROGRAM = """
import sys
from neobert_train.config.data_schema import DataConfig
from neobert_train.config.schema import BatchConfig, TrainConfig
from neobert_train.data.lane.lane import initial_states
from neobert_train.data.loader import StepLoader
from neobert_train.data.sources import Unit
from neobert_train.data.sources.text import Sequential, TextLayout
from neobert_train.storage.stored_files import StoredFile

if __name__ == "__main__":
    path, prefetch = sys.argv[1], int(sys.argv[2])
    data = DataConfig(
        shuffle_window=1, lookahead_documents=1, num_workers=1, prefetch_micro_batches=prefetch,
        heldout_fraction=0.0,
    )
    config = TrainConfig(batch=BatchConfig(128, 128, 64), data=data)
    units = {"corpus": [Unit(StoredFile(path), Sequential(TextLayout("line")))]}
    loader = StepLoader(config, units, initial_states([0]))
    loader.next_step()
    print("ready", flush=True)
    told = sys.stdin.readline()
    if told == "close\\n":
        loader.close()
        sys.exit(0)
    if told == "fail\\n":
        raise ZeroDivisionError("a mistake in the training loop")
    if told == "go on\\n":
        while True:
            loader.next_step()
"""


@pytest.fixture
def open_loader(make_config, tmp_path):
    """Open a loader over some hundred short documents, with 8 lanes unless told otherwise."""
    texts = tmp_path / "texts.jsonl"
    documents = [f"speech number {n} " + "and so on " * (n % 40) for n in range(600)]
    texts.write_text("".join(json.dumps({"text": text}) + "\n" for text in documents))
    loaders = []

    def build(*overrides, states=None, **others):
        source = ["data=files", f"data.paths=[{texts}]", "data.shuffle_window=4"]
        config = make_config(*source, *overrides)
        num_lanes = compute_num_lanes(config)
        units = build_units(config.data, num_lanes)
        loader = StepLoader(config, units, states or initial_states(range(num_lanes)), **others)
        loaders.append(loader)
        return loader

    yield build
    for loader in loaders:
        loader.close()


def find_workers(parent: int | None = None) -> list[psutil.Process]:
    """The workers of a process, of this one by default, without multiprocessing's own helper."""
    children = psutil.Process(parent).children(recursive=True)
    return [child for child in children if "--multiprocessing-fork" in child.cmdline()]


def assert_equal_steps(one, other):
    for ours, theirs in zip(one, other, strict=True):
        for name in TENSORS:
            assert torch.equal(getattr(ours, name), getattr(theirs, name)), name
        assert (ours.lane, ours.max_seqlen) == (theirs.lane, theirs.max_seqlen)
        assert ours.lane_state == theirs.lane_state


def states_after(step) -> dict:
    return {batch.lane: json.loads(json.dumps(batch.lane_state)) for batch in step}


def test_a_step_holds_every_lane_once_in_order(open_loader):
    loader = open_loader()
    for number in range(1, 4):
        step = loader.next_step()
        assert [batch.lane for batch in step] == list(range(8))
        assert {batch.lane_state["num_batches"] for batch in step} == {number}
        assert {len(batch.input_ids) for batch in step} == {512}


@pytest.mark.parametrize("num_workers", [1, 2, 3])
def test_any_number_of_workers_gives_the_same_steps(open_loader, num_workers):
    plain = open_loader("data.num_workers=0")
    parallel = open_loader(f"data.num_workers={num_workers}", "data.prefetch_micro_batches=2")
    for _ in range(5):
        step = parallel.next_step()
        assert_equal_steps(step, plain.next_step())
    workers = find_workers()
    assert len(workers) == num_workers
    mapped = [file.path for worker in workers for file in worker.memory_maps()]
    assert any("tokenizers" in path for path in mapped)
    assert not any("libtorch" in path for path in mapped)
    resumed = open_loader("data.num_workers=0", states=states_after(step))
    for _ in range(2):
        assert_equal_steps(resumed.next_step(), plain.next_step())


@pytest.mark.parametrize("world_size", [2, 4, 8])
def test_processes_share_out_the_steps_of_one_and_resume_in_another_number(open_loader, world_size):
    whole = open_loader()
    first, second = whole.next_step(), whole.next_step()
    states = states_after(first)
    for rank in range(world_size):
        lanes = range(rank, 8, world_size)
        fresh = open_loader(states=initial_states(lanes))
        assert_equal_steps(fresh.next_step(), first[rank::world_size])
        resumed = open_loader(states={lane: states[lane] for lane in lanes})
        assert_equal_steps(resumed.next_step(), second[rank::world_size])


def test_a_read_ahead_batch_that_was_not_consumed_comes_again_after_a_resume(open_loader):
    loader = open_loader("data.num_workers=1", "data.prefetch_micro_batches=16")
    states = states_after(loader.next_step())
    expected = loader.next_step()
    loader.close()
    assert_equal_steps(open_loader(states=states).next_step(), expected)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_batches_for_a_gpu_are_pinned_while_the_step_before_is_computed(
    open_loader, monkeypatch, num_workers
):
    pinned_by = []

    def pin(batch):
        pinned_by.append(threading.current_thread())
        return replace(batch, num_unknown=99)

    monkeypatch.setattr(Batch, "pin_memory", pin)
    loader = open_loader(f"data.num_workers={num_workers}", pin_memory=True)
    assert {batch.num_unknown for batch in loader.next_step()} == {99}
    assert (threading.main_thread() in pinned_by) is (num_workers == 0)


def test_a_whole_step_is_ready_whatever_each_worker_keeps(open_loader):
    loader = open_loader("data.num_workers=1", "data.prefetch_micro_batches=1")
    expected = open_loader("data.num_workers=0")
    assert_equal_steps(loader.next_step(), expected.next_step())
    [worker] = find_workers()
    wait_until_idle(worker)
    worker.kill()
    assert_equal_steps(loader.next_step(), expected.next_step())
    with pytest.raises(WorkerError, match="exit code -9"):
        list(itertools.islice(iter(loader.next_step, None), 3))


def wait_until_idle(process: psutil.Process) -> None:
    """Wait for a second in which a process does next to nothing."""
    before, after = -1.0, 0.0
    while after - before > 0.05:
        time.sleep(1)
        before, after = after, sum(process.cpu_times()[:2])


def test_no_more_workers_than_lanes(open_loader):
    open_loader("data.num_workers=5", "batch.global_batch_tokens=1024").next_step()
    assert len(find_workers()) == 2


@pytest.mark.parametrize("num_workers", [0, 2])
def test_an_input_error_comes_clean_after_the_good_batches(open_loader, tmp_path, num_workers):
    file = tmp_path / "damaged.jsonl"
    good = [json.dumps({"text": f"speech number {n} " + "and so on " * 20}) for n in range(400)]
    file.write_text("\n".join([*good[:390], "{broken", *good[390:]]) + "\n")
    overrides = [
        f"data.paths=[{file}]", "data.lookahead_documents=2",
        "batch.global_batch_tokens=1024", "data.heldout_fraction=0", "data.shuffle_window=1",
    ]  # fmt: skip
    loader = open_loader(*overrides, f"data.num_workers={num_workers}")
    steps = []
    with pytest.raises(InputError) as error:
        steps.extend(loader.next_step() for _ in range(100))
    message = str(error.value)
    assert message.startswith(f"{file}, line 391: not JSON")
    assert "data.on_bad_record=skip" in message
    assert "Traceback" not in message
    assert len(steps) >= 5
    assert {batch.lane_state["num_batches"] for batch in steps[-1]} == {len(steps)}


def test_a_tokenizer_that_went_missing_is_an_input_error_of_the_first_step(open_loader, tmp_path):
    loader = open_loader(f"tokenizer.path={tmp_path}")
    with pytest.raises(InputError, match=r"holds no tokenizer\.json"):
        loader.next_step()


def test_workers_ignore_the_signals_of_launchers_and_end_when_closed(open_loader):
    loader = open_loader("data.num_workers=1", "data.prefetch_micro_batches=1")
    loader.next_step()
    workers = find_workers()
    for worker in workers:
        worker.send_signal(signal.SIGTERM)
        worker.send_signal(signal.SIGINT)
    for _ in range(3):
        loader.next_step()
    assert len(workers) == 1
    assert workers == find_workers()
    loader.close()
    _, alive = psutil.wait_procs(workers, timeout=SECONDS_TO_END)
    assert not alive
    loader.close()


def start_program(folder, path, prefetch):
    program = folder / "program.py"
    if not program.exists():  # programs that are starting read it
        program.write_text(PROGRAM)
    command = [sys.executable, str(program), str(path), str(prefetch)]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True)


def test_a_killed_worker_is_an_error_and_no_endless_wait(tmp_path):
    texts = tmp_path / "texts.txt"
    texts.write_bytes(LINES)
    parent = start_program(tmp_path, texts, 1)
    assert parent.stdout.readline() == "ready\n"
    [worker] = find_workers(parent.pid)
    worker.kill()
    _, errors = parent.communicate("go on\n", timeout=100)
    assert parent.returncode == 1, errors
    assert "a data worker ended with exit code -9: killed, for example because memory" in errors


@pytest.fixture(scope="module")
def survivors(tmp_path_factory):
    """Processes of programs that are still there some seconds after each was ended."""
    folder = tmp_path_factory.mktemp("programs")
    texts = folder / "texts.txt"
    texts.write_bytes(LINES)
    with MisbehavingServer(folder / "served") as server:
        (server.folder / "stalling.txt").write_bytes(LINES * 100)
        server.script(Fault(), Fault(), Fault(stall_after=0), repeat=True)  # size and first block
        programs = {
            "kill": (texts, 4),
            "kill with many batches ready": (texts, 128),
            "close while reading stalls": (server.url("stalling.txt"), 100_000),
            "fail without closing": (texts, 4),
        }
        running = {name: start_program(folder, *given) for name, given in programs.items()}
        processes = {}
        for name, parent in running.items():
            assert parent.stdout.readline() == "ready\n"
            processes[name] = [
                psutil.Process(parent.pid), *psutil.Process(parent.pid).children(recursive=True)
            ]  # fmt: skip
            assert len(processes[name]) >= 2
        deadline = time.monotonic() + 300
        while len(server.requests) < 3 and time.monotonic() < deadline:
            time.sleep(0.1)  # for the workers to read as far ahead as they may
        for name, parent in running.items():
            if name.startswith("kill"):
                parent.kill()
            else:
                parent.stdin.write(name.split()[0] + "\n")
                parent.stdin.flush()
        everything = [process for family in processes.values() for process in family]
        _, alive = psutil.wait_procs(everything, timeout=SECONDS_TO_END)
        for process in alive:
            process.kill()
    for parent in running.values():
        parent.communicate()
    return {name: [p for p in family if p in alive] for name, family in processes.items()}


def test_workers_end_when_their_parent_is_killed(survivors):
    assert survivors["kill"] == []


def test_workers_with_many_batches_ready_end_when_their_parent_is_killed(survivors):
    assert survivors["kill with many batches ready"] == []


def test_a_program_ends_although_its_worker_waits_for_a_stalled_read(survivors):
    assert survivors["close while reading stalls"] == []


def test_a_program_that_fails_without_closing_ends(survivors):
    assert survivors["fail without closing"] == []
