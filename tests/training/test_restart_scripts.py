"""The loop of docs/operations.md and the SLURM script, which start a run again where that is of help."""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from training.runs import DEEPSPEED, MAX_STEPS, SMOKE

ROOT = Path(__file__).parents[2]
OPERATIONS = (ROOT / "docs" / "operations.md").read_text()
LOOP = re.search(r"```bash\n(for attempt.*?)```", OPERATIONS, re.DOTALL)[1]


def write_program(path, text):
    path.write_text(f"#!/bin/bash\n{text}\n")
    path.chmod(0o755)


def start_loop(folder):
    """The loop with a small run in `folder`/run in place of the base run."""
    settings = [*SMOKE, f"output_dir={folder / 'run'}", "trainer.evaluate_every_steps=0"]
    words = " ".join(f"'{word}'" for word in settings)
    bin_folder = folder / "bin"
    bin_folder.mkdir()
    launcher = " ".join(f"'{word}'" for word in DEEPSPEED[:-2])
    write_program(bin_folder / "deepspeed", f'echo start; exec {launcher} "${{@:1:2}}" {words}')
    write_program(bin_folder / "python", f'exec {sys.executable} "${{@:1:3}}" {words} "${{@:5}}"')
    return subprocess.Popen(
        ["bash", "-c", LOOP], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env={**os.environ, "PATH": f"{bin_folder}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def find_rank(process, folder):
    """A rank of the run, as soon as it has taken three steps."""
    metrics = folder / "run" / "metrics.jsonl"
    deadline = time.monotonic() + 300
    while not metrics.exists() or metrics.read_text().count("\n") < 3:
        assert process.poll() is None, process.stdout.read()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return next(
        child
        for child in psutil.Process(process.pid).children(recursive=True)
        if f"output_dir={folder / 'run'}" in child.cmdline()
        and "neobert_train" in child.cmdline()[:5]
    )


@pytest.mark.slow
def test_the_loop_starts_again_after_the_launchers_child_was_killed(tmp_path):
    process = start_loop(tmp_path)
    find_rank(process, tmp_path).parent().kill()
    output, _ = process.communicate(timeout=180)
    assert output.count("start\n") == 2, output
    assert "stopped by the end of its launcher" in output
    assert f"Done: {MAX_STEPS} steps" in output
    assert f"{tmp_path / 'run'}: complete" in output
    assert process.returncode == 0


@pytest.mark.slow
def test_the_loop_ends_when_a_process_was_asked_to_stop(tmp_path):
    process = start_loop(tmp_path)
    find_rank(process, tmp_path).terminate()
    output, _ = process.communicate(timeout=180)
    assert output.count("start\n") == 1, output
    assert "stopped by SIGTERM, with the checkpoint of step" in output


@pytest.mark.parametrize("code", [0, 1, 2, 3])
def test_the_slurm_script_queues_again_what_was_asked_to_stop(tmp_path, code):
    """`srun` and `scontrol` are stand-ins; how the run ended is what it wrote down."""
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.yaml").write_text("output_dir: run\n")
    outcome = {"exit_code": code, "reason": "as planted", "ended": "today"}
    (run / "outcome.json").write_text(json.dumps(outcome))
    programs = tmp_path / ".venv" / "bin"
    programs.mkdir(parents=True)
    write_program(programs / "python", f'exec {sys.executable} "$@"')
    write_program(programs / "srun", f"exit {int(code != 0)}")
    write_program(programs / "scontrol", f'echo "$@" >> {tmp_path}/asked')
    done = subprocess.run(
        ["bash", ROOT / "scripts" / "slurm" / "pretrain.sbatch", "+experiment=smoke", "output_dir=run"],
        cwd=tmp_path, capture_output=True, text=True, timeout=300,
        env={**os.environ, "PATH": f"{programs}:{os.environ['PATH']}", "SLURM_JOB_ID": "7",
             "SLURM_JOB_NODELIST": "one"},
    )  # fmt: skip
    assert "run: as planted, today; no checkpoint" in done.stdout, done.stderr
    assert done.returncode == int(code != 0)
    asked = (tmp_path / "asked").read_text().splitlines()
    assert ("requeue 7" in asked) is (code == 3)
