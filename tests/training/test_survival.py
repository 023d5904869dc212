"""Faults planted in real runs: what survives, what stops, and what is said."""

import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file

from neobert_train.training.divergence import SpikeDetector
from neobert_train.training.preemption import StopRequest
from support.programs import Forked, find_python, finish, fork_hosts, fork_ranks
from support.small_vocabulary import list_small_settings

PLANTED = str(Path(__file__).with_name("planted.py"))
TORCHRUN = ["-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone"]
SMALL = [
    "+experiment=smoke", "trainer.max_steps=8", "batch.global_batch_tokens=2048",
    "checkpoint.save_every_steps=2", "checkpoint.keep_last=9", "logging.report=false",
    "data.num_workers=0", "evaluation.max_tokens=0", *list_small_settings(),
]  # fmt: skip


def plant(fault, steps):
    return {"FAULT": fault, "STEPS": steps}


def run(output_dir, *overrides, code=0, fault="none", steps="0", file_bytes=None):
    """Train; no file may grow beyond `file_bytes`, as on a full disk."""
    words = [*SMALL, f"output_dir={output_dir}", *overrides]
    process = Forked(PLANTED, *words, **plant(fault, steps))
    if file_bytes is not None:
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (file_bytes, file_bytes))
    return finish(process, code)


def run_two(output_dir, *overrides, code=0, fault="none", steps="0"):
    """On two processes without a launcher; what both printed."""
    words = [*SMALL, f"output_dir={output_dir}", *overrides]
    processes = fork_ranks(PLANTED, *words, **plant(fault, steps))
    return "".join(finish(process, code) for process in processes)


def load(output_dir, step):
    folder = output_dir / "checkpoints" / f"step-{step:08d}"
    return load_file(folder / "model.safetensors") | load_file(folder / "optimizer.safetensors")


def assert_equal(one, other):
    assert one.keys() == other.keys()
    assert [name for name in one if not one[name].equal(other[name])] == []


def read_metrics(output_dir):
    return [json.loads(line) for line in (output_dir / "metrics.jsonl").read_text().splitlines()]


# Few tokens to predict, since bf16 is slow on a CPU without its instructions.
BF16 = "trainer.precision=bf16 masking.rate=0.05"
ZERO1 = pytest.param(f"deepspeed=zero1 {BF16}", marks=pytest.mark.slow)


@pytest.fixture(scope="module", params=["deepspeed=zero0", ZERO1, f"deepspeed=zero3 {BF16}"])
def skipped(request, tmp_path_factory):
    """A run with a NaN loss in steps 5 and 6, and its settings."""
    output_dir = tmp_path_factory.mktemp("skipped") / "run"
    settings = request.param.split()
    output = run(output_dir, *settings, fault="nan", steps="5,6")
    return output_dir, settings, output


def test_a_step_without_a_finite_loss_changes_nothing_but_the_documents(skipped):
    output_dir, _, output = skipped
    assert_equal(load(output_dir, 4), load(output_dir, 6))
    assert not all(a.equal(b) for a, b in zip(load(output_dir, 6).values(),
                                              load(output_dir, 8).values(), strict=True))  # fmt: skip
    assert "step 5 was skipped: the loss is not finite" in output
    records = read_metrics(output_dir)
    assert [record["train/loss"] is None for record in records] == [
        s in (5, 6) for s in range(1, 9)
    ]
    assert records[-1]["train/skipped_steps"] == 2
    state = json.loads((output_dir / "checkpoints/step-00000008/state.json").read_text())
    assert (state["step"], state["updates"]) == (8, 6)
    assert state["divergence"]["skipped_steps"] == 2
    assert state["divergence"]["skipped_in_a_row"] == 0


def test_the_documents_of_a_skipped_step_are_written_down(skipped):
    output_dir, _, _ = skipped
    files = sorted(path.name for path in (output_dir / "anomalies").iterdir())
    assert files == ["step-00000005.json", "step-00000006.json"]
    anomaly = json.loads((output_dir / "anomalies" / files[0]).read_text())
    (micro_batch,) = anomaly["micro_batches"]
    assert (micro_batch["lane"], micro_batch["loss"]) == (1, "nan")
    assert all(len(text) > 20 and "[MASK]" not in text for text in micro_batch["documents"])


def test_going_back_gives_the_weights_of_the_checkpoint_and_the_next_documents(skipped, tmp_path):
    output_dir, settings, _ = skipped
    rewinding = ["divergence.action=rewind", "divergence.max_skipped_steps=2"]
    output = run(tmp_path / "run", *settings, *rewinding, fault="nan", steps="5,6")
    assert "went back to the weights of step 4; continues after step 6" in output
    assert_equal(load(tmp_path / "run", 8), load(output_dir, 8))
    assert read_metrics(tmp_path / "run")[-1]["train/rewinds"] == 1


def test_both_processes_skip_alike_and_blame_the_lane(tmp_path):
    run_two(tmp_path / "run", fault="nan", steps="5,6")
    assert_equal(load(tmp_path / "run", 4), load(tmp_path / "run", 6))
    anomaly = json.loads((tmp_path / "run/anomalies/step-00000005.json").read_text())
    assert [entry["lane"] for entry in anomaly["micro_batches"]] == [1]


def test_going_back_waits_for_a_host_that_sees_the_checkpoint_late(tmp_path):
    hosts = [tmp_path / "host0", tmp_path / "host1"]
    for host in hosts:
        host.mkdir()
    rewinding = ["divergence.action=rewind", "divergence.max_skipped_steps=2"]
    main, other = fork_hosts(
        PLANTED, *SMALL, *rewinding, "output_dir=run", cwds=hosts,
        LOCAL_WORLD_SIZE="2", **plant("nan", "5,6"),
    )  # fmt: skip
    metrics = hosts[0] / "run" / "metrics.jsonl"
    while not (metrics.exists() and '"step": 5,' in metrics.read_text()):
        assert main.poll() is None, main.stdout.read()
        time.sleep(0.02)
    time.sleep(1.0)  # by then it would have failed
    (hosts[1] / "run").symlink_to(hosts[0] / "run")
    output = finish(main)
    assert "went back to the weights of step 4; continues after step 6" in output
    assert "step 8/8" in output
    finish(other)


def test_too_many_skipped_steps_stop_the_run_with_advice(tmp_path):
    output = run(
        tmp_path / "run", "divergence.max_skipped_steps=3", fault="nan", steps="3,4,5,6", code=1
    )
    assert "3 steps in a row were skipped, the last one, 5," in output
    assert "divergence.action=rewind" in output
    assert "Traceback" not in output


@pytest.mark.slow
def test_a_spike_is_skipped_when_asked_and_else_a_warning(tmp_path):
    found = ["divergence.spike_window=3", "divergence.spike_factor=3"]
    output = run(tmp_path / "warned", *found, fault="huge", steps="6")
    assert "the loss of step 6, " in output
    assert "is far above the running median" in output
    output = run(tmp_path / "skipped", *found, "divergence.on_spike=skip", fault="huge", steps="6")
    assert "step 6 was skipped: its loss" in output
    state = json.loads((tmp_path / "skipped/checkpoints/step-00000008/state.json").read_text())
    assert state["updates"] == 7


def test_a_spike_stands_out_of_the_median_and_is_not_counted():
    losses = []
    detector = SpikeDetector(2.0, 3, losses)
    assert [detector.is_spike(loss) for loss in (9.0, 1.0, 4.0)] == [False] * 3
    assert detector.is_spike(8.1)
    assert detector.median == 4.0
    assert not detector.is_spike(7.9)
    assert losses == [1.0, 4.0, 7.9]
    assert not SpikeDetector(0.0, 2, []).is_spike(1e9)
    assert SpikeDetector(2.0, 3, losses).is_spike(8.1)  # as a resumed run does


def test_when_a_process_hangs_all_end_with_their_stacks(tmp_path):
    output = run_two(
        tmp_path / "run", "trainer.step_timeout_seconds=8", fault="hang", steps="3", code=1
    )
    for rank in (0, 1):
        assert f"rank {rank}: step 3 has taken longer than 8 seconds" in output
    assert "in compute_with_fault" in output
    assert "in all_reduce" in output


def test_a_killed_process_takes_the_others_along(tmp_path):
    started = time.monotonic()
    result = subprocess.run(
        [find_python(), *TORCHRUN, PLANTED, *SMALL, f"output_dir={tmp_path / 'run'}"],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1", **plant("die", "3")},
    )  # fmt: skip
    output = result.stdout
    assert result.returncode == 1, output
    assert time.monotonic() - started < 60
    assert "rank 0: ends, since another process of the run did" in output
    assert "Signal 9 (SIGKILL)" in output or "exitcode  : -9" in output
    outcome = json.loads((tmp_path / "run/outcome.json").read_text())["content"]
    assert outcome["reason"].startswith("ends, since another process of the run did (")
    # What is left resumes.
    assert "step 8/8" in run_two(tmp_path / "run")


def test_a_process_whose_main_thread_is_blocked_ends_after_another_was_killed(tmp_path):
    """As one that waits for a GPU, which Python cannot interrupt; what it writes is finished first."""
    words = [*SMALL, f"output_dir={tmp_path / 'run'}"]
    main, other = fork_ranks(PLANTED, *words, **plant("die_alone", "3"))
    assert other.wait(300) == -signal.SIGKILL
    died = time.monotonic()
    output = finish(main, code=1)
    assert time.monotonic() - died < 30
    assert "rank 0: ends, since another process of the run did (rank 1)" in output
    assert "Traceback" not in output
    assert [path.name for path in (tmp_path / "run/checkpoints").iterdir()] == ["step-00000002"]
    assert "another process of the run did (rank 1)" in (tmp_path / "run/outcome.json").read_text()


def test_a_checkpoint_that_cannot_be_written_is_told_and_training_goes_on(tmp_path):
    output = run(tmp_path / "run", file_bytes=100_000, code=2)
    assert "the checkpoint of step 2 cannot be written" in output
    assert output.count("training continues, and tries again") >= 3
    assert "step 8/8" in output
    assert "make room or fix the permissions" in output
    assert "Traceback" not in output
    assert not list((tmp_path / "run/checkpoints").iterdir())
    assert "step 8/8" in run(tmp_path / "run")


def test_a_checkpoint_that_cannot_be_written_stops_the_run_when_told_to(tmp_path):
    output = run(tmp_path / "run", "checkpoint.on_error=stop", file_bytes=100_000, code=3)
    assert "stopped by checkpoint.on_error=stop" in output
    assert "without a checkpoint" in output


def test_a_run_ends_with_its_tokens_and_stays_complete(tmp_path):
    output = run(tmp_path / "run", "trainer.max_tokens=7000")
    assert "Done: 4 steps" in output
    assert "ended by         trainer.max_tokens=7000; with a higher one the same command" in output
    again = run(tmp_path / "run", "trainer.max_tokens=7000")
    assert "is complete after 4 steps, " in again
    assert "tokens (trainer.max_tokens=7000 is reached)" in again
    outcome = json.loads((tmp_path / "run/outcome.json").read_text())["content"]
    assert outcome["reason"] == "complete (trainer.max_tokens=7000 is reached)"


@pytest.mark.slow
def test_a_run_ends_with_its_seconds(tmp_path):
    output = run(tmp_path / "run", "trainer.max_seconds=0.001")
    assert "Done: 1 steps" in output


def test_the_time_limit_stops_with_a_checkpoint_and_the_run_goes_on(tmp_path):
    output = run(tmp_path / "run", "trainer.max_steps=100000", "trainer.time_limit='0:10'", code=3)
    assert "stopped by trainer.time_limit, with the checkpoint of step" in output
    (newest, *_) = sorted((tmp_path / "run/checkpoints").iterdir(), reverse=True)
    steps = int(newest.name.split("-")[1])
    assert read_metrics(tmp_path / "run")[-1]["step"] == steps
    output = run(tmp_path / "run", f"trainer.max_steps={steps + 2}")
    assert f"step {steps + 1}/{steps + 2}" in output


PROGRAM = """
import time
from neobert_train.training.preemption import StopRequest
stop = StopRequest()
stop.listen(None)
stop.begin_training()
print("ready", flush=True)
while True:
    time.sleep(0.05)
    if stop.reason:
        print(stop.reason, flush=True)
"""


def test_a_second_interrupt_ends_at_once():
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGUSR1)
    assert process.stdout.readline() == "SIGUSR1\n"
    process.send_signal(signal.SIGTERM)
    time.sleep(0.3)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=100)
    assert process.returncode == -signal.SIGINT


def test_the_clock_leaves_time_for_the_write():
    stop = StopRequest(1000.0, time.monotonic() - 900)
    assert stop.reason is None
    stop.seconds_to_stop = 80
    assert stop.reason == "trainer.time_limit"
    assert StopRequest().reason is None
