"""Weights that a run may start from, and those of other models, named with what fits."""

import json
import shutil

import pytest
import torch
from safetensors.torch import save_file
from transformers import BertConfig, BertForMaskedLM

from neobert_train.config.model_schema import NeoBERTModelConfig
from neobert_train.errors import InputError
from neobert_train.evaluation.texts import load_exported
from neobert_train.modeling.configuration_neobert import NeoBERTConfig
from neobert_train.modeling.heads import NeoBERTForMaskedLM
from neobert_train.models.families import find_family
from neobert_train.models.folder import find_model_folder, load_folder_weights
from neobert_train.models.loading import (
    load_initial_weights,
)
from neobert_train.models.neobert import NeoBERTEncoder

SHAPE = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
}


@pytest.fixture(scope="module")
def exported(tokenizer, tmp_path_factory):
    """A small NeoBERT as an export holds it, and its weights."""
    torch.manual_seed(0)
    model = NeoBERTForMaskedLM(NeoBERTConfig(**SHAPE))
    folder = tmp_path_factory.mktemp("exported") / "model"
    NeoBERTEncoder(model).write(folder, tokenizer, 512)
    return str(folder), model.state_dict()


def load(origin, vocab_size=30_522, **shape):
    return load_initial_weights(
        "init_from", str(origin), NeoBERTModelConfig(**{**SHAPE, **shape}), vocab_size
    )


def test_an_exported_folder_gives_its_weights(exported):
    folder, expected = exported
    weights = load(folder)
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weights[name], expected[name]) for name in expected)


def test_a_model_of_another_architecture_is_called_what_it_is(tmp_path):
    small = BertConfig(
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        vocab_size=99,
    )
    BertForMaskedLM(small).save_pretrained(tmp_path)
    with pytest.raises(InputError) as error:
        load(tmp_path)
    assert f"init_from={tmp_path} holds a BertForMaskedLM (model_type bert)" in str(error.value)
    assert f"write model=hugging_face model.name={tmp_path} to train it" in str(error.value)


@pytest.mark.parametrize(
    "config", ["{}", '{"architectures": [], "model_type": "t5"}', '{"model_type": 7}']
)
def test_a_configuration_that_says_little_is_no_neobert_either(tmp_path, config):
    (tmp_path / "config.json").write_text(config)
    with pytest.raises(
        InputError, match=r"holds a (model of a kind that is not named|t5|7), as its"
    ):
        load(tmp_path)


@pytest.mark.parametrize(
    "config",
    ["{broken", "[]", "7", '{"model_type": "neobert", "hidden_size": "x"}',
     '{"model_type": "neobert", "hidden_size": 33}'],
)  # fmt: skip
def test_a_configuration_that_cannot_be_read_is_named(tmp_path, config):
    (tmp_path / "config.json").write_text(config)
    with pytest.raises(
        InputError, match=r"config\.json cannot be read as the config\.json of a (model|NeoB)"
    ):
        load(tmp_path)


def test_settings_that_the_weights_were_trained_with_are_told(exported):
    folder, _ = exported
    with pytest.raises(
        InputError, match=r"write model\.hidden_size=32 model\.num_hidden_layers=2$"
    ):
        load(folder, hidden_size=64, num_hidden_layers=3)
    # Weights have the same sizes for any number of heads.
    with pytest.raises(InputError, match=r"write model\.num_attention_heads=4$"):
        load(folder, num_attention_heads=2)
    with pytest.raises(
        InputError, match=r"are for 30,522 token ids, and the tokenizer has 500: write"
    ):
        load(folder, vocab_size=500)


def test_folders_without_what_is_read_say_what_they_hold(tmp_path, exported):
    with pytest.raises(InputError, match="holds neither checkpoints of a run nor the config"):
        load(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "neobert", **SHAPE}))
    with pytest.raises(InputError, match=r"holds no model\.safetensors$"):
        load(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"pickle")
    with pytest.raises(InputError, match=r"pytorch_model\.bin is a pickle, which is not read"):
        load(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(InputError, match="its weights are in several files"):
        load(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"no tensors")
    with pytest.raises(InputError, match=r"model\.safetensors cannot be read"):
        load(tmp_path)


def test_half_precision_is_read_as_fp32(tmp_path):
    save_file({"a": torch.ones(2, dtype=torch.bfloat16)}, tmp_path / "model.safetensors")
    assert load_folder_weights(tmp_path, "here")["a"].dtype == torch.float32


def test_evaluation_takes_no_random_weights_for_those_of_a_model(exported, tmp_path):
    folder, weights = exported
    subject = load_exported(folder)
    assert torch.equal(subject.encoder.network.decoder.weight, weights["decoder.weight"])
    assert subject.context_length == 512  # that of its tokenizer; its max_length is 4096
    shutil.copytree(folder, tmp_path / "broken")
    kept = {name: tensor.clone() for name, tensor in weights.items() if name != "decoder.bias"}
    save_file(kept, tmp_path / "broken" / "model.safetensors", {"format": "pt"})
    with pytest.raises(InputError, match=r"cannot be loaded as a NeoBERT: it has no decoder\.bias"):
        load_exported(str(tmp_path / "broken"))
    (tmp_path / "broken" / "model.safetensors").write_bytes(b"no tensors")
    with pytest.raises(InputError, match="cannot be loaded as a NeoBERT"):
        load_exported(str(tmp_path / "broken"))
    (tmp_path / "broken" / "config.json").write_text('{"model_type": "t5"}')
    with pytest.raises(InputError, match="holds a t5, as its config"):
        load_exported(str(tmp_path / "broken"))


def test_a_name_that_is_nothing_is_told(monkeypatch, tmp_path):
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(
        InputError, match="init_from=no/where is neither a folder nor a model on the"
    ):
        find_model_folder("no/where", "init_from=no/where")


def test_the_published_configuration_is_one_of_a_neobert(tmp_path):
    published = {
        "architectures": ["NeoBERTLMHead"], "auto_map": {"AutoConfig": "model.NeoBERTConfig"},
        "dim_head": 64, "hidden_size": 768, "max_length": 4096, "model_type": "neobert",
        "norm_eps": 1e-5, "num_attention_heads": 12, "torch_dtype": "float32",
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(published))
    config = find_family(tmp_path, "here").read_config(tmp_path)
    assert (config.num_hidden_layers, config.max_length, config.vocab_size) == (28, 4096, 30_522)
