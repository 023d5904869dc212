"""Every damaged file of a checkpoint is noticed, and the checkpoint before it is taken."""

import itertools
import json
import logging
import os
import re
import shutil
import signal
import sys

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
from neobert_train.config.store import compose_config, to_typed
from neobert_train.errors import InputError
from neobert_train.files import write_json
from neobert_train.run_directory import RunDirectory

FILES = (
    "model.safetensors", "optimizer.safetensors", "state.json", "config.yaml",
    "tokenizer/tokenizer.json", "tokenizer/tokenizer_config.json", "manifest.json",
)  # fmt: skip


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def replace(path):
    """By the file of another run's checkpoint of the same step."""
    step, root = path.relative_to(path.parents[2 if path.parent.name == "tokenizer" else 1]), path
    while root.name != "run":
        root = root.parent
    shutil.copy(root.parent / "another" / "checkpoints" / step, path)


DAMAGES = {
    "replaced": replace,
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


@pytest.fixture(scope="module")
def template(tmp_path_factory, tokenizer):
    """A run with the checkpoints of steps 1 and 2, and beside it another run with step 2."""
    folder = tmp_path_factory.mktemp("template")

    def save(name, step, tokens, *overrides):
        config = to_typed("train", compose_config("train", ["+experiment=smoke", *overrides]))
        run = RunDirectory(folder / name)
        run.create()
        checkpoint = make(step)
        checkpoint.state.tokens = tokens
        return save_checkpoint(run, checkpoint, config, tokenizer)

    save("run", 1, 2**53 + 1)
    save("run", 2, 2**53 + 1)
    other = save("another", 2, 7, "seed=1", "model.max_length=256")
    vocabulary = other / "tokenizer" / "tokenizer.json"
    vocabulary.write_text(vocabulary.read_text().replace("king", "gink"))
    return folder


@pytest.fixture
def run(template, tmp_path):
    shutil.copytree(template, tmp_path, dirs_exist_ok=True)
    return RunDirectory(tmp_path / "run")


SHAPES = {"a.weight": (3, 5), "a.bias": (3,)}


def find_misfit(folder, shapes=SHAPES, is_same_run=lambda path: True):
    return module.find_misfit(folder, shapes, is_same_run)


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
    assert found == run.checkpoint(1)
    assert "step-00000002 is damaged and passed over" in caplog.text
    assert file in caplog.text


def test_every_bit_of_the_manifest_counts(run):
    file = run.checkpoint(2) / "manifest.json"
    content = file.read_bytes()
    for position in range(8 * len(content)):
        damaged = bytearray(content)
        damaged[position // 8] ^= 1 << position % 8
        file.write_bytes(damaged)
        assert find_damage(run.checkpoint(2)) is not None, damaged


def test_a_file_that_cannot_be_read_is_named(run):
    folder = run.checkpoint(2)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"]["state.json"]["bytes"] = 0
    write_json(folder / "manifest.json", manifest)
    (folder / "state.json").unlink()
    (folder / "state.json").symlink_to("/proc/self/mem")  # of no bytes, and not even those readable
    assert find_damage(folder) == "state.json cannot be read (Input/output error)"


def test_nothing_sound_is_an_error_that_names_everything(run):
    for step in (1, 2):
        flip(run.checkpoint(step) / "model.safetensors")
    with pytest.raises(InputError, match=r"no checkpoint of the run is sound") as error:
        find_checkpoint(run)
    assert "step-00000001" in str(error.value)
    assert "step-00000002" in str(error.value)


@pytest.mark.parametrize(
    ("shapes", "words"),
    [
        ({"a.weight": (5, 3), "a.bias": (3,)}, r"has a.weight as \[3, 5\], the model as \[5, 3\]"),
        ({"a.weight": (3, 5)}, "has a.bias as .3., the model as None"),
        (SHAPES | {"b": (1,)}, "has b as None, the model as .1."),
    ],
)
def test_tensors_of_another_model_are_noticed(run, shapes, words):
    assert find_misfit(run.checkpoint(2)) is None
    assert re.search(words, find_misfit(run.checkpoint(2), shapes))
    with pytest.raises(InputError, match="no checkpoint of the run is sound"):
        find_checkpoint(run, find_misfit=lambda folder: find_misfit(folder, shapes))


def test_a_checkpoint_before_the_first_update_has_no_moments(run, make_config, tokenizer):
    first = make(3)
    first.moments = {}
    assert find_misfit(save_checkpoint(run, first, make_config(), tokenizer)) is None


def test_a_whole_checkpoint_of_another_run_or_step_is_noticed(run, tmp_path, caplog):
    def is_same_run(config_file):
        return "seed: 0" in config_file.read_text()

    shutil.copytree(
        tmp_path / "another/checkpoints/step-00000002", run.checkpoint(2), dirs_exist_ok=True
    )
    shutil.copytree(run.checkpoint(1), run.checkpoint(3))
    vocabulary = run.checkpoint(2) / "tokenizer" / "tokenizer.json"
    vocabulary.write_text(vocabulary.read_text().replace("gink", "king"))
    find = lambda folder: find_misfit(folder, is_same_run=is_same_run)  # noqa: E731
    assert find_checkpoint(run, find_misfit=find) == run.checkpoint(1)
    assert "manifest.json is that of step 1" in caplog.text
    assert "config.yaml is that of another run" in caplog.text


@pytest.mark.parametrize("name", ["../step-00000001/model.safetensors", "/etc/hostname"])
def test_a_manifest_cannot_name_files_outside(run, name):
    file = run.checkpoint(2) / "manifest.json"
    manifest = json.loads(file.read_text())
    manifest["files"][name] = {"bytes": 1, "sha256": ""}
    write_json(file, manifest)
    assert "which is not in the folder" in find_damage(run.checkpoint(2))
    manifest["files"] = {}
    write_json(file, manifest)
    assert "does not list model.safetensors" in find_damage(run.checkpoint(2))


def test_files_of_another_checkpoint_are_noticed(run):
    shutil.copy(run.checkpoint(1) / "model.safetensors", run.checkpoint(2) / "model.safetensors")
    assert "sha256" in find_damage(run.checkpoint(2))


def run_until(moment, action):
    """Call `action` in a child that is killed at its n-th access to the file system.

    Returns:
        Whether it came to that.
    """
    child = os.fork()
    if child == 0:
        accesses = itertools.count()

        def kill(event, arguments):
            if event.startswith(("open", "os.", "shutil.")) and next(accesses) == moment:
                os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(kill)
        action()
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) in (0, -signal.SIGKILL)
    return status != 0


class SmallTokenizer:
    """Takes no time to write."""

    def save(self, folder, max_length):
        folder.mkdir()
        (folder / "tokenizer.json").write_text("{}")


@pytest.mark.parametrize("begins_again", [False, True])
def test_killed_at_any_moment_of_writing_and_pruning_a_sound_one_is_left(
    tmp_path, make_config, begins_again
):
    config = make_config()

    def write(step):
        save_checkpoint(run, make(step), config, SmallTokenizer())
        prune_checkpoints(run, CheckpointConfig(keep_last=1), newest=step)

    found = []
    for moment in itertools.count():
        run = RunDirectory(tmp_path / str(moment))
        run.create()
        write(2)
        if begins_again:  # step 3 was written before, and is damaged
            flip(save_checkpoint(run, make(3), config, SmallTokenizer()) / "state.json")
        killed = run_until(moment, lambda: write(3))
        found.append(find_checkpoint(run).name)
        run.create()
        assert all(path.name.startswith("step-") for path in run.checkpoints.iterdir())
        if not killed:
            break
    assert [step for step, _ in run.list_checkpoints()] == [3]
    assert len(found) > 40
    assert found == sorted(found)
    assert set(found) == {"step-00000002", "step-00000003"}


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
    prune_checkpoints(run, CheckpointConfig(**keep), newest=8)
    assert [step for step, _ in run.list_checkpoints()] == expected
    assert find_checkpoint(run) == run.checkpoint(8)


def test_pruning_never_takes_the_sound_one_for_a_damaged_one_of_a_later_step(
    run, make_config, tokenizer
):
    """After a resume from step 1, since that of step 9 is damaged."""
    later = make(9)
    later.state.heldout_loss = 0.1
    flip(save_checkpoint(run, later, make_config(), tokenizer) / "model.safetensors")
    run.remove_checkpoint(2)
    save_checkpoint(run, make(2), make_config(), tokenizer)
    prune_checkpoints(run, CheckpointConfig(keep_last=1), newest=2)
    assert [step for step, _ in run.list_checkpoints()] == [2, 9]
    assert find_checkpoint(run) == run.checkpoint(2)
