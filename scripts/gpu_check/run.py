"""A small run by the real command: stopped and continued, killed and continued, bit for bit the same."""

import contextlib
import json
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from safetensors.torch import load_file

from gpu_check.measuring import Scale, guard
from gpu_check.table import Row, judge

# What depends on the clock.
_TIMES = ("seconds", "per_second", "mfu")


@dataclass(frozen=True)
class SmallRun:
    """A run in a folder.

    Attributes:
        folder: its run directory.
        steps: of the whole run; a quarter of them apart are its checkpoints.
        precision: to train in.
        deterministic: whether a GPU is to give the same bits again.
    """

    folder: Path
    steps: int
    precision: str
    deterministic: bool = True

    def start(self) -> subprocess.Popen[bytes]:
        """Start the run, or continue it."""
        settings = [
            "+experiment=smoke", f"output_dir={self.folder}", f"trainer.max_steps={self.steps}",
            f"checkpoint.save_every_steps={self.steps // 4}", "trainer.evaluate_every_steps=0",
            f"trainer.precision={self.precision}",
            f"trainer.deterministic={str(self.deterministic).lower()}",
            "logging.report=false", "logging.progress=false",
        ]  # fmt: skip
        command = [sys.executable, "-m", "neobert_train", *settings]
        return subprocess.Popen(command, stdout=subprocess.DEVNULL)

    def has_logged(self) -> bool:
        file = self.folder / "metrics.jsonl"
        return file.exists() and file.stat().st_size > 0

    def find_last_step(self) -> int:
        """Return the step of the last checkpoint; 0 without one."""
        names = [path.name for path in (self.folder / "checkpoints").glob("step-*")]
        return max((int(name.split("-")[1]) for name in names), default=0)

    def read_metrics(self) -> list[dict[str, Any]]:
        """Return the logged steps, without what depends on the clock."""
        lines = map(json.loads, (self.folder / "metrics.jsonl").read_text().splitlines())
        return [{k: v for k, v in line.items() if not k.endswith(_TIMES)} for line in lines]


def run(scale: Scale) -> Iterator[Row]:
    steps, precision = (60, "bf16") if scale.on_gpu else (8, "fp32")
    with tempfile.TemporaryDirectory() as folder:
        plain = SmallRun(Path(folder) / "plain", steps, precision, deterministic=False)
        whole = SmallRun(Path(folder) / "whole", steps, precision)
        yield complete("by default", plain)
        yield complete("with trainer.deterministic", whole)
        for number in (signal.SIGTERM, signal.SIGKILL):
            parts = SmallRun(Path(folder) / number.name, steps, precision)
            yield from guard(f"after {number.name}", disturb(number, whole, parts))


def complete(name: str, run: SmallRun) -> Row:
    """Return how a run goes that nobody disturbs."""
    code = run.start().wait()
    expected = "0, falling"
    if code:
        return Row(f"{name}: exit code", str(code), expected, judge(False))
    losses = [line["train/loss"] for line in run.read_metrics()]
    return Row(f"{name}: exit code, loss", f"{code}, {losses[0]:.3f} to {losses[-1]:.3f}", expected,
               judge(losses[-1] < losses[0]))  # fmt: skip


def disturb(number: signal.Signals, whole: SmallRun, parts: SmallRun) -> Iterator[Row]:
    """Yield what a signal in the middle of a run leads to, and how the continued one compares."""
    is_kill = number is signal.SIGKILL
    process = parts.start()
    # A killed run continues from its last checkpoint, so that there has to be one.
    while process.poll() is None and not (
        parts.find_last_step() if is_kill else parts.has_logged()
    ):
        time.sleep(0.01)
    workers = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(number)
    if is_kill:  # as where a machine fails
        for worker in workers:
            with contextlib.suppress(psutil.NoSuchProcess):
                worker.kill()
    code, step, expected = process.wait(), parts.find_last_step(), -number if is_kill else 3
    yield Row(f"{number.name}: exit code, step of the checkpoint", f"{code}, {step}",
              f"{expected:d}, before {parts.steps}",
              judge(code == expected and 0 < step < parts.steps))  # fmt: skip
    code = parts.start().wait()
    differences = compare(whole, parts) if code == 0 else [f"exit code {code}"]
    yield Row(f"continued after {number.name}: weights, moments, metrics",
              ", ".join(differences) or "the same", "the same, bit for bit",
              judge(not differences))  # fmt: skip


def compare(whole: SmallRun, parts: SmallRun) -> list[str]:
    """Return what differs between two complete runs, in a few words."""
    differences = []
    for file in ("model.safetensors", "optimizer.safetensors"):
        place = Path("checkpoints") / f"step-{whole.steps:08d}" / file
        expected, found = load_file(whole.folder / place), load_file(parts.folder / place)
        if not all(expected[name].equal(found[name]) for name in expected):
            worst = max((expected[name] - found[name]).abs().max().item() for name in expected)
            differences.append(f"{file} by up to {worst:.1e}")
    pairs = zip(whole.read_metrics(), parts.read_metrics(), strict=True)
    different = [a["step"] for a, b in pairs if a != b]
    if different:
        differences.append(f"metrics of {len(different)} steps from {different[0]} on")
    return differences
