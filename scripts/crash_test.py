"""Kill a run again and again at random moments; it must end as if nothing had happened.

    python scripts/crash_test.py                 # 50 kills on one process, 50 on two: about half an hour
    python scripts/crash_test.py --kills 5 --processes 1

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
from pathlib import Path

from safetensors.torch import load_file

STEPS = 240
SETTINGS = [
    "+experiment=smoke", f"trainer.max_steps={STEPS}", "batch.global_batch_tokens=2048",
    "checkpoint.save_every_steps=1", "checkpoint.keep_last=2", "trainer.evaluate_every_steps=20",
    "logging.report=false", "logging.progress=false",
]  # fmt: skip
# Which differ between runs that are the same.
TIMES = (
    "train/tokens_per_second", "train/step_seconds", "train/data_wait_seconds",
    "train/flops_per_second", "train/mfu",
)  # fmt: skip


def start(output_dir: Path, num_processes: int) -> subprocess.Popen:
    command = [sys.executable, "-m"]
    if num_processes > 1:
        command += [
            "torch.distributed.run",
            "--standalone",
            f"--nproc-per-node={num_processes}",
            "-m",
        ]
    command += ["neobert_train", *SETTINGS, f"output_dir={output_dir}"]
    return subprocess.Popen(
        command,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        start_new_session=True,
    )


def list_family(pid: int) -> list[int]:
    """A process and all below it."""
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
    victim = random.choice(list_family(process.pid))
    with contextlib.suppress(ProcessLookupError, subprocess.TimeoutExpired):
        os.kill(victim, signal.SIGKILL)
        process.communicate(timeout=20)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def find_step(output_dir: Path) -> int:
    names = [path.name for path in (output_dir / "checkpoints").glob("step-*")]
    return max((int(name.split("-")[1]) for name in names), default=0)


def run_to_the_end(output_dir: Path, num_processes: int) -> tuple[float, float]:
    """Seconds until the first checkpoint, and from there to the end."""
    began = time.monotonic()
    process = start(output_dir, num_processes)
    while find_step(output_dir) == 0 and process.poll() is None:
        time.sleep(0.05)
    first = time.monotonic()
    _, errors = process.communicate(timeout=1200)
    assert process.returncode == 0, errors.decode()
    return first - began, time.monotonic() - first


def read_result(output_dir: Path) -> tuple[dict, dict, list]:
    folder = output_dir / "checkpoints" / f"step-{STEPS:08d}"
    tensors = load_file(folder / "model.safetensors") | load_file(folder / "optimizer.safetensors")
    state = json.loads((folder / "state.json").read_text())
    state.pop("seconds")
    lines = (output_dir / "metrics.jsonl").read_text().splitlines()
    metrics = [{k: v for k, v in json.loads(line).items() if k not in TIMES} for line in lines]
    return tensors, state, metrics


def crash(num_kills: int, num_processes: int, folder: Path) -> int:
    """One run killed up to `num_kills` times; returns how often it was before it was complete."""
    expected, disturbed = folder / "expected", folder / "disturbed"
    starting, training = run_to_the_end(expected, num_processes)
    steps = []
    for number in range(num_kills):
        process = start(disturbed, num_processes)
        # One in five while it starts, the others while it trains and writes.
        in_training = random.random() < 0.8
        delay = random.uniform(0, training / 6) if in_training else -random.uniform(0, starting)
        try:
            process.wait(timeout=starting + delay)
            break  # complete
        except subprocess.TimeoutExpired:
            kill_one(process)
        steps.append(find_step(disturbed))
        print(f"  kill {number + 1}: at step {steps[-1]}", flush=True)
    run_to_the_end(disturbed, num_processes)
    (tensors, state, metrics), (others, other_state, other_metrics) = map(
        read_result, (expected, disturbed)
    )
    assert tensors.keys() == others.keys()
    assert all(tensors[name].equal(others[name]) for name in tensors), "weights or moments differ"
    assert state == other_state
    assert metrics == other_metrics
    print(f"{num_processes} processes: {len(steps)} kills survived, bit for bit", flush=True)
    return len(steps)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--processes", type=int, nargs="*", default=[1, 2])
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    random.seed(arguments.seed)
    for num_processes in arguments.processes:
        left = arguments.kills
        while left > 0:  # a run that completes in between is followed by another
            with tempfile.TemporaryDirectory() as folder:
                left -= crash(left, num_processes, Path(folder))


if __name__ == "__main__":
    main()
