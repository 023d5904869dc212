"""Faults of the machine, the real ones: full disks, lost permissions, killed processes, signals."""

import fcntl
import json
import os
import pty
import signal
import subprocess
import sys
import termios
import time
from pathlib import Path

import psutil
import pytest

from support.programs import Forked, find_python, fork_ranks
from training import full_disk
from training.runs import (
    DEEPSPEED,
    MAX_STEPS,
    PLAIN,
    SMOKE,
    TORCHRUN,
    assert_bit_identical,
    finish,
    start,
    train,
    train_forked,
    wait_for_checkpoint,
    wait_for_step,
)

FULL_DISK, OBEYING, PLANTED = (
    str(Path(__file__).with_name(name)) for name in ("full_disk.py", "obeying.py", "planted.py")
)
LONG = ("trainer.max_steps=100000", "evaluation.max_tokens=0", "trainer.evaluate_every_steps=0")


def list_steps(output_dir):
    return sorted(int(path.name[5:]) for path in (output_dir / "checkpoints").glob("step-*"))


def assert_ends_with_a_checkpoint(output_dir):
    """What trained has ended, with the state of its last step on disk."""
    deadline = time.monotonic() + 300
    while is_training(output_dir):
        assert time.monotonic() < deadline, "still training"
        time.sleep(0.1)
    last = json.loads((output_dir / "metrics.jsonl").read_text().splitlines()[-1])["step"]
    assert list_steps(output_dir)[-1] == last


def read_outcome_code(output_dir):
    return json.loads((output_dir / "outcome.json").read_text())["content"]["exit_code"]


def is_training(output_dir):
    wanted = f"output_dir={output_dir}"
    return any(wanted in (p.info["cmdline"] or ()) for p in psutil.process_iter(["cmdline"]))


def test_a_run_whose_output_is_lost_ends_with_its_checkpoint(tmp_path):
    """Standard output is a pipe that nobody reads, standard error a log on a full disk."""
    reader, writer = os.pipe()
    os.close(reader)
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [find_python(), *PLAIN, *SMOKE, f"output_dir={tmp_path / 'run'}"], stdout=writer, stderr=full,
            env={**os.environ, "OMP_NUM_THREADS": "1"}, timeout=300,
        )  # fmt: skip
    os.close(writer)
    assert done.returncode == 0
    assert list_steps(tmp_path / "run")[-1] == MAX_STEPS


def take_terminal():
    """Make standard input the terminal of this session, as a login does, with room for a bar."""
    os.setsid()
    termios.tcsetwinsize(0, (24, 100))
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


def test_a_terminal_that_is_closed_leaves_a_checkpoint(tmp_path):
    terminal, child_end = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, *PLAIN, *SMOKE, f"output_dir={tmp_path / 'run'}", *LONG, "data.num_workers=1"],
        stdin=child_end, stdout=child_end, stderr=child_end, preexec_fn=take_terminal,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    os.close(child_end)
    shown = b""
    while shown.count(b"loss") < 3:
        shown += os.read(terminal, 4096)
    os.close(terminal)
    assert process.wait(300) == 3
    assert_ends_with_a_checkpoint(tmp_path / "run")


def test_a_full_disk_stops_no_training_and_room_lets_checkpoints_be_written(tmp_path):
    (tmp_path / "disk").mkdir()
    program = Forked(
        FULL_DISK, *SMOKE, f"output_dir={tmp_path / 'disk' / 'run'}", "evaluation.max_tokens=0",
        "trainer.max_steps=24", "checkpoint.keep_last=1", "checkpoint.keep_best=false",
        DISK=str(tmp_path / "disk"),
    )  # fmt: skip
    output, _ = program.communicate(timeout=180)
    if program.wait() == full_disk.UNABLE:
        pytest.skip(f"no file system of its own: {output}")
    assert program.returncode == 0, output
    at_start, rest = output.split("at the start: 2")
    assert "cannot be written to (No space left on device): make room" in at_start
    assert "Traceback" not in output
    assert "the checkpoint of step 2 cannot be written" in rest
    assert rest.count("training continues, and tries again") >= 2
    assert "step 24/24" in rest
    assert rest.splitlines()[-2:] == ["at the end: 0", "step-00000024"]


def test_a_folder_without_permission_at_the_start(tmp_path):
    (tmp_path / "closed").mkdir(mode=0o555)
    output = finish(Forked(OBEYING, *SMOKE, f"output_dir={tmp_path / 'closed' / 'run'}"), code=2)
    assert "cannot be written to (Permission denied): make room or fix its permi" in output
    assert "Traceback" not in output


def test_a_folder_that_loses_its_permission_while_the_run_goes_on(tmp_path):
    checkpoints = tmp_path / "run" / "checkpoints"
    words = [*SMOKE, f"output_dir={tmp_path / 'run'}", *LONG, "checkpoint.keep_last=1"]
    process = Forked(OBEYING, *words)
    wait_for_checkpoint(tmp_path / "run", 2, process)
    checkpoints.chmod(0o555)
    step = 3 + 8
    wait_for_step(tmp_path / "run", step, process)
    assert list_steps(tmp_path / "run")[-1] < step
    checkpoints.chmod(0o755)
    process.send_signal(signal.SIGINT)
    output = finish(process, code=3)
    assert "cannot be written: [Errno 13] Permission denied" in output
    assert "training continues, and tries again" in output
    assert "stopped by SIGINT, with the checkpoint of step" in output
    assert_ends_with_a_checkpoint(tmp_path / "run")


@pytest.mark.parametrize("begin", [fork_ranks, lambda *words: [Forked(*words)]], ids=["two", "one"])
def test_a_killed_data_worker_ends_the_run_with_the_cause(tmp_path, begin):
    """On two processes the other ends, too."""
    words = [*SMOKE, f"output_dir={tmp_path / 'run'}", *LONG, "data.num_workers=1"]
    ranks = begin("neobert_train", *words)
    wait_for_step(tmp_path / "run", 3, ranks[0])
    workers = [
        child
        for child in psutil.Process(ranks[-1].pid).children(recursive=True)
        if any("spawn_main" in word for word in child.cmdline())
    ]
    workers[0].kill()
    *_, output = (finish(rank, code=1) for rank in ranks)
    assert "a data worker ended with exit code -9: killed, for example because memory" in output
    (newest,) = list_steps(tmp_path / "run")[-1:]
    assert f"step {newest + 2}/" in train_forked(
        tmp_path / "run", f"trainer.max_steps={newest + 2}", *LONG[1:]
    )


@pytest.mark.parametrize("launcher", [DEEPSPEED, TORCHRUN], ids=["deepspeed", "torchrun"])
@pytest.mark.parametrize(
    "number",
    [signal.SIGTERM, *(pytest.param(n, marks=pytest.mark.slow) for n in (9, signal.SIGINT))],
)
def test_a_launcher_that_is_told_to_end_or_killed_leaves_a_checkpoint(tmp_path, launcher, number):
    # DeepSpeed's launcher ends all that it finds below the processes it has started.
    python = sys.executable if launcher is DEEPSPEED else None
    process = start(launcher, tmp_path / "run", *LONG, python=python)
    wait_for_step(tmp_path / "run", 3, process)
    process.send_signal(number)
    output, _ = process.communicate(timeout=300)
    assert_ends_with_a_checkpoint(tmp_path / "run")
    assert process.returncode != 0
    assert "the same command continues" in output
    # Only torchrun hands on that somebody asked for a stop.
    asked = launcher is TORCHRUN and number != signal.SIGKILL
    assert read_outcome_code(tmp_path / "run") == (3 if asked else 1)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGINT])
def test_a_signal_to_all_processes_together_leaves_a_checkpoint(tmp_path, number):
    """As SLURM and a terminal send it."""
    process = subprocess.Popen(
        [sys.executable, *TORCHRUN, *SMOKE, f"output_dir={tmp_path / 'run'}", *LONG],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    wait_for_step(tmp_path / "run", 3, process)
    for rank in list_ranks(process):
        rank.send_signal(number)
    output, _ = process.communicate(timeout=300)
    assert f"stopped by {number.name}, with the checkpoint of step" in output
    assert_ends_with_a_checkpoint(tmp_path / "run")


def run_planted(output_dir, fault, steps, *overrides):
    return subprocess.run(
        [sys.executable, PLANTED, *SMOKE, f"output_dir={output_dir}", *overrides],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=180,
        env={**os.environ, "OMP_NUM_THREADS": "1", "FAULT": fault, "STEPS": steps},
    )  # fmt: skip


def test_no_process_leaves_before_the_last_checkpoint_is_written(tmp_path):
    """A launcher would kill the one that writes."""
    ranks = fork_ranks(
        PLANTED, *SMOKE, f"output_dir={tmp_path / 'run'}", *LONG,
        "checkpoint.save_every_steps=100000", FAULT="slow_write", STEPS="0",
    )  # fmt: skip
    wait_for_step(tmp_path / "run", 2, ranks[0])
    ranks[1].send_signal(signal.SIGUSR1)
    outputs = [finish(rank, code=3) for rank in ranks]
    (newest,) = list_steps(tmp_path / "run")
    for rank, output in enumerate(outputs):
        assert f"rank {rank} leaves ['step-{newest:08d}']" in output


@pytest.mark.slow
def test_killed_in_an_evaluation_with_wandb_and_workers_it_ends_bit_for_bit_alike(tmp_path):
    pytest.importorskip("wandb")
    settings = ["logging.wandb=offline", "data.num_workers=2", "trainer.precision=bf16"]
    train(PLAIN, tmp_path / "undisturbed", *settings)
    done = run_planted(tmp_path / "run", "die_evaluating", "4", *settings)
    assert done.returncode == -signal.SIGKILL, done.stdout
    assert "step 4/8" in done.stdout
    assert list_steps(tmp_path / "run") == [2]
    train(PLAIN, tmp_path / "run", *settings)
    assert_bit_identical(tmp_path / "run", tmp_path / "undisturbed")


@pytest.mark.slow
def test_torchrun_restarts_a_run_whose_process_died(tmp_path):
    undisturbed, output_dir = tmp_path / "undisturbed", tmp_path / "run"
    train(TORCHRUN, undisturbed)
    restarting = [*TORCHRUN[:2], "--max-restarts=2", *TORCHRUN[2:]]
    process = start(restarting, output_dir)
    wait_for_step(output_dir, 3, process)
    list_ranks(process)[0].kill()
    output = finish(process)
    assert f"Done: {MAX_STEPS} steps" in output
    assert_bit_identical(output_dir, undisturbed)


def list_ranks(process):
    return psutil.Process(process.pid).children(recursive=False)


def has_loaded_torch(process):
    return "libtorch_cpu" in Path(f"/proc/{process.pid}/maps").read_text()


@pytest.mark.slow
def test_a_launcher_killed_before_the_run_has_begun_leaves_nobody_waiting(tmp_path):
    process = start(TORCHRUN, tmp_path / "run")
    deadline = time.monotonic() + 300
    while [has_loaded_torch(rank) for rank in list_ranks(process)] != [True, True]:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.kill()
    output, _ = process.communicate(timeout=300)
    assert "ends, since its launcher did" in output
    assert not is_training(tmp_path / "run")
    assert list_steps(tmp_path / "run") == []
