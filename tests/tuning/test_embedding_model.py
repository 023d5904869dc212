"""What an embedder is made of, which lengths it takes, and what cannot become one."""

import json
import shutil

import pytest
from sentence_transformers import SentenceTransformer

from neobert_train.errors import InputError
from neobert_train.models.exported import open_exported, register_neobert
from neobert_train.tuning.embedding_model import build_model, find_longest, write_model
from support.architectures import write_folder
from support.configs import compose
from support.pairs import write_neobert


def build(folder, *overrides):
    config = compose("embed", f"model={folder}", "output=o", "paths=[x]", *overrides)
    trusts = config.trust_remote_code
    with open_exported(config.model, f"model={folder}", config.step, trusts) as exported:
        return build_model(exported, config, f"model={folder}"), config


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_what_was_built_is_what_loads(neobert, tmp_path, pooling):
    overrides = ["query_prompt='q: '", "pool_prompts=false", f"pooling={pooling}", "max_length=20"]
    model, config = build(neobert, *overrides)
    write_model(model, tmp_path, config)
    register_neobert()
    for one in (model, SentenceTransformer(str(tmp_path), device="cpu")):
        assert one.max_seq_length == 20
        assert one[1].pooling_mode == pooling
        assert one[1].include_prompt is False
        assert one.prompts == {"query": "q: ", "document": ""}
        assert one.tokenize(["word " * 50])["input_ids"].shape[1] == 20


def test_prompts_count_in_the_mean_unless_they_are_left_out(neobert, tmp_path):
    vectors = [
        build(neobert, "query_prompt='search for: '", f"pool_prompts={value}")[0]
        .encode_query("copper")
        .tolist()
        for value in ("true", "false")
    ]
    assert vectors[0] != pytest.approx(vectors[1], abs=1e-3)


def test_lengths_follow_from_the_model(tokenizer, tmp_path):
    neobert = write_neobert(tmp_path / "neobert", tokenizer, max_length=96)
    assert build(neobert)[0].max_seq_length == 96
    assert build(write_neobert(tmp_path / "long", tokenizer, 1024))[0].max_seq_length == 512
    # RoBERTa's positions begin behind the padding id: 514 of them are for 512 tokens and two that are not.
    write_folder(tmp_path / "roberta", "roberta", tokenizer, pad_token_id=1)
    model, _ = build(tmp_path / "roberta")
    assert find_longest(model[0]) == model.max_seq_length == 512
    model.encode("word " * 600)


def test_pickled_weights_are_refused(neobert, tmp_path):
    folder = shutil.copytree(neobert, tmp_path / "pickled")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(InputError, match=r"pytorch_model.bin is a pickle, which is not read"):
        build(folder)


def test_code_of_others_runs_only_where_it_is_trusted(neobert, tmp_path):
    folder = shutil.copytree(neobert, tmp_path / "foreign")
    values = json.loads((folder / "config.json").read_text()) | {"model_type": "mine"}
    (folder / "config.json").write_text(json.dumps(values))
    with pytest.raises(InputError, match=r"comes with code of its own: .*trust_remote_code=true"):
        build(folder)


def test_the_code_in_the_folder_of_a_neobert_is_not_run(neobert, tmp_path):
    folder = shutil.copytree(neobert, tmp_path / "planted")
    (folder / "modeling_neobert.py").write_text("raise SystemExit('it was run')\n")
    model, _ = build(folder, "trust_remote_code=true")
    assert model.encode("copper").shape == (32,)


def test_a_model_of_the_hub_is_named_with_its_commit(hub, neobert):
    hub.write("org/encoder", {path.name: path.read_bytes() for path in neobert.iterdir()})
    with open_exported("org/encoder", "model=org/encoder") as exported:
        assert exported.origin.startswith("org/encoder@")
        assert exported.is_neobert
        assert {path.name for path in exported.folder.iterdir()} >= {
            "config.json", "model.safetensors", "tokenizer.json",
        }  # fmt: skip
