"""Whole runs, started as a user starts them: launched, killed, resumed, on one and two processes."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

MAX_STEPS = 8
SMOKE = [
    "+experiment=smoke", f"trainer.max_steps={MAX_STEPS}", "trainer.evaluate_every_steps=4",
    "checkpoint.save_every_steps=2", "logging.report=false",
]  # fmt: skip
PLAIN = [sys.executable, "-m", "neobert_train"]
TORCHRUN = [
    sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone",
    "-m", "neobert_train",
]  # fmt: skip
DEEPSPEED = [
    str(Path(sys.executable).with_name("deepspeed")), "--num_gpus", "2", "--master_port", "29731",
    "--module", "neobert_train",
]  # fmt: skip
TIMES = (
    "train/tokens_per_second", "train/step_seconds", "train/data_wait_seconds",
    "train/flops_per_second", "train/mfu",
)  # fmt: skip


def start(launcher, output_dir, *overrides):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "default"}
    return subprocess.Popen(
        [*launcher, *SMOKE, f"output_dir={output_dir}", *overrides],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
    )


def finish(process, code=0):
    output, _ = process.communicate(timeout=120)
    assert process.returncode == code, output
    return output


def train(launcher, output_dir, *overrides):
    return finish(start(launcher, output_dir, *overrides))


def read_metrics(output_dir):
    lines = (output_dir / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    return [{k: v for k, v in record.items() if k not in TIMES} for record in records]


def wait_for_step(output_dir, step, process):
    """Until the metrics show a step; an exact moment is not wanted."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        assert process.poll() is None, process.stdout.read()
        file = output_dir / "metrics.jsonl"
        if file.exists() and len(file.read_text().splitlines()) >= step:
            return
        time.sleep(0.02)
    raise AssertionError("the run did not get there")


def final_tensors(output_dir):
    folder = output_dir / "checkpoints" / f"step-{MAX_STEPS:08d}"
    return load_file(folder / "model.safetensors") | load_file(folder / "optimizer.safetensors")


def final_state(output_dir):
    folder = output_dir / "checkpoints" / f"step-{MAX_STEPS:08d}"
    state = json.loads((folder / "state.json").read_text())
    assert state.pop("seconds") > 0
    # Losses are compared by the metrics.
    del state["heldout_loss"], state["divergence"]["recent_losses"]
    return state


def assert_same_run(output_dir, expected_dir, tolerance):
    """The same documents in the same steps, and losses within `tolerance`."""
    records, expected = read_metrics(output_dir), read_metrics(expected_dir)
    assert [r["step"] for r in records] == list(range(1, MAX_STEPS + 1))
    for record, reference in zip(records, expected, strict=True):
        assert record["train/loss"] == pytest.approx(reference["train/loss"], abs=tolerance)
        assert record["train/tokens"] == reference["train/tokens"]
        assert record["train/masked_tokens"] == reference["train/masked_tokens"]
        assert record["train/grad_norm"] == pytest.approx(reference["train/grad_norm"], rel=1e-4)
    for key in ("eval/masked_lm_loss", "eval/masked_lm_accuracy"):
        assert records[-1][key] == pytest.approx(expected[-1][key], abs=1e-5)
    assert final_state(output_dir) == final_state(expected_dir)


def assert_bit_identical(output_dir, expected_dir):
    assert read_metrics(output_dir) == read_metrics(expected_dir)
    assert final_state(output_dir) == final_state(expected_dir)
    tensors, expected = final_tensors(output_dir), final_tensors(expected_dir)
    assert tensors.keys() == expected.keys()
    different = [name for name in tensors if not tensors[name].equal(expected[name])]
    assert different == []


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """One process, ZeRO 1, fp32, never stopped."""
    output_dir = tmp_path_factory.mktemp("uninterrupted") / "run"
    output = train(PLAIN, output_dir)
    assert "held-out loss" in output
    assert "unigram entropy  6.47" in output
    return output_dir


def test_deepspeed_launcher_with_two_processes_and_zero2(uninterrupted, tmp_path):
    train(DEEPSPEED, tmp_path / "run", "deepspeed=zero2")
    assert_same_run(tmp_path / "run", uninterrupted, tolerance=1e-5)


def test_torchrun_with_two_processes_and_zero3(uninterrupted, tmp_path):
    train(TORCHRUN, tmp_path / "run", "deepspeed=zero3")
    assert_same_run(tmp_path / "run", uninterrupted, tolerance=1e-5)


def test_zero0_without_workers(uninterrupted, tmp_path):
    train(PLAIN, tmp_path / "run", "deepspeed=zero0", "data.num_workers=0")
    assert_same_run(tmp_path / "run", uninterrupted, tolerance=1e-5)


def test_killed_twice_and_resumed_is_bit_identical(uninterrupted, tmp_path):
    output_dir = tmp_path / "run"
    for step in (3, 6):
        process = start(PLAIN, output_dir)
        wait_for_step(output_dir, step, process)
        process.kill()
        process.communicate()
    train(PLAIN, output_dir)
    assert_bit_identical(output_dir, uninterrupted)


def test_sigterm_stops_with_a_checkpoint_and_another_world_size_goes_on(uninterrupted, tmp_path):
    output_dir = tmp_path / "run"
    process = start(TORCHRUN, output_dir, "deepspeed=zero2")
    wait_for_step(output_dir, 3, process)
    ranks = subprocess.run(
        ["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=True
    ).stdout.split()
    os.kill(int(ranks[0]), signal.SIGTERM)  # one rank is enough: all stop together
    output, _ = process.communicate(timeout=120)
    assert (
        "stopped by SIGTERM, with the checkpoint of step" in output or "exitcode  : 3" in output
    ), output
    stopped_at = max(int(p.name[5:]) for p in (output_dir / "checkpoints").iterdir())
    assert 3 <= stopped_at < MAX_STEPS
    train(PLAIN, output_dir, "deepspeed=zero3")
    assert_same_run(output_dir, uninterrupted, tolerance=1e-5)


def test_bf16_run_stopped_and_resumed_is_bit_identical(tmp_path):
    expected, output_dir = tmp_path / "expected", tmp_path / "run"
    train(PLAIN, expected, "trainer.precision=bf16")
    process = start(PLAIN, output_dir, "trainer.precision=bf16")
    wait_for_step(output_dir, 3, process)
    process.send_signal(signal.SIGTERM)
    assert "the same command continues" in finish(process, code=3)
    train(PLAIN, output_dir, "trainer.precision=bf16")
    assert_bit_identical(output_dir, expected)


def test_a_finished_run_says_so(uninterrupted):
    assert "is complete after 8 steps" in train(PLAIN, uninterrupted)


def test_resume_never_refuses_and_must_requires(uninterrupted, tmp_path):
    output = finish(start(PLAIN, uninterrupted, "resume=never"), code=2)
    assert "already holds a run" in output
    assert "Traceback" not in output
    output = finish(start(PLAIN, tmp_path / "none", "resume=must"), code=2)
    assert "holds no run" in output
    assert not (tmp_path / "none").exists()


def test_another_seed_in_the_same_directory_is_refused(uninterrupted):
    output = finish(start(PLAIN, uninterrupted, "seed=1", "model.hidden_size=32"), code=2)
    assert "holds another run" in output
    assert "seed: 0 -> 1" in output
    assert "model.hidden_size: 64 -> 32" in output


def test_another_seed_and_another_environment_are_warned_of_when_they_are_wanted(
    uninterrupted, tmp_path
):
    output_dir = tmp_path / "run"
    shutil.copytree(uninterrupted, output_dir)
    (before,) = json.loads((output_dir / "environment.json").read_text())
    before["packages"]["torch"] = "1.0"
    (output_dir / "environment.json").write_text(json.dumps([before]))
    output = train(PLAIN, output_dir, "seed=1", "trainer.max_steps=9", "resume=changed")
    assert "continuing with a changed setting: seed: 0 -> 1" in output
    assert f"continuing in another environment: torch: 1.0 -> {torch.__version__}" in output
    assert "Done: 9 steps" in output
    assert len(json.loads((output_dir / "environment.json").read_text())) == 2
    output = finish(start(PLAIN, output_dir, "trainer.max_steps=10"), code=2)
    assert "seed: 1 -> 0" in output
    output = finish(
        start(PLAIN, output_dir, "batch.global_batch_tokens=2048", "resume=changed"), code=2
    )
    assert "has places for 8 lanes" in output
    assert f"init_from={output_dir}" in output
