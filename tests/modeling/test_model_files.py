"""Names, shapes, initial weights and files: the format shared with the published model."""

import json

import pytest
import torch
from float64_reference import SMALL, build_random_model, random_ids
from safetensors.torch import load_file, save_file

from neobert_train.modeling.configuration_neobert import NeoBERTConfig
from neobert_train.modeling.heads import NeoBERTForMaskedLM, NeoBERTForSequenceClassification
from neobert_train.modeling.modeling_neobert import NeoBERT

PUBLISHED_CONFIG = {
    "architectures": ["NeoBERTForMaskedLM"],
    "auto_map": {
        "AutoConfig": "model.NeoBERTConfig",
        "AutoModel": "model.NeoBERT",
        "AutoModelForMaskedLM": "model.NeoBERTForMaskedLM",
        "AutoModelForSequenceClassification": "model.NeoBERTForSequenceClassification",
    },
    "classifier_init_range": 0.02,
    "decoder_init_range": 0.02,
    "dim_head": 64,
    "embedding_init_range": 0.02,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "max_length": 4096,
    "model_type": "neobert",
    "norm_eps": 1e-05,
    "num_attention_heads": 12,
    "num_hidden_layers": 28,
    "pad_token_id": 0,
    "vocab_size": 30522,
}


def published_shapes(layers=28, width=768, inner=2048, vocab=30522) -> dict[str, tuple[int, ...]]:
    shapes = {"model.encoder.weight": (vocab, width)}
    for layer in range(layers):
        block = f"model.transformer_encoder.{layer}."
        shapes |= {
            f"{block}qkv.weight": (3 * width, width),
            f"{block}wo.weight": (width, width),
            f"{block}ffn.w12.weight": (2 * inner, width),
            f"{block}ffn.w3.weight": (width, inner),
            f"{block}attention_norm.weight": (width,),
            f"{block}ffn_norm.weight": (width,),
        }
    return shapes | {
        "model.layer_norm.weight": (width,),
        "decoder.weight": (vocab, width),
        "decoder.bias": (vocab,),
    }


def write_folder(folder, config: dict, state: dict) -> None:
    (folder / "config.json").write_text(json.dumps(config))
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})


def build_small(model_class=NeoBERTForMaskedLM, **changes):
    torch.manual_seed(0)
    return model_class(NeoBERTConfig(**{**SMALL, **changes}))


def test_base_model_has_the_published_names_shapes_and_parameters():
    with torch.device("meta"):
        model = NeoBERTForMaskedLM(NeoBERTConfig())
    state = model.state_dict()
    assert {name: tuple(value.shape) for name, value in state.items()} == published_shapes()
    assert len(state) == 172
    assert sum(p.numel() for p in model.parameters()) == 245_136_954
    # Without the vocabulary at both ends: the blocks and the last norm.
    between = [n for n in state if n != "model.encoder.weight" and not n.startswith("decoder.")]
    assert sum(state[name].numel() for name in between) == 198_224_640
    assert list(model.buffers()) == []


@pytest.mark.parametrize(
    ("nominal", "width"), [(3072, 2048), (128, 88), (100, 72), (12, 8), (13, 8), (1, 0)]
)
def test_feed_forward_width_is_two_thirds_rounded_up_to_8(nominal, width):
    assert NeoBERTConfig(intermediate_size=nominal).feed_forward_width == width


def test_published_config_loads_and_announces_its_context(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(PUBLISHED_CONFIG))
    config = NeoBERTConfig.from_pretrained(tmp_path)
    for key, value in PUBLISHED_CONFIG.items():
        assert getattr(config, key) == value
    assert not config.tie_word_embeddings
    assert config.feed_forward_width == 2048


def test_published_format_loads_strictly_and_untied(tmp_path):
    config = PUBLISHED_CONFIG | SMALL | {"dim_head": 8}
    generator = torch.Generator().manual_seed(6)
    shapes = published_shapes(SMALL["num_hidden_layers"], SMALL["hidden_size"], 72, 61)
    state = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    write_folder(tmp_path, config, state)
    model, info = NeoBERTForMaskedLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    # The row of [PAD] too: what was trained is kept, whatever our own initial weights are.
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    build_small().load_state_dict(state, strict=True)


def test_saving_and_loading_gives_equal_logits_names_and_context(tmp_path):
    model = build_random_model(max_length=48)
    model.save_pretrained(tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    for key in PUBLISHED_CONFIG.keys() - {"auto_map", "architectures", "model_type"}:
        assert written[key] == getattr(model.config, key)
    assert written["max_length"] == 48
    assert written["model_type"] == "neobert"
    assert written["architectures"] == ["NeoBERTForMaskedLM"]
    assert not (tmp_path / "generation_config.json").exists()
    shapes = {k: tuple(v.shape) for k, v in load_file(tmp_path / "model.safetensors").items()}
    assert shapes == published_shapes(2, 32, 72, 61)
    loaded = NeoBERTForMaskedLM.from_pretrained(tmp_path).eval()
    ids, mask = random_ids(2, 9), torch.tensor([[1] * 9, [0] * 4 + [1] * 5])
    assert torch.equal(loaded(ids, mask).logits, model(ids, mask).logits)
    loaded.save_pretrained(tmp_path / "again")
    again = json.loads((tmp_path / "again" / "config.json").read_text())
    assert again["max_length"] == 48


@pytest.mark.parametrize("max_length", [20, 4096])
def test_any_context_can_be_saved_for_every_class(tmp_path, max_length):
    for model_class in (NeoBERT, NeoBERTForMaskedLM, NeoBERTForSequenceClassification):
        build_small(model_class, max_length=max_length).save_pretrained(tmp_path)
        assert model_class.from_pretrained(tmp_path).config.max_length == max_length


def test_a_model_built_on_the_meta_device_computes_the_same_once_it_has_weights():
    model = build_random_model()
    with torch.device("meta"):
        empty = NeoBERTForMaskedLM(NeoBERTConfig(**SMALL)).eval()
    empty.load_state_dict(model.state_dict(), strict=True, assign=True)
    ids = random_ids(2, 9)
    assert torch.equal(empty(ids).logits, model(ids).logits)


def test_classifier_takes_the_encoder_of_a_masked_lm_and_starts_its_own_head(tmp_path):
    model = build_random_model()
    model.save_pretrained(tmp_path)
    torch.manual_seed(1)
    classifier, info = NeoBERTForSequenceClassification.from_pretrained(
        tmp_path, num_labels=3, output_loading_info=True
    )
    head = {"dense.weight", "dense.bias", "classifier.weight", "classifier.bias"}
    assert set(info["missing_keys"]) == head
    for name, value in model.model.state_dict().items():
        assert torch.equal(classifier.model.state_dict()[name], value)
    assert classifier.classifier.weight.shape == (3, 32)
    assert classifier.dense.weight.std().item() == pytest.approx(0.02, rel=0.15)
    assert classifier.classifier.weight.std().item() == pytest.approx(0.02, rel=0.3)
    assert not classifier.dense.bias.any()
    assert not classifier.classifier.bias.any()


def test_encoder_loads_from_a_masked_lm(tmp_path):
    model = build_random_model()
    model.save_pretrained(tmp_path)
    encoder = NeoBERT.from_pretrained(tmp_path).eval()
    ids = random_ids(2, 6)
    assert torch.equal(encoder(ids).last_hidden_state, model.model(ids).last_hidden_state)


def test_initial_weights_are_uniform_within_their_ranges():
    model = build_small(embedding_init_range=0.05, decoder_init_range=0.01, vocab_size=500)
    for name, value in model.named_parameters():
        value = value.detach()
        if name.endswith("norm.weight"):
            assert (value == 1).all()
        elif name == "decoder.bias":
            assert (value == 0).all()
        else:
            bound = 0.05 if name == "model.encoder.weight" else 0.01
            assert 0.98 * bound < value.abs().max() <= bound
            assert float(value.std()) == pytest.approx(bound / 3**0.5, rel=0.05)
    assert (model.model.encoder.weight[0] == 0).all()
    assert (model.model.encoder.weight[1:].abs().sum(-1) > 0).all()


def test_default_ranges_are_two_hundredths():
    config = NeoBERTConfig()
    assert config.embedding_init_range == 0.02
    assert config.decoder_init_range == 0.02
    assert config.classifier_init_range == 0.02
    assert build_small().decoder.weight.abs().max() <= 0.02


def test_weights_of_the_two_ends_are_not_tied():
    model = build_small()
    model.tie_weights()
    assert model.decoder.weight.data_ptr() != model.model.encoder.weight.data_ptr()


def test_the_vocabulary_can_be_resized():
    model = build_small()
    model.resize_token_embeddings(64, mean_resizing=False)
    assert model.config.vocab_size == 64
    assert model(random_ids(1, 5)).logits.shape == (1, 5, 64)
    assert model.decoder.bias.shape == (64,)


@pytest.mark.parametrize(("width", "heads"), [(30, 4), (36, 12)])
def test_heads_that_leave_no_even_part_are_refused_with_both_numbers(width, heads):
    with pytest.raises(ValueError, match=f"hidden_size={width}.*num_attention_heads={heads}"):
        NeoBERTConfig(hidden_size=width, num_attention_heads=heads)


def test_gradient_checkpointing_gives_the_same_gradients():
    ids, gradients = random_ids(2, 6), []
    for checkpointing in (False, True):
        model = build_random_model().train()
        if checkpointing:
            getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)()
        model(ids, labels=ids).loss.backward()
        gradients.append([p.grad for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))
