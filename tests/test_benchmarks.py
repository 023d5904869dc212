"""The benchmark scripts on shapes that take a moment: all rows, sound numbers, no claim on speed."""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.autograd import DeviceType
from torch.autograd.profiler_util import FunctionEvent, Kernel

from support.programs import find_python

SCRIPTS = Path(__file__).parents[1] / "scripts"
SMALL = ["--depth", "1", "--width", "64", "--vocab", "1000", "--tokens", "256"]


def run(script, *arguments):
    done = subprocess.run(
        [find_python(), SCRIPTS / script, *SMALL, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_bench_step_has_a_row_for_everything_that_runs_and_a_reason_for_the_rest(tmp_path):
    output = run("bench_step.py", "--contexts", 64, 32, "--rounds", 1, "--out", tmp_path,
                 "--only", "ours fp32", "ours bf16 sdpa", "padded", "modernbert-sparse", "bert bf16",
                 "--no-memory", "--at-once", 1)  # fmt: skip
    assert "ours fp32 flash_attn             it runs on CUDA devices only" in output
    rows = json.loads((tmp_path / "bench_step.json").read_text())
    for context in (64, 32):
        names = {row["contestant"] for row in rows if row["context"] == context}
        assert {"padded fp32", "padded bf16", "bert bf16", "modernbert-sparse bf16"} < names
        assert {"ours fp32 sdpa", "ours bf16 sdpa"} < names
    peaks: dict[tuple[int, str], list[float]] = {}
    for row in rows:
        assert all(row[key] > 0 for key in ("seconds", "tokens_per_second", "mfu"))
        precision, seconds = row["contestant"].split()[1], row["seconds"]
        peaks.setdefault((row["context"], precision), []).append(1 / seconds / row["mfu"])
        assert (row["contestant"] == "padded fp32") <= math.isclose(row["times_reference"], 1.0)
    # All rows of a context and a precision are measured against one peak, and those of bf16 another.
    for context in (64, 32):
        bf16, fp32 = (peaks[context, precision] for precision in ("bf16", "fp32"))
        assert max(bf16) == pytest.approx(min(bf16))
        assert max(fp32) == pytest.approx(min(fp32))
        assert bf16[0] != fp32[0]
    assert (tmp_path / "bench_step.md").read_text().count("\n") == len(rows) + 2
    assert "<svg" in (tmp_path / "bench_step.svg").read_text()
    # The same weights and documents, packed and padded, give the same loss.
    losses = [line.split() for line in output.splitlines() if "fp32" in line and " loss " in line]
    values = [float(words[-1]) for words in losses if words[0] in ("ours", "padded")]
    assert len(values) >= 4
    for context in (values[: len(values) // 2], values[len(values) // 2 :]):
        assert max(context) - min(context) < 2e-4


def test_bench_step_goes_on_without_a_contestant_that_runs_out_of_memory():
    sys.path.insert(0, str(SCRIPTS))
    import bench_step

    def make_contestant(name, fits):
        def step(sample):
            if next(fits):
                return model(torch.ones(1, 2)).sum()
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 4 GiB")

        model = torch.nn.Linear(2, 1)
        return bench_step.Contestant(name, lambda: (model, step), model, step)

    shape, sample = bench_step.Shape(1, 64, 1000), bench_step.make_sample(64, 64, 1, 1000)
    small = make_contestant("ours bf16 sdpa", iter([True] * 4))
    reference = make_contestant(bench_step.REFERENCE, iter([True, True, False]))
    contestants = [small, reference]
    for number in range(4):
        bench_step.take_round(contestants, sample, number)
    assert [len(contestant.seconds) for contestant in contestants] == [4, 2]
    assert reference.model is None
    rows = bench_step._tabulate(contestants, sample, shape, {"bf16": 1e9, "fp32": 1e9}, 64)
    assert [row["contestant"] for row in rows] == [small.name, reference.name]
    table = bench_step.format_table(rows).splitlines()
    assert table[-1] == "| 64 | padded fp32: ran out of memory in round 3 | | | | | |"
    assert table[-2].startswith("| 64 | ours bf16 sdpa | ")


def test_profile_step_divides_the_time_among_parts(tmp_path):
    output = run("profile_step.py", "--steps", 1, "--trace", tmp_path / "trace.json")
    shares = {
        line.split(" | ")[0][2:]: float(line.split(" | ")[-1].rstrip(" |%"))
        for line in output.splitlines()
        if line.startswith("| ") and line.endswith("% |")
    }
    assert {"matrix products", "attention", "norms", "SwiGLU", "rotary positions", "loss",
            "embedding", "other"} == shares.keys()  # fmt: skip
    assert abs(sum(shares.values()) - 100) < 1
    assert json.loads((tmp_path / "trace.json").read_text())["traceEvents"]


def test_profile_step_counts_a_kernel_of_a_gpu_once():
    """The profiler lists the operation that starts it, the kernel, and the marked range around it."""
    sys.path.insert(0, str(SCRIPTS))
    import profile_step

    def make_event(number, name, device, start, end, is_range=False):
        return FunctionEvent(
            id=number, name=name, thread=1, start_us=start, end_us=end, device_type=device,
            device_index=0, is_async=False, use_device="cuda", sequence_nr=-1,
            is_user_annotation=is_range,
        )  # fmt: skip

    around = make_event(1, "part: loss", DeviceType.CPU, 0, 50, is_range=True)
    operation = make_event(2, "aten::softmax", DeviceType.CPU, 5, 20)
    around.append_cpu_child(operation)
    operation.set_cpu_parent(around)
    operation.kernels.append(Kernel("softmax_kernel", 0, 100.0))
    kernel = make_event(3, "softmax_kernel", DeviceType.CUDA, 100, 200)
    range_of_gpu = make_event(4, "part: loss", DeviceType.CUDA, 100, 200, is_range=True)
    events = [around, operation, kernel, range_of_gpu]
    seconds, _ = profile_step.sum_up(events, torch.device("cuda"))
    assert dict(seconds) == {"loss": [pytest.approx(100e-6), 0.0]}


@pytest.mark.slow
def test_bench_start_waits_for_the_first_step_and_shows_why_there_is_none():
    command = [sys.executable, SCRIPTS / "bench_start.py", "--rounds", "1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    first, imports = (float(line.split(" s,")[0].split()[-1]) for line in done.stdout.splitlines())
    assert 0 < imports < first
    done = subprocess.run([*command, "sed=1"], capture_output=True, text=True, timeout=300)
    assert done.returncode == 1
    assert "did you mean seed?" in done.stderr


@pytest.mark.slow
def test_simulate_scale_loses_and_repeats_nothing():
    done = subprocess.run(
        [sys.executable, SCRIPTS / "simulate_scale.py", "--rows", "20000"],
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "rows lost 0, repeated 0" in done.stdout
    assert "micro-batches that differ from the run without stops: 0" in done.stdout
