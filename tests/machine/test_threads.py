"""How OpenMP threads wait: settled by the program, unless something else has settled it."""

import os
import subprocess
import sys

import pytest

from neobert_train.machine.threads import describe_waiting, limit_spinning

VARIABLES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")


@pytest.fixture(autouse=True)
def _clean(monkeypatch):
    for variable in VARIABLES:
        monkeypatch.setenv(variable, "")
        monkeypatch.delenv(variable)


def test_waiting_threads_give_their_core_away_soon():
    assert describe_waiting() == "the library's own default"
    limit_spinning()
    assert describe_waiting() == "GOMP_SPINCOUNT=1000, KMP_BLOCKTIME=0"


@pytest.mark.parametrize("variable", VARIABLES)
def test_what_was_settled_before_stays(monkeypatch, variable):
    monkeypatch.setenv(variable, "7")
    limit_spinning()
    assert describe_waiting() == f"{variable}=7"


def test_it_is_settled_before_torch_is_imported():
    script = (
        "import os, sys; import neobert_train.__main__ as program\n"
        "assert 'torch' not in sys.modules\n"
        "program.main = lambda: print(os.environ['GOMP_SPINCOUNT'], 'torch' in sys.modules)\n"
        "program.run_program()"
    )
    environment = {k: v for k, v in os.environ.items() if k not in VARIABLES}
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, env=environment
    )
    assert done.stdout == "1000 False\n"
