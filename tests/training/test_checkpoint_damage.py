"""Every damaged file of a checkpoint is noticed, and the checkpoint before it is taken."""

import logging
import shutil

import pytest
import torch

from neobert_train import checkpoint as module
from neobert_train.checkpoint import (
    Checkpoint,
    TrainingState,
    find_checkpoint,
    find_damage,
    load_moments,
    load_state,
    load_weights,
    prune_checkpoints,
    save_checkpoint,
)
from neobert_train.config.schema import CheckpointConfig
from neobert_train.errors import InputError
from neobert_train.run_directory import RunDirectory

FILES = (
    "model.safetensors", "optimizer.safetensors", "state.json", "config.yaml",
    "tokenizer/tokenizer.json", "tokenizer/tokenizer_config.json", "manifest.json",
)  # fmt: skip


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


DAMAGES = {
    "missing": lambda path: path.unlink(),
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-3]),
    "one bit flipped": flip,
}


def make(step):
    weights = {"a.weight": torch.full((3, 5), float(step)), "a.bias": torch.randn(3)}
    moments = {f"{m}.{n}": torch.randn_like(w) for m in ("exp_avg", "exp_avg_sq")
               for n, w in weights.items()}  # fmt: skip
    state = TrainingState(step, 2**53 + 1, 2**40, {1: {"pending": [0]}, 0: {"pending": []}})
    return Checkpoint(state, weights, moments)


@pytest.fixture
def run(tmp_path, make_config, tokenizer):
    run = RunDirectory(tmp_path / "run")
    run.create()
    for step in (1, 2):
        save_checkpoint(run, make(step), make_config(), tokenizer)
    return run


def test_what_is_read_is_what_was_written(run, make_config, tokenizer):
    written = make(3)
    folder = save_checkpoint(run, written, make_config(), tokenizer)
    assert find_damage(folder) is None
    assert load_state(folder) == written.state
    for read, expected in (
        (load_weights(folder), written.weights),
        (load_moments(folder), written.moments),
    ):
        assert read.keys() == expected.keys()
        assert all(torch.equal(read[name], expected[name]) for name in read)


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_named_and_the_one_before_is_taken(run, file, damage, caplog):
    DAMAGES[damage](run.checkpoint(2) / file)
    with caplog.at_level(logging.WARNING):
        found = find_checkpoint(run)
    if file == "manifest.json" and damage == "one bit flipped" and found == run.checkpoint(2):
        return  # a blank or a digit of nothing that is checked
    assert found == run.checkpoint(1)
    assert "step-00000002 is damaged and passed over" in caplog.text
    assert file in caplog.text


def test_nothing_sound_is_an_error_that_names_everything(run):
    for step in (1, 2):
        flip(run.checkpoint(step) / "model.safetensors")
    with pytest.raises(InputError, match=r"no checkpoint of the run is sound") as error:
        find_checkpoint(run)
    assert "step-00000001" in str(error.value)
    assert "step-00000002" in str(error.value)


def test_files_of_another_checkpoint_are_noticed(run):
    shutil.copy(run.checkpoint(1) / "model.safetensors", run.checkpoint(2) / "model.safetensors")
    assert "sha256" in find_damage(run.checkpoint(2))


@pytest.mark.parametrize("function", ["save_file", "write_json", "sync_folder"])
def test_a_write_that_fails_leaves_no_checkpoint_and_no_leftover(
    run, make_config, tokenizer, monkeypatch, function
):
    def fail(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, function, fail)
    with pytest.raises(OSError, match="No space"):
        save_checkpoint(run, make(3), make_config(), tokenizer)
    left = sorted(path.name for path in run.checkpoints.iterdir())
    assert left[:2] == ["step-00000001", "step-00000002"]
    assert not [name for name in left if name.startswith(".")]


@pytest.mark.parametrize(
    ("keep", "expected"),
    [
        ({"keep_last": 2, "keep_best": False}, [7, 8]),
        ({"keep_last": 1, "keep_best": True}, [5, 8]),
        ({"keep_last": 1, "keep_best": False, "keep_every_steps": 3}, [3, 6, 8]),
        ({"keep_last": 2, "keep_best": True, "keep_every_steps": 4}, [4, 5, 7, 8]),
        ({"keep_last": 99}, [1, 2, 3, 4, 5, 6, 7, 8]),
    ],
)
def test_pruning_keeps_the_newest_the_best_and_every_so_many(
    run, make_config, tokenizer, keep, expected
):
    losses = {4: 3.0, 5: 1.5, 6: 1.5001, 7: float("nan")}
    for step in range(3, 9):
        checkpoint = make(step)
        checkpoint.state.heldout_loss = losses.get(step)
        save_checkpoint(run, checkpoint, make_config(), tokenizer)
    prune_checkpoints(run, CheckpointConfig(**keep))
    assert [step for step, _ in run.list_checkpoints()] == expected
    assert find_checkpoint(run) == run.checkpoint(8)
