"""The check of a machine with a GPU, tried on a CPU; one broken section must not cost the others."""

import os
import re
import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch
from torch.autograd import DeviceType
from torch.autograd.profiler_util import FunctionEvent

from support.programs import find_python

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "scripts"))

import check_on_gpu  # noqa: E402
from gpu_check import measuring, table  # noqa: E402
from gpu_check.table import FAILED, NEEDS_GPU, Row, judge  # noqa: E402


def run(out: Path, *words: str, code: int = 0, python: str = "") -> list[list[str]]:
    """Run the check on a CPU, and return the cells of its table."""
    done = subprocess.run(
        ["bash", ROOT / "scripts" / "check_on_gpu.sh", *words],
        env={**os.environ, "DRY": "1", "OUT": str(out), "PYTHON": python or find_python()},
        capture_output=True, text=True, timeout=900,
    )  # fmt: skip
    assert done.returncode == code, done.stdout + done.stderr
    lines = (out / "table.md").read_text().splitlines()
    assert "\n".join(lines) in done.stdout
    assert (out / "log.txt").read_text() == done.stdout
    return [line.strip("| ").split(" | ") for line in lines[2:]]


def test_sections_are_tried_without_a_gpu_and_say_what_needs_one(tmp_path):
    rows = run(tmp_path, "loss", "attention")
    # In the order of all sections, whatever the order they are asked for in.
    assert list(dict.fromkeys(row[0] for row in rows)) == ["attention", "loss"]
    verdicts = {row[1]: row[-1].strip() for row in rows}
    assert verdicts["torch_varlen at context 32"] == verdicts["launches"] == NEEDS_GPU
    assert verdicts["sdpa at context 64: error against fp32"] == "yes"
    assert FAILED not in verdicts.values()


@pytest.mark.slow
def test_all_sections_are_tried_without_a_gpu(tmp_path):
    rows = run(tmp_path, "first", "second")
    assert list(dict.fromkeys(row[0] for row in rows)) == list(check_on_gpu.SECTIONS)
    verdicts = {row[-1].strip() for row in rows}
    assert verdicts & {FAILED, judge(False)} == set()
    assert NEEDS_GPU in verdicts
    assert {path.name for path in tmp_path.iterdir()} == {
        "log.txt", "rows.jsonl", "table.md", "tests.log",
    }  # fmt: skip


def test_a_section_that_takes_too_long_is_a_row_and_the_next_one_begins(tmp_path):
    rows = run(tmp_path, "head", "gemm", "--limit", "0.2", code=1, python=sys.executable)
    assert [row[1:3] for row in rows if row[-1].strip() == FAILED] == [
        ["gemm", "took longer than 0.2 s"],
        ["head", "took longer than 0.2 s"],
    ]


def test_a_section_that_breaks_off_keeps_its_rows_and_says_why(tmp_path, monkeypatch, capsys):
    def rows(scale):
        yield Row("first", "1")
        raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 4 GiB")

    monkeypatch.setitem(sys.modules, "gpu_check.head", types.SimpleNamespace(run=rows))
    check_on_gpu.run_inside("head", tmp_path, is_dry=True)
    found = table.read_rows(tmp_path / "rows.jsonl")
    assert found[0] == ("head", Row("first", "1"))
    (section, row) = found[1]
    assert (section, row.verdict) == ("head", FAILED)
    assert row.measured.startswith("OutOfMemoryError: CUDA out of memory.")
    assert "Traceback" in capsys.readouterr().err


def test_what_is_measured_after_a_failure_inside_of_a_section_still_comes():
    def broken():
        yield Row("speed", "1")
        raise ValueError("no kernel")

    (first, second) = measuring.guard("xformers", broken())
    assert first.check == "speed"
    assert second == Row("xformers", "ValueError: no kernel", verdict=FAILED)


def test_a_section_that_is_checked_again_replaces_its_rows(tmp_path, capsys):
    file = tmp_path / "rows.jsonl"
    for section in ("head", "loss"):
        table.add_row(file, section, Row("speed", "a | b", "more", judge(True)))
    table.drop_section(file, "head")
    assert [section for section, _ in table.read_rows(file)] == ["loss"]
    assert table.format_table(table.read_rows(file)).endswith(
        "| loss | speed | a / b | more | yes |\n"
    )


def test_kernels_are_counted_once_and_by_what_they_compute():
    def make_event(number, name, device, end, is_range=False):
        return FunctionEvent(
            id=number, name=name, thread=1, start_us=0, end_us=end, device_type=device,
            device_index=0, is_async=False, use_device="cuda", sequence_nr=-1,
            is_user_annotation=is_range,
        )  # fmt: skip

    names = ["nvjet_tst_256x128", "void cutlass::device_kernel<flash::FwdKernel>",
             "triton_red_fused_add_0", "vectorized_elementwise_kernel",
             "sm90_xmma_gemm_bf16", "Memset (Device)"]  # fmt: skip
    events = [make_event(n, name, DeviceType.CUDA, 1000) for n, name in enumerate(names)]
    events += [make_event(10, "aten::mm", DeviceType.CPU, 1000),
               make_event(11, "part: loss", DeviceType.CUDA, 1000, is_range=True)]  # fmt: skip
    kernels = measuring.list_kernels(events)
    assert [name for name, _ in kernels] == names
    assert measuring.sum_by_kind(kernels) == {
        "products": 2.0, "attention": 1.0, "compiled": 1.0, "other": 1.0, "copies": 1.0,
    }  # fmt: skip


def test_each_call_ends_within_ten_minutes_and_has_all_modules():
    assert all(sum(limits.values()) < 600 for limits in check_on_gpu.CALLS.values())
    modules = {path.stem for path in (ROOT / "scripts" / "gpu_check").glob("*.py")}
    assert modules - set(check_on_gpu.SECTIONS) == {"__init__", "measuring", "table"}
    assert set(check_on_gpu.SECTIONS) <= modules


def test_the_versions_that_are_carried_along_are_pinned():
    text = (ROOT / "scripts" / "check_on_gpu.sh").read_text()
    pinned = re.findall(r"^([\w.-]+)==", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    carried = re.findall(r'^(?:REQUIRED|SOURCE_ONLY)="([^"]*)"', text, re.MULTILINE)
    assert len(carried) == 2
    assert {name for names in carried for name in names.split()} <= set(pinned)
