"""Models that are compared, by every name that they may have."""

import json

import pytest
import torch

from neobert_train.errors import InputError
from neobert_train.evaluation.candidates import load_candidate
from support.architectures import write_folder


@pytest.fixture
def folder(tmp_path, tokenizer):
    write_folder(tmp_path / "bert", "bert", tokenizer)
    return tmp_path / "bert"


def load(name, tmp_path, trust_remote_code=False):
    return load_candidate(str(name), tmp_path / "exports", trust_remote_code)


def test_a_folder_is_known_by_its_files(folder, tmp_path):
    candidate = load(folder, tmp_path)
    assert candidate.max_length == 512
    network = candidate.load_encoder()
    assert candidate.num_parameters == sum(p.numel() for p in network.parameters())
    assert network.dtype == torch.float32
    again = load(folder, tmp_path)
    assert (again.digest, again.weights) == (candidate.digest, candidate.weights)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "layer_norm_eps": 1e-3}))
    changed = load(folder, tmp_path)
    assert changed.digest != candidate.digest
    assert changed.weights == candidate.weights


def test_positions_behind_padding_are_not_counted(tmp_path, tokenizer):
    write_folder(tmp_path / "roberta", "roberta", tokenizer, max_position_embeddings=66)
    assert load(tmp_path / "roberta", tmp_path).max_length == 65  # its padding id is 0


def test_a_name_on_the_hub_is_downloaded_with_its_tokenizer(folder, tmp_path, hub):
    hub.write("org/bert", {path.name: path.read_bytes() for path in folder.iterdir()})
    candidate = load("org/bert", tmp_path)
    assert candidate.digest == load(folder, tmp_path).digest
    assert candidate.load_tokenizer()("peace")["input_ids"]
    with pytest.raises(InputError, match=r"models=\[org/absent\] is neither a folder nor a model"):
        load("org/absent", tmp_path)


def test_a_folder_that_lacks_something_is_told_what(folder, tmp_path):
    (folder / "tokenizer.json").rename(tmp_path / "tokenizer.json")
    with pytest.raises(InputError, match=r"has no tokenizer.*tokenizer.save_pretrained"):
        load(folder, tmp_path)
    (tmp_path / "tokenizer.json").rename(folder / "tokenizer.json")
    (folder / "model.safetensors").unlink()
    with pytest.raises(InputError, match=r"holds no model.safetensors"):
        load(folder, tmp_path)
    config = {"model_type": "own", "auto_map": {"AutoModel": "own.Own"}}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=r"code of its own: read it, and write trust_remote_code"):
        load(folder, tmp_path)
