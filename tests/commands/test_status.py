"""`status`: how the latest start of a run ended, by what the run itself wrote down."""

import fcntl
import json
import os
import shutil
import subprocess
import sys
import threading
import time

import pytest

from support.programs import run_command


@pytest.fixture
def ended_run(finished_run, tmp_path):
    """What `status` reads of a finished run."""
    folder = tmp_path / "run"
    shutil.copytree(finished_run, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    return folder


def hold(folder):
    """Keep the lock of a run as a process that trains does."""
    file = open(folder / ".lock", "r+")  # noqa: SIM115
    fcntl.flock(file, fcntl.LOCK_EX)
    return file


def test_a_complete_run_says_so_with_its_exit_code(ended_run):
    output = run_command("status", f"output_dir={ended_run}")
    assert output.startswith(f"{ended_run}: complete, 20")
    assert output.endswith("; checkpoint of step 3 of 3\n")


def test_a_start_that_said_nothing_was_killed(ended_run):
    (ended_run / "outcome.json").unlink()
    assert "was killed" in run_command("status", f"output_dir={ended_run}", code=1)


@pytest.mark.parametrize("damage", ["{", '{"exit_code": -1, "reason": "", "ended": ""}', "[]"])
def test_a_damaged_file_is_named(ended_run, damage):
    (ended_run / "outcome.json").write_text(damage)
    output = run_command("status", f"output_dir={ended_run}", code=2)
    assert f"{ended_run / 'outcome.json'} cannot be read" in output
    assert "remove it" in output


def test_without_a_run_it_names_the_folder(tmp_path):
    output = run_command("status", f"output_dir={tmp_path / 'none'}", code=2)
    assert output == f"neobert_train: {tmp_path / 'none'} holds no run: check output_dir\n"
    assert list(tmp_path.iterdir()) == []


def test_a_process_that_trains_is_named_and_waited_for(ended_run):
    with hold(ended_run):
        holder = json.loads((ended_run / ".lock").read_text())
        output = run_command("status", f"output_dir={ended_run}", code=1)
    assert f"process {holder['pid']} on {holder['host']}" in output
    assert "is training; checkpoint of step 3 of 3" in output
    lock = hold(ended_run)
    started = time.monotonic()
    release = threading.Timer(5, lock.close)
    release.start()
    assert "complete" in run_command("status", f"output_dir={ended_run}", "wait_seconds=60")
    assert time.monotonic() - started > 5


def test_it_needs_none_of_the_large_libraries(ended_run):
    script = (
        "import sys, neobert_train.__main__ as program\n"
        "try: program.main()\n"
        "finally: print(sorted({'torch', 'transformers', 'datasets'} & {*sys.modules}))"
    )
    command = [sys.executable, "-c", script, "status", f"output_dir={ended_run}"]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ}, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("\n[]\n")
