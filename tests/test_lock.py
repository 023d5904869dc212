"""One process at a time trains in a run directory, and the others are told which one it is."""

import errno
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import time

import pytest

from neobert_train.errors import InputError
from neobert_train.run.directory import RunDirectory

HOLDER = """
import sys, time
from neobert_train.run.directory import RunDirectory
run = RunDirectory(sys.argv[1])
run.claim()
print("claimed", flush=True)
time.sleep(float(sys.argv[2]))
"""


def hold(folder, seconds=60.0):
    """A process that trains in `folder` for so long."""
    command = [sys.executable, "-c", HOLDER, str(folder), str(seconds)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "claimed\n"
    return process


def test_the_refusal_names_the_process_and_its_end_lets_the_next_in(tmp_path):
    process = hold(tmp_path)
    words = rf"process {process.pid} on {socket.gethostname()} \(since 20.*\) writes in "
    with pytest.raises(InputError, match=words):
        RunDirectory(tmp_path).claim(wait_seconds=0)
    assert json.loads((tmp_path / ".lock").read_text())["pid"] == process.pid
    process.send_signal(signal.SIGKILL)
    process.communicate()
    RunDirectory(tmp_path).claim(wait_seconds=0)
    assert json.loads((tmp_path / ".lock").read_text())["pid"] == os.getpid()


def test_a_start_waits_for_a_process_that_ends(tmp_path, caplog):
    process = hold(tmp_path, 1.0)
    began = time.monotonic()
    RunDirectory(tmp_path).claim()
    assert time.monotonic() - began < 30
    assert f"waiting up to 60 seconds for process {process.pid} on" in caplog.text
    assert caplog.text.count("waiting") == 1
    process.communicate()


def test_nothing_is_made_where_there_is_no_directory(tmp_path):
    run = RunDirectory(tmp_path / "run")
    run.claim()
    assert not run.path.exists()
    run.create()
    with pytest.raises(InputError, match="writes in"):
        RunDirectory(run.path).claim(wait_seconds=0)


def test_a_run_that_was_begun_meanwhile_is_not_written_over(tmp_path):
    late = RunDirectory(tmp_path / "run")
    late.claim()
    early = RunDirectory(tmp_path / "run")
    early.create()
    early.config_file.write_text("seed: 0")
    early.release()
    with pytest.raises(InputError, match=r"has begun a run in .* meanwhile: start again"):
        late.create()


def test_what_another_process_is_writing_is_not_cleared(tmp_path):
    run = RunDirectory(tmp_path)
    run.checkpoints.mkdir()
    run.temporary_checkpoint(3).mkdir()
    process = hold(tmp_path)
    with pytest.raises(InputError, match="writes in"):
        RunDirectory(tmp_path).claim(wait_seconds=0)
    assert run.temporary_checkpoint(3).is_dir()
    process.kill()
    process.communicate()


@pytest.mark.timeout(10)
@pytest.mark.parametrize("kind", ["link", "dangling link", "pipe", "folder"])
def test_a_lock_that_is_no_regular_file_is_named_and_nothing_happens_to_it(tmp_path, kind):
    lock, precious = tmp_path / ".lock", tmp_path / "precious"
    match kind:
        case "link":
            precious.write_text("kept")
            lock.symlink_to(precious)
        case "dangling link":
            lock.symlink_to(precious)
        case "pipe":
            os.mkfifo(lock)
        case "folder":
            lock.mkdir()
    with pytest.raises(InputError, match=r"\.lock is a link or no regular file"):
        RunDirectory(tmp_path).claim(wait_seconds=0)
    assert (precious.read_text() == "kept") if kind == "link" else not precious.exists()


@pytest.mark.parametrize("content", ["", "{", '{"pid": -1, "host": "x", "since": ""}', "[]"])
def test_a_holder_that_did_not_write_itself_down_is_another_process(tmp_path, content):
    process = hold(tmp_path)
    (tmp_path / ".lock").write_text(content)
    with pytest.raises(InputError, match="another process writes in"):
        RunDirectory(tmp_path).claim(wait_seconds=0)
    process.kill()
    process.communicate()


def fail_with(number):
    def flock(descriptor, operation):
        raise OSError(number, os.strerror(number))

    return flock


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK])
def test_a_file_system_without_locks_is_warned_of(tmp_path, monkeypatch, caplog, number):
    monkeypatch.setattr(fcntl, "flock", fail_with(number))
    RunDirectory(tmp_path).claim(wait_seconds=0)
    assert f"the file system has no locks ({os.strerror(number)})" in caplog.text


@pytest.mark.parametrize("number", [errno.EAGAIN, errno.EACCES])
def test_a_lock_that_is_held_is_refused_whatever_the_system_calls_it(tmp_path, monkeypatch, number):
    monkeypatch.setattr(fcntl, "flock", fail_with(number))
    with pytest.raises(InputError, match="writes in"):
        RunDirectory(tmp_path).claim(wait_seconds=0)


def test_another_failure_is_not_taken_for_a_lock(tmp_path, monkeypatch):
    monkeypatch.setattr(fcntl, "flock", fail_with(errno.EIO))
    with pytest.raises(InputError, match=r"cannot be written to .Input/output error."):
        RunDirectory(tmp_path).claim(wait_seconds=0)
