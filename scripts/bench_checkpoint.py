"""What checkpoints cost: time taken from training, and memory.

    python scripts/bench_checkpoint.py                          # 6 blocks of width 384
    python scripts/bench_checkpoint.py --steps 12 --every 4 model=neobert_base

Runs with and without checkpoints in between take turns; both write the one at the end. What they
differ by, over the number of checkpoints, is what one takes from training: collecting the state,
and sharing the machine with the thread that writes, hashes and syncs. The last line sets it against
the steps of the default cadence.
"""

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from neobert_train.config.schema import CheckpointConfig

SETTINGS = [
    "+experiment=smoke", "model=neobert_small", "trainer.precision=bf16",
    "batch.context_length=1024", "batch.micro_batch_tokens=2048", "batch.global_batch_tokens=8192",
    "scheduler.warmup_steps=1", "trainer.evaluate_every_steps=0", "checkpoint.keep_last=1",
    "checkpoint.keep_best=false", "logging.report=false", "logging.progress=false",
]  # fmt: skip


@dataclass(frozen=True)
class Measurement:
    """Of one run.

    Attributes:
        seconds: from the end of the first step to the end of the process.
        step_seconds: median of a step, checkpoints not counted.
        peak_bytes: resident memory of the process at its largest.
        checkpoint_bytes: size of the checkpoint at the end.
    """

    seconds: float
    step_seconds: float
    peak_bytes: int
    checkpoint_bytes: int


def measure_run(folder: Path, steps: int, save_every: int, overrides: list[str]) -> Measurement:
    process = subprocess.Popen(
        [sys.executable, "-m", "neobert_train", *SETTINGS, *overrides, f"output_dir={folder}",
         f"trainer.max_steps={steps}", f"checkpoint.save_every_steps={save_every}"],
        stdout=subprocess.DEVNULL,
    )  # fmt: skip
    metrics = folder / "metrics.jsonl"
    first = None
    while not (ended := os.wait4(process.pid, os.WNOHANG))[0]:
        if first is None and metrics.exists() and metrics.stat().st_size:
            first = time.monotonic()
        time.sleep(0.01)
    seconds = time.monotonic() - (first or math.nan)
    _, status, usage = ended
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(process.returncode)
    lines = [json.loads(line) for line in metrics.read_text().splitlines()]
    files = (folder / "checkpoints" / f"step-{steps:08d}").rglob("*")
    return Measurement(
        seconds=seconds,
        step_seconds=statistics.median(line["train/step_seconds"] for line in lines[1:]),
        peak_bytes=usage.ru_maxrss * 1024,
        checkpoint_bytes=sum(path.stat().st_size for path in files if path.is_file()),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--every", type=int, default=5, help="steps between two checkpoints")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "overrides", nargs="*", help="settings of the run, as in model=neobert_base"
    )
    arguments = parser.parse_args()
    # One at the last step is written by both.
    in_between = (arguments.steps - 1) // arguments.every
    costs, steps, plain_peaks, peaks = [], [], [], []
    size = 0
    for number in range(1, arguments.rounds + 1):
        with tempfile.TemporaryDirectory() as folder:
            plain = measure_run(
                Path(folder) / "plain", arguments.steps, arguments.steps, arguments.overrides
            )
            saving = measure_run(
                Path(folder) / "saving", arguments.steps, arguments.every, arguments.overrides
            )
        costs.append((saving.seconds - plain.seconds) / in_between)
        steps.append(plain.step_seconds)
        plain_peaks.append(plain.peak_bytes)
        peaks.append(saving.peak_bytes)
        size = saving.checkpoint_bytes
        print(
            f"round {number}: {costs[-1]:.2f} s a checkpoint, {steps[-1]:.2f} s a step", flush=True
        )
    cost, step = statistics.median(costs), statistics.median(steps)
    cadence = CheckpointConfig().save_every_steps
    print(f"\ncheckpoint            {size / 2**20:,.0f} MiB")
    print(f"takes from training   {cost:.2f} s each")
    print(f"peak memory           {max(peaks) / 2**20:,.0f} MiB; {max(plain_peaks) / 2**20:,.0f} "
          "MiB with the last one only")  # fmt: skip
    print(f"every {cadence} steps of {step:.2f} s: {cost / (cadence * step):.2%} of the time")


if __name__ == "__main__":
    main()
