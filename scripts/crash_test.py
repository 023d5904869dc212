"""Kill a run again and again at random moments; it must end as if nothing had happened.

    python scripts/crash_test.py                 # 50 kills on one process, 50 on two: about half an hour
    python scripts/crash_test.py --kills 5 --processes 1 --steps 60 optimizer=muon deepspeed=zero0

A small run is started, and after a random time one of its processes (the launcher, a rank, or a data
worker) is killed with SIGKILL, in whatever it does: importing, training, writing, pruning. The same
command starts again until the run is complete. Weights, moments, state and metrics must then be
those of a run that nobody disturbed, bit for bit.
"""

import argparse
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from safetensors.torch import load_file

SETTINGS = [
    "+experiment=smoke", "batch.global_batch_tokens=2048",
    "checkpoint.save_every_steps=1", "checkpoint.keep_last=2", "trainer.evaluate_every_steps=20",
    "logging.report=false", "logging.progress=false",
]  # fmt: skip
# Which differ between runs that are the same.
TIMES = (
    "train/tokens_per_second", "train/step_seconds", "train/data_wait_seconds",
    "train/flops_per_second", "train/mfu",
)  # fmt: skip


@dataclass(frozen=True)
class SmallRun:
    """A run in a folder, and how it is started."""

    output_dir: Path
    num_processes: int
    steps: int
    overrides: tuple[str, ...] = ()


def start(run: SmallRun) -> subprocess.Popen:
    command = [sys.executable, "-m"]
    if run.num_processes > 1:
        launcher = ["torch.distributed.run", "--standalone"]
        command += [*launcher, f"--nproc-per-node={run.num_processes}", "-m"]
    command += ["neobert_train", *SETTINGS]
    command += [f"trainer.max_steps={run.steps}", f"output_dir={run.output_dir}", *run.overrides]
    return subprocess.Popen(
        command,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        start_new_session=True,
    )


def list_family(pid: int) -> list[int]:
    """Return a process and all below it."""
    found = [pid]
    for process in found:
        for children in Path(f"/proc/{process}/task").glob("*/children"):
            try:
                found += [int(child) for child in children.read_text().split()]
            except OSError:
                continue  # it has just ended
    return found


def kill_one(process: subprocess.Popen) -> None:
    """Kill one of the run's processes, and clear away what its launcher leaves."""
    family = list_family(process.pid)
    with contextlib.suppress(ProcessLookupError, subprocess.TimeoutExpired):
        os.kill(random.choice(family), signal.SIGKILL)
        process.communicate(timeout=5)
    for survivor in family:
        with contextlib.suppress(ProcessLookupError):
            os.kill(survivor, signal.SIGKILL)
    process.communicate()


def find_step(run: SmallRun) -> int:
    names = [path.name for path in (run.output_dir / "checkpoints").glob("step-*")]
    return max((int(name.split("-")[1]) for name in names), default=0)


def wait_for_step(
    run: SmallRun, process: subprocess.Popen, step: int, timeout: float = 1200
) -> None:
    """Until there is a checkpoint of a later step, the run is over, or so many seconds are."""
    end = time.monotonic() + timeout
    while find_step(run) <= step and process.poll() is None and time.monotonic() < end:
        time.sleep(0.02)


def run_to_the_end(run: SmallRun) -> tuple[float, float]:
    """Return seconds until the first new checkpoint, and from there to the end."""
    began, step = time.monotonic(), find_step(run)
    process = start(run)
    wait_for_step(run, process, step)
    first = time.monotonic()
    _, errors = process.communicate(timeout=1200)
    assert process.returncode == 0, errors.decode()
    return first - began, time.monotonic() - first


def read_result(run: SmallRun) -> tuple[dict, dict, list]:
    folder = run.output_dir / "checkpoints" / f"step-{run.steps:08d}"
    tensors = load_file(folder / "model.safetensors") | load_file(folder / "optimizer.safetensors")
    state = json.loads((folder / "state.json").read_text())
    state.pop("seconds")
    lines = (run.output_dir / "metrics.jsonl").read_text().splitlines()
    metrics = [{k: v for k, v in json.loads(line).items() if k not in TIMES} for line in lines]
    return tensors, state, metrics


def crash(
    num_kills: int, num_processes: int, steps: int, overrides: tuple[str, ...], folder: Path
) -> int:
    """Return one run killed up to `num_kills` times; returns how often it was before it was complete."""
    undisturbed = SmallRun(folder / "undisturbed", num_processes, steps, overrides)
    disturbed = SmallRun(folder / "disturbed", num_processes, steps, overrides)
    starting, training = run_to_the_end(undisturbed)
    kills = 0
    while kills < num_kills and find_step(disturbed) < steps:
        step = find_step(disturbed)
        process = start(disturbed)
        if random.random() < 0.2:  # while it starts
            wait_for_step(disturbed, process, step, random.uniform(0, starting))
        else:  # while it trains and writes
            wait_for_step(disturbed, process, step)
            time.sleep(random.uniform(0, training / 6))
        if process.poll() is not None:
            break  # complete
        kill_one(process)
        kills += 1
        print(f"  kill {kills}: at step {find_step(disturbed)}", flush=True)
    run_to_the_end(disturbed)
    (tensors, state, metrics), (others, other_state, other_metrics) = map(
        read_result, (undisturbed, disturbed)
    )
    assert tensors.keys() == others.keys()
    assert all(tensors[name].equal(others[name]) for name in tensors), "weights or moments differ"
    assert state == other_state
    assert metrics == other_metrics
    print(f"{num_processes} processes: {kills} kills survived, bit for bit", flush=True)
    return kills


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--processes", type=int, nargs="*", default=[1, 2])
    parser.add_argument("--steps", type=int, default=240, help="of the run")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("overrides", nargs="*", help="settings of the run, as on its command line")
    arguments = parser.parse_intermixed_args()
    random.seed(arguments.seed)
    for num_processes in arguments.processes:
        left = arguments.kills
        while left > 0:  # a run that completes in between is followed by another
            with tempfile.TemporaryDirectory() as folder:
                settings = tuple(arguments.overrides)
                left -= crash(left, num_processes, arguments.steps, settings, Path(folder))


if __name__ == "__main__":
    main()
