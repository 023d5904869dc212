"""The tests that are marked as ones of a GPU."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from gpu_check.measuring import Scale
from gpu_check.table import FAILED, NEEDS_GPU, Row, judge

ROOT = Path(__file__).resolve().parents[2]
# What pytest exits with where tests ran, all or not all of them well.
_RAN = (0, 1)


def run(scale: Scale) -> Iterator[Row]:
    files = [
        str(path.relative_to(ROOT))
        for path in sorted((ROOT / "tests").rglob("test_*.py"))
        if "mark.gpu" in path.read_text(encoding="utf-8")
    ]
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-q", "-p", "no:cacheprovider", *files]
    if not scale.on_gpu:
        command.append("--collect-only")
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    output = (done.stdout + done.stderr).strip()
    (scale.out / "tests.log").write_text(output + "\n", encoding="utf-8")
    last = output.splitlines()[-1].strip("= ") if output else "printed nothing"
    if done.returncode not in _RAN:
        yield Row("pytest -m gpu", f"exit code {done.returncode}: {last}", verdict=FAILED)
    elif not scale.on_gpu:
        yield Row("pytest -m gpu", last, verdict=NEEDS_GPU)
    else:
        yield Row("pytest -m gpu", last, "all pass", judge(done.returncode == 0))
        for line in output.splitlines():
            if line.startswith(("FAILED ", "ERROR ")):
                yield Row("pytest -m gpu", line[:200], "passes", judge(False))
