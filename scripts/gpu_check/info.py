"""What the machine has: the GPU, versions, what is missing, and what `doctor` says of it."""

import importlib.metadata
import platform
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator
from pathlib import Path

import torch
from packaging.requirements import Requirement

from gpu_check.measuring import Scale
from gpu_check.table import NEEDS_GPU, Row, judge
from neobert_train.machine.environment import find_versions
from neobert_train.machine.peak import find_known_device

ROOT = Path(__file__).resolve().parents[2]
# Lines of `doctor` that the table has; those of attention are indented below the first.
_LINES = ("attention", "compile", "optimizer", "note:")


def run(scale: Scale) -> Iterator[Row]:
    if scale.on_gpu:
        properties = torch.cuda.get_device_properties(scale.device)
        found = f"{properties.name}, {properties.total_memory / 2**30:.1f} GiB"
        is_known = find_known_device(properties.name) is not None
        yield Row("GPU", found, "one whose peak rate is known", judge(is_known))
    else:
        yield Row("GPU", f"{platform.machine()} CPU", verdict=NEEDS_GPU)
    versions = {name: version for name, version in find_versions().items() if version}
    shown = ", ".join(f"{name} {version}" for name, version in versions.items())
    yield Row("versions", f"python {platform.python_version()}, CUDA {torch.version.cuda}, {shown}")
    problems = list_missing_packages()
    yield Row("packages of pyproject.toml", ", ".join(problems) or "all there",
              "all there", judge(not problems))  # fmt: skip
    yield from run_doctor()


def list_missing_packages() -> list[str]:
    """Return what is missing or too old, as `pyarrow is missing`."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    problems = []
    for requirement in map(Requirement, project["dependencies"]):
        try:
            version = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            problems.append(f"{requirement.name} is missing")
            continue
        if not requirement.specifier.contains(version, prereleases=True):
            problems.append(f"{requirement.name} is {version}, not {requirement.specifier}")
    return problems


def run_doctor() -> Iterator[Row]:
    """Yield the kernels that `doctor` finds, and whether a run could start."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "neobert_train", "doctor", "+experiment=smoke",
                   "trainer.precision=bf16", f"output_dir={folder}/run"]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    kept = False
    for line in done.stdout.splitlines():
        kept = line.startswith(_LINES) or (kept and line.startswith("  "))
        if kept:
            yield Row("doctor", line.strip())
    last = (done.stderr or done.stdout).strip().splitlines() or ["printed nothing"]
    said = "a run can start" if done.returncode == 0 else last[-1]
    yield Row("doctor", said, "a run can start", judge(done.returncode == 0))
