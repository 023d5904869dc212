"""A short version of scripts/crash_test.py, which has the long one.

Here whole runs are killed. Where tests start programs anew, it is any process of them.
"""

import subprocess
from pathlib import Path

import pytest

from support.programs import find_python
from support.small_vocabulary import list_small_settings

SCRIPT = Path(__file__).parents[2] / "scripts" / "crash_test.py"


@pytest.mark.parametrize(
    ("processes", "kills"), [(1, 2), pytest.param(2, 4, marks=pytest.mark.slow)]
)
def test_a_run_killed_at_random_moments_ends_as_one_that_nobody_disturbed(processes, kills):
    done = subprocess.run(
        [find_python(), SCRIPT, "--processes", str(processes), "--kills", str(kills),
         "--steps", "8", *list_small_settings()],
        capture_output=True,
        text=True,
        timeout=500,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("kill ") >= kills
    assert f"{processes} processes: " in done.stdout
