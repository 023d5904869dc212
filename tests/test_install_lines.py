"""Every `pip install` that the documentation shows resolves; nothing is installed."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LINES = [
    " ".join(line.split())  # a line may be broken in the text
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
    for line in re.findall(r"`(?:\.venv/bin/)?pip\s+install\s+([^`]+)`", path.read_text())
]


def test_there_are_lines_for_all_kernels():
    text = "\n".join(LINES)
    assert all(name in text for name in ("flash-attn-4", "flash-attn", "xformers", "wandb"))


@pytest.mark.slow
@pytest.mark.parametrize("line", LINES)
def test_an_install_line_resolves(line):
    done = subprocess.run(
        [sys.executable, "-m", "pip", "install", "--dry-run", *shlex.split(line)],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=550,
        # Without a GPU there is no CUDA build of torch to compile against.
        env={**os.environ, "FLASH_ATTENTION_SKIP_CUDA_BUILD": "TRUE"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
