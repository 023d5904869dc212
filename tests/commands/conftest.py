"""One small finished run that the tests of commands share."""

import os
import subprocess
import sys
from pathlib import Path

import pytest


def run_command(*arguments, cwd=None, code=0, **environment):
    """Run `python -m neobert_train ...`; returns what it printed, stdout and stderr together."""
    result = subprocess.run(
        [sys.executable, "-m", "neobert_train", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=cwd,
        timeout=180,
        env={**os.environ, **environment},
    )
    assert result.returncode == code, result.stdout
    return result.stdout


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory) -> Path:
    """Three steps of the smoke experiment, with a report and planted secrets around it."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    run_command(
        "+experiment=smoke", f"output_dir={folder}", "trainer.max_steps=3",
        "checkpoint.save_every_steps=1", "checkpoint.keep_last=2", "data.num_workers=0",
        HF_TOKEN="hf_planted-secret", WANDB_API_KEY="planted-secret-key",
        AWS_SECRET_ACCESS_KEY="planted-secret-access",
    )  # fmt: skip
    return folder
