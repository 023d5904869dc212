"""Processes that torchrun starts again."""

import subprocess

from support.programs import find_python

PROGRAM = """
import os, signal, time
import torch
from neobert_train.distributed import Collectives
from neobert_train.world import World

world, restarts = World.from_environment(), int(os.environ["TORCHELASTIC_RESTART_COUNT"])
if restarts and world.rank == 1:
    time.sleep(3.0)  # until then the store has what its predecessor left there
collectives = Collectives(world, torch.device("cpu"))
if not restarts and world.rank == 0:
    os.kill(os.getpid(), signal.SIGKILL)
total = collectives.sum([1])
print(f"start {restarts}: {total}", flush=True)
collectives.close()
"""


def test_a_restart_does_not_look_for_the_processes_that_died(tmp_path):
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    done = subprocess.run(
        [find_python(), "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone",
         "--max-restarts=1", program],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    assert done.stdout.count("start 1: [2]") == 2
