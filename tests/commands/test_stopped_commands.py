"""Commands that are asked to stop, or killed, while they work."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from support.programs import find_python, run_command


def start(*arguments, python=sys.executable):
    """A command in a process group of its own."""
    return subprocess.Popen(
        [python, "-m", "neobert_train", *map(str, arguments)],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
    )  # fmt: skip


def wait_until(condition, process, seconds=60):
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.stdout.read()
        assert time.monotonic() < deadline
        time.sleep(0.02)


def find_descendants(process):
    return psutil.Process(process.pid).children(recursive=True)


def write_texts(path, num_documents):
    path.write_text(
        (json.dumps({"text": f"{'some words of a text ' * 100}"}) + "\n") * num_documents
    )


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    """A file of one shard that is quickly made, and one that takes some seconds."""
    folder = tmp_path_factory.mktemp("texts")
    write_texts(folder / "a.jsonl", 50)
    write_texts(folder / "b.jsonl", 8_000)
    return folder


@pytest.mark.parametrize(
    ("number", "whole_group"),
    [
        (signal.SIGTERM, False),
        (signal.SIGHUP, True),
        (signal.SIGKILL, False),
    ],
    ids=["SIGTERM", "SIGHUP", "SIGKILL"],
)
def test_prepare_that_is_ended_leaves_no_process_and_what_is_finished(
    tmp_path, texts, number, whole_group
):
    arguments = (
        "prepare", "+experiment=smoke", "data=files", f"data.paths=[{texts}/*.jsonl]",
        "data.column=text", f"data.prepared_dir={tmp_path}", "logging.progress=false",
    )  # fmt: skip
    process = start(*arguments, "num_processes=2")
    wait_until(lambda: list(tmp_path.glob("*/00000-0000.json")), process)
    processes = find_descendants(process)
    assert len([p for p in processes if any("spawn_main" in word for word in p.cmdline())]) == 2
    (os.killpg if whole_group else os.kill)(process.pid, number)
    output, _ = process.communicate(timeout=300)
    assert psutil.wait_procs(processes, timeout=100)[1] == []
    assert [path.name for path in tmp_path.glob("*/*.json")] == ["00000-0000.json"]
    if number != signal.SIGKILL:
        assert process.returncode == 3
        # The last result may be on its way from the process that wrote the shard.
        assert re.fullmatch(
            f"neobert_train: stopped by {number.name}: [01] of 2 shards are complete and stay; the "
            "same command continues\n",
            output,
        )
    write_texts(texts / "b.jsonl", 50)
    output = run_command(*arguments, "num_processes=1")
    assert "in 2 shards, 1 of which were there already" in output
    write_texts(texts / "b.jsonl", 8_000)


def test_train_tokenizer_stops_in_the_middle_of_a_long_call_into_its_library(tmp_path, texts):
    process = start(
        "train_tokenizer", "data=files", f"data.paths=[{texts}/*.jsonl]", "data.column=text",
        f"output={tmp_path / 'tokenizer'}",
    )  # fmt: skip
    wait_until(lambda: find_open(process, texts / "b.jsonl"), process)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=3)
    assert process.returncode == 3
    assert output == "neobert_train: stopped by SIGINT\n"
    assert list(tmp_path.iterdir()) == []


def find_open(process, path):
    return path.name in {Path(file.path).name for file in psutil.Process(process.pid).open_files()}


@pytest.mark.parametrize(
    ("command", "number"), [("evaluate", signal.SIGTERM), ("export", signal.SIGINT)]
)
def test_other_commands_stop_without_a_traceback(finished_run, command, number):
    process = start(command, f"run_dir={finished_run}")
    maps = Path(f"/proc/{process.pid}/maps")
    wait_until(lambda: "libtorch_cpu" in maps.read_text(), process)
    process.send_signal(number)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 3
    assert output == f"neobert_train: stopped by {number.name}\n"
    assert not list(finished_run.glob(".tmp-*"))


def test_training_that_has_not_begun_stops_at_once_and_leaves_nothing(tmp_path, texts):
    process = start(
        "train", "+experiment=smoke", "data=files", f"data.paths=[{texts}/*.jsonl]",
        "data.column=text", "data.heldout_fraction=1e-9", f"output_dir={tmp_path / 'run'}",
        python=find_python(),
    )  # fmt: skip
    while "looking for held-out documents" not in process.stdout.readline():
        assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 3
    assert output.endswith(
        "neobert_train: stopped by SIGTERM, before it had begun; the same command continues\n"
    )
    assert list(tmp_path.iterdir()) == []
