"""Runs that take a tokenizer and weights from a branch of the Hub, which moves meanwhile."""

import json
import logging
import re

import pytest
import torch

from neobert_train.errors import InputError
from neobert_train.models.families import build_encoder
from neobert_train.run.checkpoint import load_weights
from neobert_train.tokenizers.loading import load_tokenizer
from neobert_train.training.starting_point import check_resumed_tokenizer
from support.architectures import write_folder
from support.local_hub import LocalHub
from support.programs import run_command

SETTINGS = [
    "+experiment=smoke", "tokenizer.path=org/name@step-00000002", "init_from=org/name@step-00000002",
    "checkpoint.save_every_steps=1", "evaluation.max_tokens=0", "logging.report=false",
    "data.num_workers=0",
]  # fmt: skip


@pytest.fixture(scope="module")
def hub():
    with LocalHub() as hub:
        yield hub


@pytest.fixture
def commit(hub, make_config, tokenizer, tmp_path):
    """Of a model and its tokenizer, as an export has them."""
    build_encoder(make_config(), tokenizer).write(tmp_path / "export", tokenizer, 512)
    files = {path.name: path.read_bytes() for path in (tmp_path / "export").iterdir()}
    return hub.write("org/name", files, revision="step-00000002")


def read_environments(run):
    return json.loads((run / "environment.json").read_text())["content"]


def test_a_run_keeps_the_commit_that_it_began_with(hub, commit, tmp_path):
    run, environment = tmp_path / "run", hub.environment(tmp_path / "home")
    run_command(*SETTINGS, f"output_dir={run}", "trainer.max_steps=1", **environment)
    (begun,) = read_environments(run)
    assert begun["revisions"] == dict.fromkeys(
        ("tokenizer.path", "init_from"), f"org/name@{commit}"
    )

    # The branch moves on to a tokenizer that calls two words by each other's ids.
    definition = hub.read("org/name", commit)["tokenizer.json"].decode()
    vocabulary = json.loads(definition)["model"]["vocab"]
    first, second = vocabulary["house"], vocabulary["senate"]
    edited = re.sub(rf'"house": {first}\b', f'"house": {second}', definition)
    edited = re.sub(rf'"senate": {second}\b', f'"senate": {first}', edited)
    assert edited != definition
    hub.write("org/name", {"tokenizer.json": edited.encode()}, revision="step-00000002")

    arguments = [*SETTINGS, f"output_dir={run}", "trainer.max_steps=2"]
    run_command(*arguments, **environment)
    assert read_environments(run)[1]["revisions"] == {"tokenizer.path": f"org/name@{commit}"}
    own = load_tokenizer(str(run / "checkpoints" / "step-00000002" / "tokenizer"))
    assert own.get_vocabulary()["house"] == first

    # Without its notes the run can only take what is there now.
    (run / "environment.json").unlink()
    arguments[-1] = "trainer.max_steps=3"
    output = run_command(*arguments, code=2, **environment)
    assert "tokenizer.path=org/name@step-00000002 gives other token ids than when the" in output
    assert "tokenizer.path=org/name@COMMIT" in output


def test_a_model_of_the_hub_is_trained_from_its_commit(hub, tokenizer, tmp_path):
    """Its weights and tokenizer, and nothing of it once the branch has moved."""
    network = write_folder(tmp_path / "model", "bert", tokenizer)
    files = {path.name: path.read_bytes() for path in (tmp_path / "model").iterdir()}
    commit = hub.write("org/bert", files, revision="v1")
    run, environment = tmp_path / "run", hub.environment(tmp_path / "home")
    settings = [
        "+experiment=smoke", "model=hugging_face", "model.name=org/bert@v1", f"output_dir={run}",
        "checkpoint.save_every_steps=1", "evaluation.max_tokens=0", "logging.report=false",
        "data.num_workers=0", "optimizer.lr=1e-9",
    ]  # fmt: skip
    run_command(*settings, "trainer.max_steps=1", **environment)
    (begun,) = read_environments(run)
    assert begun["revisions"] == dict.fromkeys(
        ("tokenizer.path", "model.name"), f"org/bert@{commit}"
    )
    weights = load_weights(run / "checkpoints" / "step-00000001")
    own = dict(network.named_parameters())
    assert all(torch.allclose(weights[name], own[name], atol=1e-6) for name in own)

    hub.write("org/bert", {"config.json": b"{}"}, revision="v1")
    output = run_command(*settings, "trainer.max_steps=2", **environment)
    assert "Done: 2 steps" in output


def test_other_ids_are_continued_with_only_when_asked(
    make_config, tokenizer, tmp_path, caplog, monkeypatch
):
    monkeypatch.setattr(logging.getLogger("neobert_train"), "propagate", True)
    tokenizer.save(tmp_path / "tokenizer", 512)
    check_resumed_tokenizer(make_config(), tokenizer, tmp_path / "tokenizer")
    other = load_tokenizer(str(tmp_path / "tokenizer"), {"mask": "[unused1]"})
    with pytest.raises(InputError, match="gives other token ids than when the run began"):
        check_resumed_tokenizer(make_config(), other, tmp_path / "tokenizer")
    check_resumed_tokenizer(make_config("resume=changed"), other, tmp_path / "tokenizer")
    assert "continuing although tokenizer.path=bert-base-uncased gives other" in caplog.text


def test_a_revision_is_measured(hub, commit, tmp_path):
    (tmp_path / "texts.jsonl").write_text('{"content": "the state of the union is strong"}\n' * 9)
    output = run_command(
        "evaluate", "model=org/name@step-00000002", f"paths=[{tmp_path / 'texts.jsonl'}]",
        **hub.environment(tmp_path / "home"),
    )  # fmt: skip
    assert output.splitlines()[0].startswith("org/name@step-00000002: ")
    assert commit in str(list((tmp_path / "home").rglob("model.safetensors")))
