"""Check everything that needs a GPU, section by section, and end in one table.

    bash scripts/check_on_gpu.sh first          # sets the paths up and calls this; then: second
    PYTHONPATH=src python scripts/check_on_gpu.py first second --dry --out check_on_gpu

Every section runs in a process of its own and has a time limit; one that fails, crashes or takes too
long is a row of the table, and the next one begins. Rows are written as they are found, to rows.jsonl
and table.md of the folder; a section that is checked again replaces its rows. `--dry` runs all
sections on a CPU at tiny sizes, to try the check itself.

The exit code is 1 where a section failed or something is not as expected.
"""

import argparse
import contextlib
import dataclasses
import importlib
import os
import signal
import subprocess
import sys
import time
import traceback
from pathlib import Path

from gpu_check.table import (
    FAILED,
    Row,
    add_row,
    drop_section,
    format_table,
    judge,
    read_rows,
)

# Sections with the seconds that each may take: those of a call together stay below ten minutes.
FIRST = {
    "info": 60, "gemm": 45, "head": 45, "attention": 140, "loss": 50, "blocks": 80, "tests": 170,
}  # fmt: skip
SECOND = {"step": 190, "engine": 170, "run": 230}
SECTIONS = FIRST | SECOND
CALLS = {"first": FIRST, "second": SECOND}


def check_section(name: str, out: Path, is_dry: bool, limit: float) -> None:
    """Run a section in a process of its own; how that ends is a row where it does not end well."""
    rows = out / "rows.jsonl"
    drop_section(rows, name)
    print(f"== {name}", flush=True)
    command = [sys.executable, __file__, name, "--inside", "--out", str(out)]
    environment = {**os.environ, "PYTHONWARNINGS": "ignore"}
    if is_dry:
        command.append("--dry")
        # Threads that share cores with other programs wait longer than such small sizes take.
        environment |= {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    began = time.monotonic()
    process = subprocess.Popen(command, env=environment, start_new_session=True)
    try:
        code = process.wait(limit)
        problem = f"ended with exit code {code}" if code else None
    except subprocess.TimeoutExpired:
        problem = f"took longer than {limit:g} s"
    finally:
        _end_all(process)
    if problem:
        add_row(rows, name, Row(name, problem, verdict=FAILED))
    add_row(rows, name, Row("seconds", f"{time.monotonic() - began:.0f}", f"below {limit:g}"))


def _end_all(process: subprocess.Popen[bytes]) -> None:
    """End what a section has started, and wait for it."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def run_inside(name: str, out: Path, is_dry: bool) -> None:
    """Write the rows of a section; where it fails, one that says why."""
    rows = out / "rows.jsonl"
    try:
        measuring = importlib.import_module("gpu_check.measuring")
        scale = dataclasses.replace(measuring.TINY if is_dry else measuring.FULL, out=out)
        for row in importlib.import_module(f"gpu_check.{name}").run(scale):
            add_row(rows, name, row)
    except Exception as error:  # whatever it is, the table has to say it
        traceback.print_exc()
        add_row(rows, name, Row(name, f"{type(error).__name__}: {error}"[:200], verdict=FAILED))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("sections", nargs="+", choices=[*CALLS, *SECTIONS])
    parser.add_argument("--out", type=Path, default=Path("check_on_gpu"), help="folder for results")
    parser.add_argument("--dry", action="store_true", help="on a CPU, at tiny sizes")
    parser.add_argument("--limit", type=float, help="seconds of every section")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    out = arguments.out.absolute()
    out.mkdir(parents=True, exist_ok=True)
    if arguments.inside:
        run_inside(arguments.sections[0], out, arguments.dry)
        return
    chosen = [name for word in arguments.sections for name in CALLS.get(word, [word])]
    for name in dict.fromkeys(chosen):
        limit = SECTIONS[name] if arguments.limit is None else arguments.limit
        check_section(name, out, arguments.dry, limit)
        rows = sorted(read_rows(out / "rows.jsonl"), key=lambda row: [*SECTIONS].index(row[0]))
        (out / "table.md").write_text(format_table(rows), encoding="utf-8")
    print(f"\n{format_table(rows)}")
    unmet = {FAILED, judge(False)}
    sys.exit(any(row.verdict in unmet for section, row in rows if section in chosen))


if __name__ == "__main__":
    main()
