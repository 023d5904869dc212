"""A run directory that hosts do not share is noticed, and one that they share is waited for."""

import threading
import time

import pytest

from neobert_train.files import wait_until_seen
from support.programs import finish, fork_hosts

# Two processes in folders of their own; a relative output_dir means two disks then.
CHECK = """
import os, socket, sys, threading, time
from pathlib import Path
import torch
from neobert_train.distributed import Collectives
from neobert_train.errors import InputError
from neobert_train.run import shared
from neobert_train.run.directory import RunDirectory
from neobert_train.world import World

world = World.from_environment()
socket.gethostname = lambda: f"host{world.rank}"
shared._PATIENCE_SECONDS = 2.0
collectives = Collectives(world, torch.device("cpu"))

def try_to(function, *arguments):
    try:
        print(function(*arguments), flush=True)
    except InputError as error:
        print(error, flush=True)

for output_dir in sys.argv[1:]:
    try_to(shared.check_shared, RunDirectory(output_dir), collectives)
checkpoint = Path("run/checkpoints/step-00000001")
if world.rank:  # which comes into sight a second after the main process has found it
    threading.Timer(1.0, checkpoint.mkdir, [0o777, True]).start()
try_to(shared.share_checkpoint, collectives, lambda: checkpoint)
try_to(shared.share_checkpoint, collectives, lambda: Path("run/checkpoints/step-00000002"))
try_to(shared.share_checkpoint, collectives, lambda: None)
collectives.close()
os._exit(0)  # as the program does
"""


@pytest.fixture
def hosts(tmp_path):
    """The folders of two hosts, and a program that runs on both."""
    folders = [tmp_path / name for name in ("host0", "host1")]
    for folder in folders:
        (folder / "begun").mkdir(parents=True)
    (tmp_path / "shared").mkdir()
    (tmp_path / "check.py").write_text(CHECK)
    (folders[0] / "run/checkpoints/step-00000001").mkdir(parents=True)
    (folders[0] / "run/checkpoints/step-00000002").mkdir(parents=True)
    return folders


def list_files(folder):
    return [path for path in folder.rglob("*") if not path.is_dir()]


def test_hosts_see_one_run_directory_and_what_was_just_written_in_it(hosts, tmp_path):
    output_dirs = ["begun", "runs/new", f"{tmp_path}/shared/runs/new", f"{tmp_path}/shared"]
    processes = fork_hosts(str(tmp_path / "check.py"), *output_dirs, cwds=hosts)
    first, second = (finish(process).splitlines() for process in processes)
    assert first == second
    private, nowhere_yet, shared_soon, shared, seen, unseen, none = first
    for message, path in ((private, "begun"), (nowhere_yet, "runs/new")):
        assert message == (
            f"host1 cannot see what the main process on host0 writes to {path}: write output_dir=... "
            f"to choose a folder on a file system that all hosts share"
        )
    assert (shared_soon, shared, none) == ("None", "None", "None")
    assert seen == "run/checkpoints/step-00000001"
    assert "host1 cannot see run/checkpoints/step-00000002, which the main process has" in unseen
    assert list_files(tmp_path) == [tmp_path / "check.py"]
    assert not (tmp_path / "shared/runs").exists()


def test_a_path_is_waited_for_and_not_forever(tmp_path):
    path = tmp_path / "folder" / "late"
    assert not wait_until_seen(path, 0.2)
    threading.Timer(0.3, path.mkdir, [0o777, True]).start()
    started = time.monotonic()
    assert wait_until_seen(path, 60.0)
    assert 0.2 < time.monotonic() - started < 30
