"""Whole runs with Muon and NorMuon: killed, resumed, on one and two processes."""

import pytest
import torch

from training.runs import (
    assert_bit_identical,
    assert_same_run,
    final_tensors,
    fork,
    train_forked,
    train_on_two,
    wait_for_checkpoint,
)

MUON = ["optimizer=muon", "deepspeed=zero0"]
SETTINGS = {
    "fp32": MUON,
    # Few tokens to predict, since bf16 is slow on a CPU without its instructions.
    "bf16": ["optimizer=normuon", "deepspeed=zero0", "trainer.precision=bf16", "masking.rate=0.05"],
}


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """One process, fp32, never stopped."""
    output_dir = tmp_path_factory.mktemp("muon") / "run"
    train_forked(output_dir, *MUON)
    return output_dir


@pytest.mark.parametrize("precision", SETTINGS)
def test_killed_and_resumed_is_bit_identical(uninterrupted, tmp_path, precision):
    output_dir, settings, expected = tmp_path / "run", SETTINGS[precision], uninterrupted
    if precision == "bf16":
        expected = tmp_path / "expected"
        train_forked(expected, *settings)
    process = fork(output_dir, *settings)
    wait_for_checkpoint(output_dir, 2, process)
    process.kill()
    process.communicate(timeout=300)
    train_forked(output_dir, *settings)
    assert_bit_identical(output_dir, expected)


def test_two_processes_do_the_same_and_one_continues(uninterrupted, tmp_path):
    output_dir = tmp_path / "run"
    output = train_on_two(output_dir, *MUON, "trainer.max_tokens=9500")
    assert "Done: 5 steps" in output
    train_forked(output_dir, *MUON)
    assert_same_run(output_dir, uninterrupted, tolerance=1e-6)
    expected = final_tensors(uninterrupted)
    for name, tensor in final_tensors(output_dir).items():
        # AdamW makes much of the rounding of gradients that are almost zero.
        tolerance = 1e-6 if "transformer_encoder" in name else 2e-5
        torch.testing.assert_close(tensor, expected[name], rtol=0, atol=tolerance)


def test_it_is_not_continued_with_another_optimiser(uninterrupted):
    output = train_forked(uninterrupted, "deepspeed=zero0", "resume=changed", code=2)
    assert "was trained with optimizer=muon, whose state means nothing to optimizer=adamw" in output
