"""Starting whole runs as a user starts them, and comparing what they came to."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file

from support.programs import Forked, find_python, finish, fork_ranks
from support.small_vocabulary import list_small_settings

MAX_STEPS = 8
SMOKE = [
    "+experiment=smoke", f"trainer.max_steps={MAX_STEPS}", "trainer.evaluate_every_steps=4",
    "checkpoint.save_every_steps=2", "logging.report=false", "data.num_workers=0",
    "batch.global_batch_tokens=2048", "batch.micro_batch_tokens=256", "evaluation.max_tokens=2048",
    *list_small_settings(),
]  # fmt: skip
# What follows the interpreter.
PLAIN = ["-m", "neobert_train"]
TORCHRUN = [
    "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone", "-m", "neobert_train",
]  # fmt: skip
DEEPSPEED = [
    str(Path(sys.executable).with_name("deepspeed")), "--num_gpus", "2",
    "--master_port", str(29000 + os.getpid() % 1000),
    "--module", "neobert_train",
]  # fmt: skip
ONE_THREAD = {"OMP_NUM_THREADS": "1"}
TIMES = (
    "train/tokens_per_second", "train/step_seconds", "train/data_wait_seconds",
    "train/flops_per_second", "train/mfu",
)  # fmt: skip


def start(launcher, output_dir, *overrides, python=None):
    environment = {**os.environ, **ONE_THREAD, "PYTHONWARNINGS": "default"}
    return subprocess.Popen(
        [python or find_python(), *launcher, *SMOKE, f"output_dir={output_dir}", *overrides],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
    )


def fork(output_dir, *overrides):
    """The same on one process, with libraries that are loaded already."""
    return Forked("neobert_train", *SMOKE, f"output_dir={output_dir}", *overrides)


def train(launcher, output_dir, *overrides, python=None):
    return finish(start(launcher, output_dir, *overrides, python=python))


def train_forked(output_dir, *overrides, code=0):
    return finish(fork(output_dir, *overrides), code)


def train_on_two(output_dir, *overrides):
    """On two processes without a launcher; what both printed."""
    words = [*SMOKE, f"output_dir={output_dir}", *overrides]
    return "".join(map(finish, fork_ranks("neobert_train", *words)))


def read_metrics(output_dir):
    lines = (output_dir / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    return [{k: v for k, v in record.items() if k not in TIMES} for record in records]


def wait_for_step(output_dir, step, process):
    """Until the metrics show a step; an exact moment is not wanted."""
    file = output_dir / "metrics.jsonl"
    _wait(process, lambda: file.exists() and len(file.read_text().splitlines()) >= step)


def wait_for_checkpoint(output_dir, step, process):
    """Until that of a step is there, while the run trains on."""
    _wait(process, (output_dir / "checkpoints" / f"step-{step:08d}").exists)


def _wait(process, is_there):
    deadline = time.monotonic() + 300  # the machine may be busy with other tests
    while not is_there():
        assert process.poll() is None, process.stdout.read()
        assert time.monotonic() < deadline, "the run did not get there"
        time.sleep(0.02)


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
