"""Signals that ask to stop: who acts on them, who leaves them to others."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from neobert_train.signals import STOP_SIGNALS

NOTES = """
import time
from neobert_train.training.preemption import StopRequest
stop = StopRequest()
stop.listen(None)
stop.begin_training()
print("ready", flush=True)
while not stop.reason:
    time.sleep(0.02)
print(stop.reason, flush=True)
"""
STARTS_WORKERS = """
import multiprocessing, sys, time
from neobert_train.data.workers import begin_worker, start_workers

def work():
    begin_worker()
    time.sleep(100)

if __name__ == "__main__":
    context = multiprocessing.get_context("spawn")
    with start_workers():
        worker = context.Process(target=work, daemon=True)
        worker.start()
    print(worker.pid, flush=True)
    time.sleep(100)
"""


def start(program, *arguments, **options):
    return subprocess.Popen(
        [sys.executable, *arguments, *program], stdout=subprocess.PIPE, text=True, **options
    )


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_every_signal_to_stop_is_noted(number):
    process = start(["-c", NOTES])
    assert process.stdout.readline() == "ready\n"
    process.send_signal(number)
    assert process.communicate(timeout=100)[0] == f"{number.name}\n"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_torch_is_imported_stops_the_command(number, tmp_path):
    """numpy is imported by C code of torch's, which loses what a handler raises."""
    process = start(
        ["-m", "neobert_train", "+experiment=smoke", "trainer.max_steps=100000"],
        cwd=tmp_path, stderr=subprocess.PIPE,
    )  # fmt: skip
    maps = Path(f"/proc/{process.pid}/maps")
    while "_multiarray_umath" not in maps.read_text():
        assert process.poll() is None
        time.sleep(0.001)
    process.send_signal(number)
    _, error = process.communicate(timeout=100)
    assert (process.returncode, "Traceback" in error) == (3, False), error


def test_a_hangup_that_nohup_ignores_stays_ignored():
    process = start(["-c", NOTES], preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN))
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGHUP)
    time.sleep(0.3)
    process.send_signal(signal.SIGTERM)
    assert process.communicate(timeout=100)[0] == "SIGTERM\n"


def test_workers_leave_signals_to_their_parent_from_their_first_moment_and_end_with_it(tmp_path):
    program = tmp_path / "program.py"
    program.write_text(STARTS_WORKERS)
    process = start([program])
    worker = psutil.Process(int(process.stdout.readline()))
    helpers = [child for child in psutil.Process(process.pid).children() if child != worker]
    assert len(helpers) == 1
    for _ in range(20):  # its imports take longer than this
        for child in (worker, *helpers):
            for number in STOP_SIGNALS:
                child.send_signal(number)
        time.sleep(0.1)
    assert worker.is_running()
    assert helpers[0].is_running()
    process.kill()
    assert psutil.wait_procs([worker, *helpers], timeout=100)[1] == []
    process.communicate()
