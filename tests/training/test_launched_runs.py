"""Whole runs, started as a user starts them: launched, killed, resumed, on one and two processes."""

import json
import re
import shutil
import signal
import sys
from importlib.metadata import version

import psutil
import pytest

from neobert_train.metrics_table import METRICS
from training.runs import (
    DEEPSPEED,
    MAX_STEPS,
    PLAIN,
    TORCHRUN,
    assert_bit_identical,
    assert_same_run,
    finish,
    fork,
    start,
    train,
    train_forked,
    train_on_two,
    wait_for_checkpoint,
    wait_for_step,
)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """One process and its worker, ZeRO 1, fp32, never stopped."""
    output_dir = tmp_path_factory.mktemp("uninterrupted") / "run"
    output = train(PLAIN, output_dir, "data.num_workers=1", python=sys.executable)
    assert "held-out loss" in output
    assert re.search(r"unigram entropy  [45]\.\d\d\d nats", output)
    return output_dir


def test_deepspeed_launcher_with_two_processes_and_zero2(uninterrupted, tmp_path):
    train(DEEPSPEED, tmp_path / "run", "deepspeed=zero2")
    assert_same_run(tmp_path / "run", uninterrupted, tolerance=1e-5)


def test_torchrun_with_two_processes_and_zero3(uninterrupted, tmp_path):
    train(TORCHRUN, tmp_path / "run", "deepspeed=zero3")
    assert_same_run(tmp_path / "run", uninterrupted, tolerance=1e-5)


def test_zero0_without_workers(uninterrupted, tmp_path):
    train_forked(tmp_path / "run", "deepspeed=zero0")
    assert_same_run(tmp_path / "run", uninterrupted, tolerance=1e-5)


needs_compiler = pytest.mark.skipif(
    not (shutil.which("g++") or shutil.which("clang++")), reason="no C++ compiler"
)


@pytest.mark.slow
@needs_compiler
@pytest.mark.parametrize("zero", ["zero1", "zero3"])
def test_compiled_and_with_activations_computed_again(uninterrupted, tmp_path, zero):
    settings = ["model.compile=true", "model.activation_checkpointing=true", f"deepspeed={zero}"]
    output = train(TORCHRUN, tmp_path / "run", *settings)
    assert ("running uncompiled" in output) is (zero == "zero3")
    assert "recompile" not in output
    assert_same_run(tmp_path / "run", uninterrupted, tolerance=1e-4)


def test_killed_twice_and_resumed_is_bit_identical(uninterrupted, tmp_path):
    output_dir = tmp_path / "run"
    for step in (2, 4):
        process = fork(output_dir, "data.num_workers=1")
        wait_for_checkpoint(output_dir, step, process)
        process.kill()
        process.communicate(timeout=300)
    train_forked(output_dir, "data.num_workers=1")
    assert_bit_identical(output_dir, uninterrupted)


def test_other_numbers_of_processes_and_zero_stages_go_on_with_the_run(uninterrupted, tmp_path):
    output_dir = tmp_path / "run"
    chain = [
        (train_on_two, "zero2", 3),
        (train_forked, "zero0", 6),
        (train_on_two, "zero3", MAX_STEPS),
    ]
    for train_next, zero, last_step in chain:
        # A few less than so many steps have, since their ends are not quite full.
        max_tokens = last_step * 2048 - 500
        output = train_next(output_dir, f"deepspeed={zero}", f"trainer.max_tokens={max_tokens}")
        assert f"Done: {last_step} steps" in output
    assert_same_run(output_dir, uninterrupted, tolerance=1e-5)


@pytest.mark.slow
def test_one_process_that_is_told_to_end_is_enough(uninterrupted, tmp_path):
    process = start(TORCHRUN, tmp_path / "run")
    wait_for_step(tmp_path / "run", 3, process)
    psutil.Process(process.pid).children()[0].terminate()
    output, _ = process.communicate(timeout=300)
    assert "stopped by SIGTERM, with the checkpoint of step" in output
    train(TORCHRUN, tmp_path / "run")
    assert_same_run(tmp_path / "run", uninterrupted, tolerance=1e-5)


@pytest.mark.parametrize(
    "compiled", ["false", pytest.param("true", marks=[pytest.mark.slow, needs_compiler])]
)
def test_bf16_run_stopped_and_resumed_is_bit_identical(tmp_path, compiled):
    expected, output_dir = tmp_path / "expected", tmp_path / "run"
    # Few tokens to predict, since bf16 is slow on a CPU without its instructions.
    settings = ["trainer.precision=bf16", f"model.compile={compiled}", "masking.rate=0.05"]
    train_forked(expected, *settings)
    process = fork(output_dir, *settings)
    wait_for_step(output_dir, 3, process)
    process.send_signal(signal.SIGTERM)
    assert "the same command continues" in finish(process, code=3)
    train_forked(output_dir, *settings)
    assert_bit_identical(output_dir, expected)


def test_the_table_of_metrics_is_what_a_run_writes(uninterrupted):
    lines = (uninterrupted / "metrics.jsonl").read_text().splitlines()
    keys = set().union(*map(json.loads, lines)) | {"train/mfu"}  # left out on a busy machine
    keys |= {key for key in METRICS if key.startswith("probe/")}  # which this run does not take
    assert sorted(keys) == sorted(key.replace("<source>", "corpus") for key in METRICS)


def test_a_finished_run_says_so(uninterrupted):
    assert "is complete after 8 steps" in train_forked(uninterrupted)


def test_resume_never_refuses_and_must_requires(uninterrupted, tmp_path):
    output = train_forked(uninterrupted, "resume=never", code=2)
    assert "already holds a run" in output
    assert "Traceback" not in output
    output = train_forked(tmp_path / "none", "resume=must", code=2)
    assert "holds no run" in output
    assert not (tmp_path / "none").exists()


def test_another_seed_in_the_same_directory_is_refused(uninterrupted):
    output = train_forked(uninterrupted, "seed=1", "model.hidden_size=32", code=2)
    assert "holds another run" in output
    assert "seed: 0 -> 1" in output
    assert "model.hidden_size: 64 -> 32" in output


def test_another_seed_and_another_environment_are_warned_of_when_they_are_wanted(
    uninterrupted, tmp_path
):
    output_dir = tmp_path / "run"
    shutil.copytree(uninterrupted, output_dir)
    (before,) = json.loads((output_dir / "environment.json").read_text())["content"]
    before["packages"]["torch"] = "1.0"
    (output_dir / "environment.json").write_text(json.dumps([before]))  # without a checksum
    output = train_forked(output_dir, "seed=1", "trainer.max_steps=9", "resume=changed")
    assert "continuing with a changed setting: seed: 0 -> 1" in output
    assert f"continuing in another environment: torch: 1.0 -> {version('torch')}" in output
    assert "Done: 9 steps" in output
    assert len(json.loads((output_dir / "environment.json").read_text())["content"]) == 2
    output = train_forked(output_dir, "trainer.max_steps=10", code=2)
    assert "seed: 1 -> 0" in output
    output = train_forked(output_dir, "batch.global_batch_tokens=1024", "resume=changed", code=2)
    assert "has places for 8 lanes" in output
    assert f"init_from={output_dir}" in output
