"""Every damaged file of a checkpoint is noticed, and the checkpoint before it is taken."""

import itertools
import json
import logging
import math
import os
import re
import shutil
from hashlib import sha256

import pytest
import torch
from safetensors.torch import load_file, save

from neobert_train.config.schema import CheckpointConfig
from neobert_train.data.lane.lane import LaneState
from neobert_train.data.lane.order import Position, WindowStart
from neobert_train.data.lane.streams import StreamState
from neobert_train.errors import InputError
from neobert_train.files import write_json
from neobert_train.run import checkpoint as writing
from neobert_train.run import checkpoint_search as search
from neobert_train.run.checkpoint import (
    Checkpoint,
    TrainingState,
    load_moments,
    load_state,
    load_weights,
    prune_checkpoints,
    save_checkpoint,
)
from neobert_train.run.checkpoint_search import find_checkpoint, find_damage
from neobert_train.run.directory import RunDirectory
from neobert_train.training.checkpoint_writer import CheckpointWriter
from support.configs import compose
from support.killed import run_until

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


def put_pipe(path):
    path.unlink()
    os.mkfifo(path)


def put_folder(path):
    path.unlink()
    path.mkdir()


DAMAGES = {
    "replaced": replace,
    "missing": lambda path: path.unlink(),
    "pipe": put_pipe,
    "folder": put_folder,
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-3]),
    "one bit flipped": flip,
}


def make(step):
    weights = {"a.weight": torch.full((3, 5), float(step)), "a.bias": torch.randn(3)}
    moments = {f"{m}.{n}": torch.rand_like(w) for m in ("exp_avg", "exp_avg_sq")
               for n, w in weights.items()}  # fmt: skip
    stream = StreamState(Position(WindowStart(1, 2, 3, ((2, 5),)), 4), 1, 3, (0, 2), tokens=9)
    streams = [StreamState() for _ in range(6)] + [stream, StreamState()]
    lanes = {
        7 - number: LaneState(step, (0.5,), (), {"corpus": stream}).to_dict()
        for number, stream in enumerate(streams)
    }
    state = TrainingState.begin(lanes)
    state.step, state.tokens, state.num_targets, state.updates = step, 2**53 + 1, 2**40, 1
    return Checkpoint(state, weights, moments)


@pytest.fixture(scope="module")
def template(tmp_path_factory, tokenizer):
    """A run with the checkpoints of steps 1 and 2, and beside it another run with step 2."""
    folder = tmp_path_factory.mktemp("template")

    def save(name, step, tokens, *overrides):
        config = compose("train", "+experiment=smoke", *overrides)
        run = RunDirectory(folder / name)
        run.create()
        checkpoint = make(step)
        checkpoint.state.tokens = tokens
        return save_checkpoint(run, checkpoint, config, tokenizer)

    save("run", 1, 2**53 + 1)
    save("run", 2, 2**53 + 1)
    other = save("another", 2, 2**53, "seed=1", "model.max_length=256")
    vocabulary = other / "tokenizer" / "tokenizer.json"
    vocabulary.write_text(vocabulary.read_text().replace("king", "gink"))
    return folder


@pytest.fixture
def run(template, tmp_path):
    shutil.copytree(template, tmp_path, dirs_exist_ok=True)
    return RunDirectory(tmp_path / "run")


SHAPES = {"a.weight": (3, 5), "a.bias": (3,)}


def find_misfit(folder, shapes=SHAPES, is_same_run=lambda path: True):
    return search.find_misfit(folder, shapes, is_same_run)


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
@pytest.mark.timeout(60)
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


def forge(folder, name, content):
    """Write a file, and a manifest that fits it."""
    (folder / name).write_bytes(content)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"][name] = {"bytes": len(content), "sha256": sha256(content).hexdigest()}
    write_json(folder / "manifest.json", manifest)


def put(**values):
    return lambda state: state.update(values)


def put_in_lane(key, value):
    return lambda state: state["lanes"]["1"].update({key: value})


def put_in_stream(key, value):
    return lambda state: state["lanes"]["1"]["streams"]["corpus"].update({key: value})


FORGED = {
    "step below 0": (put(step=-5), "step is -5: input should be greater than or equal to 0"),
    "step of another": (put(step=10**9), "lanes.0 is at step 2, the run at 1000000000"),
    "step true": (put(step=True), "step is true: input should be a valid integer"),
    "tokens below 0": (put(tokens=-1), "tokens is -1: input should be greater than or equal to 0"),
    "fewer tokens than lanes": (put(tokens=8, num_targets=1), "tokens of the lanes are 9, more"),
    "more masked than tokens": (put(num_targets=2**53 + 9), "num_targets are"),
    "more updates than steps": (put(updates=3), "updates are 3, more than 2"),
    "endless number": (put(tokens=10**400), "tokens is 1000"),
    "tokens without end": (put(tokens=2**63 - 1), "tokens is 9223372036854775807: input"),
    "records without end": (put_in_stream("counts", [2**63 - 1, 0, 0, 0]), "counts\\[0\\] is 92233"),
    "losses below 0": (
        lambda state: state["divergence"].update(recent_losses=[-1e308]),
        "recent_losses\\[0\\] is -1e\\+308",
    ),
    "seconds not a number": (put(seconds=float("nan")), "seconds is NaN"),
    "loss in words": (put(heldout_loss="low"), "heldout_loss is \"low\": input should be a valid number"),
    "losses not finite": (
        lambda state: state["divergence"].update(recent_losses=[1.0, float("inf")]),
        "divergence.recent_losses\\[1\\] is Infinity: input should be a finite number",
    ),
    "no divergence": (lambda state: state.pop("divergence"), "divergence is missing"),
    "unknown value": (put(bogus=1), "bogus is not known"),
    "no lanes": (put(lanes={}), "lanes are missing"),
    "lane missing": (lambda state: state["lanes"].pop("0"), "lanes are missing"),
    "lanes a list": (put(lanes=[1, 2]), "lanes is \\[1, 2\\]: input should be a valid dict"),
    "lane of another step": (put_in_lane("num_batches", 1), "lanes.1 is at step 1, the run at 2"),
    "credit not finite": (put_in_lane("credits", [float("nan")]), "credits\\[0\\] is NaN"),
    "credits too many": (put_in_lane("credits", [0.0, 0.0]), "2 credits for 1 sources"),
    "pending of no source": (put_in_lane("pending_sources", [0, 7]), "pending_sources and the"),
    "no pending": (lambda state: state["lanes"]["1"].pop("pending_sources"), "lanes.1 is incomplete"),
    "no rewinds": (lambda state: state["divergence"].pop("rewinds"), "rewinds is missing"),
    "position short": (put_in_stream("position", [0, 0]), "position\\[2\\] is missing"),
    "position below 0": (put_in_stream("position", [0, 0, 0, [], -1]), "position\\[4\\] is -1"),
    "unit not begun": (put_in_stream("position", [0, 0, 1, [[1, 0]], 0]), "open that were not begun"),
    "pending descends": (put_in_stream("pending", [0, 2, 1]), "pending is not ascending from 0"),
    "reads for ever": (put_in_stream("num_read", 10**12), "num_read is 1000000000000, and must be"),
    "format of another": (put(format_version=99), "written in format 99; this version .* reads"),
}  # fmt: skip


@pytest.mark.parametrize("forgery", FORGED)
def test_a_state_that_no_run_comes_to_is_named_and_the_one_before_is_taken(run, forgery, caplog):
    change, words = FORGED[forgery]
    folder = run.checkpoint(2)
    state = json.loads((folder / "state.json").read_text())
    change(state)
    forge(folder, "state.json", json.dumps(state).encode())
    assert find_checkpoint(run) == run.checkpoint(1)
    assert re.search(f"state.json cannot be used: .*{words}", caplog.text)
    with pytest.raises(InputError, match=r"state\.json cannot be read"):
        load_state(folder)


@pytest.mark.parametrize("name", ["state.json", "config.yaml", "manifest.json"])
@pytest.mark.parametrize(
    "content", [b"[" * 100_000, b'{"a":' * 900, b"\xff\xfe", b"", b"[]", b"3"],
    ids=["deep", "less deep", "latin-1", "empty", "list", "number"],
)  # fmt: skip
def test_text_that_is_none_of_ours_is_named(run, name, content, caplog):
    if name == "manifest.json":
        (run.checkpoint(2) / name).write_bytes(content)
    else:
        forge(run.checkpoint(2), name, content)
    assert find_checkpoint(run) == run.checkpoint(1)
    assert f"{name} cannot be" in caplog.text


def forge_tensors(folder, name, change):
    tensors = load_file(folder / name)
    change(tensors)
    forge(folder, name, save(tensors))


TENSORS = {
    "weight nan": ("model", lambda t: t["a.bias"].__setitem__(1, math.nan), "a.bias has a value that is not"),
    "weight inf": ("model", lambda t: t["a.weight"].fill_(math.inf), "a.weight has a value that is not"),
    "weight bf16": ("model", lambda t: t.update({"a.bias": t["a.bias"].bfloat16()}), "not float32"),
    "no weights": ("model", lambda t: t.clear(), "holds no weights"),
    "moment nan": (
        "optimizer", lambda t: t["exp_avg.a.bias"].fill_(math.nan), "exp_avg.a.bias has a value that is not"
    ),
    "second moment below 0": (
        "optimizer", lambda t: t["exp_avg_sq.a.bias"].fill_(-1e-9), "exp_avg_sq.a.bias has a negative value"
    ),
    "moment missing": (
        "optimizer", lambda t: t.pop("exp_avg.a.bias"), "does not fit .* in exp_avg.a.bias"
    ),
    "no moments": ("optimizer", lambda t: t.clear(), "does not fit model.safetensors in"),
    "moment of another shape": (
        "optimizer", lambda t: t.update({"exp_avg.a.bias": torch.zeros(4)}), "in exp_avg.a.bias"
    ),
}  # fmt: skip


@pytest.mark.parametrize("forgery", TENSORS)
def test_numbers_that_cannot_be_trained_on_are_named(run, forgery, caplog):
    name, change, words = TENSORS[forgery]
    forge_tensors(run.checkpoint(2), f"{name}.safetensors", change)
    assert find_checkpoint(run) == run.checkpoint(1)
    assert re.search(f"{name}.safetensors.*{words}", caplog.text)


OF_NORMUON = {
    "sound": (lambda t: None, None),
    "rows below 0": (lambda t: t["row_avg_sq.a.weight"].fill_(-1e-9), "row_avg_sq.a.weight has a negative"),
    "rows missing": (lambda t: t.pop("row_avg_sq.a.weight"), "does not fit .* in row_avg_sq.a.weight"),
    "one per weight": (
        lambda t: t.update({"row_avg_sq.a.weight": torch.zeros(3, 5)}), "in row_avg_sq.a.weight"
    ),
    "moments of both": (
        lambda t: t.update({"exp_avg.a.weight": torch.zeros(3, 5)}), "in exp_avg.a.weight"
    ),
    "none of the bias": (lambda t: t.pop("exp_avg.a.bias"), "in exp_avg.a.bias"),
}  # fmt: skip


@pytest.mark.parametrize("forgery", OF_NORMUON)
def test_matrices_have_moments_of_their_own(forgery, make_config, tokenizer, caplog):
    change, words = OF_NORMUON[forgery]
    config, checkpoint = make_config("optimizer=normuon"), make(1)
    checkpoint.moments = {
        "momentum_buffer.a.weight": torch.randn(3, 5), "row_avg_sq.a.weight": torch.rand(3),
        "exp_avg.a.bias": torch.randn(3), "exp_avg_sq.a.bias": torch.rand(3),
    }  # fmt: skip
    run = RunDirectory(config.output_dir)
    run.create()
    folder = save_checkpoint(run, checkpoint, config, tokenizer)
    forge_tensors(folder, "optimizer.safetensors", change)
    if words is None:
        assert find_checkpoint(run) == folder
        return
    with pytest.raises(InputError, match=words):
        find_checkpoint(run)


def test_numbers_that_cannot_be_trained_on_are_not_written_and_push_nothing_out(
    run, make_config, tokenizer
):
    config = make_config("checkpoint.keep_last=1", "checkpoint.keep_best=false")
    writer = CheckpointWriter(run, config, tokenizer)
    bad = make(3)
    bad.weights["a.bias"][1] = math.nan
    writer.write(bad)
    writer.join()
    assert "step 3 is not written: a.bias has a value that is not finite: the run" in writer.failure
    assert [step for step, _ in run.list_checkpoints()] == [1, 2]
    writer.write(make(4))
    writer.join()
    assert writer.failure is None
    assert [step for step, _ in run.list_checkpoints()] == [4]


def test_fewer_lanes_than_the_settings_ask_for_are_noticed(run, caplog):
    state = json.loads((run.checkpoint(2) / "state.json").read_text())
    del state["lanes"]["7"]
    forge(run.checkpoint(2), "state.json", json.dumps(state).encode())
    assert find_checkpoint(run) == run.checkpoint(1)
    assert "state.json has 7 lanes, and config.yaml asks for 8" in caplog.text


def test_a_file_that_is_no_safetensors_is_named(run, caplog):
    forge(run.checkpoint(2), "model.safetensors", b"\x08\0\0\0\0\0\0\0{}      ")
    (run.checkpoint(1) / "model.safetensors").write_bytes(b"")
    forge(run.checkpoint(1), "model.safetensors", b"no tensors")
    with pytest.raises(InputError, match="no checkpoint of the run is sound") as error:
        find_checkpoint(run)
    assert "model.safetensors holds no weights" in str(error.value)
    assert "model.safetensors cannot be read" in str(error.value)


def test_a_checkpoint_that_a_run_removes_while_it_is_looked_at_is_not_damaged(run, monkeypatch):
    """The run writes that of step 3 meanwhile, and keeps no other."""
    find = search.find_damage

    def find_late(folder):
        if folder == run.checkpoint(2):
            run.checkpoint(2).rename(run.checkpoint(3))
            manifest = (run.checkpoint(3) / "manifest.json").read_text()
            state = json.loads((run.checkpoint(3) / "state.json").read_text())
            state["step"] = 3
            for lane in state["lanes"].values():
                lane["num_batches"] = 3
            (run.checkpoint(3) / "manifest.json").write_text(
                manifest.replace('"step": 2', '"step": 3')
            )
            forge(run.checkpoint(3), "state.json", json.dumps(state).encode())
            run.remove_checkpoint(1)
        return find(folder)

    monkeypatch.setattr(search, "find_damage", find_late)
    assert find_checkpoint(run) == run.checkpoint(3)


def test_names_that_only_look_like_a_checkpoint_are_none(run):
    for name in ("step-000000003", "step-3", "step-٠٠٠٠٠٠٠٣", "step-00000003.tmp"):
        (run.checkpoints / name).mkdir()
    (run.checkpoints / "step-00000009").symlink_to("nowhere")
    (run.checkpoints / "step-00000008").touch()
    assert [step for step, _ in run.list_checkpoints()] == [1, 2, 8, 9]
    assert find_checkpoint(run) == run.checkpoint(2)


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
    first.moments, first.state.updates = {}, 0
    folder = save_checkpoint(run, first, make_config(), tokenizer)
    assert find_damage(folder) is None
    assert find_misfit(folder) is None


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

    run = RunDirectory(tmp_path / "before")
    run.create()
    write(2)
    if begins_again:  # step 3 was written before, and is damaged
        flip(save_checkpoint(run, make(3), config, SmallTokenizer()) / "state.json")
    found = []
    for moment in itertools.count():
        run = RunDirectory(tmp_path / str(moment))
        shutil.copytree(tmp_path / "before", run.path)
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

    monkeypatch.setattr(writing, function, fail)
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
