"""Networks of transformers as encoders: the library's own numbers, whatever the architecture."""

import itertools
import json
import logging
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import transformers
from transformers import AutoModelForMaskedLM, BertConfig, BertModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from neobert_train.batch import Batch
from neobert_train.config.choices import Role
from neobert_train.config.data_schema import MaskingConfig
from neobert_train.config.model_schema import (
    AttentionBackend,
    HuggingFaceModelConfig,
    ModelConfig,
    NeoBERTModelConfig,
)
from neobert_train.data.lane.collate import collate
from neobert_train.data.lane.masking import build_masking
from neobert_train.errors import InputError
from neobert_train.models.cost import build_cost
from neobert_train.models.encoder import measure_size
from neobert_train.models.families import build_encoder, find_family
from neobert_train.models.hugging_face import HuggingFaceEncoder
from neobert_train.models.loading import load_initial_weights
from neobert_train.models.neobert import NeoBERTEncoder
from support.architectures import ARCHITECTURES, PACKED, VOCAB_SIZE, build_network, write_folder

CPU = torch.device("cpu")
LENGTHS = (90, 7, 40, 35, 61, 3)


@pytest.fixture(scope="module")
def batch(tokenizer):
    generator = np.random.Generator(np.random.Philox(key=1))
    documents = [generator.integers(1000, VOCAB_SIZE, length) for length in LENGTHS]
    masking = build_masking(MaskingConfig(), tokenizer)
    tokens = sum(LENGTHS) + 2 * len(LENGTHS) + 5
    return Batch.from_arrays(collate(documents, tokens, tokenizer.special, masking, 0.3, generator))


def build(architecture, dtype=torch.float32, **changes):
    encoder = HuggingFaceEncoder(build_network(architecture, **changes))
    return encoder, encoder.settle_kernels(ModelConfig(), CPU, dtype)


def compute_reference(network, batch):
    """The library's own forward pass of all documents in rows padded to the longest, with labels."""
    bounds = batch.cu_seqlens.tolist()
    targets = torch.full_like(batch.input_ids, -100)
    targets[batch.masked_positions] = batch.labels
    spans = list(itertools.pairwise(bounds))
    longest = max(end - begin for begin, end in spans)

    def pad(values, filler):
        rows = [F.pad(values[a:b], (0, longest - (b - a)), value=filler) for a, b in spans]
        return torch.stack(rows)

    ids = pad(batch.input_ids, network.config.pad_token_id or 0)
    mask = pad(torch.ones_like(batch.input_ids), 0)
    output = network(input_ids=ids, attention_mask=mask, labels=pad(targets, -100))
    return output.loss * batch.num_targets, output.logits.argmax(-1)[pad(targets, -100) >= 0]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_loss_and_gradients_are_those_of_the_library(architecture, batch):
    encoder, kernel = build(architecture)
    assert kernel == ("sdpa" if architecture in PACKED else "padded")
    hidden = encoder.encode(batch)
    loss, num_correct = encoder.score(hidden[batch.masked_positions], batch.labels)
    loss.backward()
    network = build_network(architecture)
    expected, predicted = compute_reference(network, batch)
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert num_correct.item() == (predicted == batch.labels).sum().item()
    own = dict(encoder.network.named_parameters())
    for name, parameter in network.named_parameters():
        if parameter.grad is None:  # it is not used in some versions of transformers
            assert own[name].grad is None
            continue
        scale = parameter.grad.abs().max()
        difference = (own[name].grad - parameter.grad).abs().max()
        assert difference <= 1e-3 * scale + 1e-6, name


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_no_document_sees_another(architecture, batch):
    encoder, _ = build(architecture)
    begin, end = batch.cu_seqlens[2:4].tolist()
    with torch.no_grad():
        before = encoder.encode(batch)
        others = torch.ones(len(batch.input_ids), dtype=torch.bool)
        others[begin:end] = False
        changed = batch.to(CPU)
        changed.input_ids = batch.input_ids.where(~others, 2000)
        after = encoder.encode(changed)
    assert torch.allclose(after[begin:end], before[begin:end], atol=1e-5)
    first = slice(0, int(batch.cu_seqlens[1]))
    assert not torch.allclose(after[first], before[first], atol=1e-2)


def test_positions_beyond_the_windows_of_modernbert_are_not_seen(batch):
    """Its packed kernel would be another function; padded rows are what it was trained with."""
    encoder, kernel = build("modernbert", num_hidden_layers=1, layer_types=["sliding_attention"])
    assert kernel == "padded"
    changed = batch.to(CPU)
    changed.input_ids = batch.input_ids.clone()
    changed.input_ids[0] = 2000
    with torch.no_grad():
        difference = (encoder.encode(batch) - encoder.encode(changed)).abs().amax(-1)
    assert (difference[:9] > 0).any()
    assert not difference[9:].any()


def test_a_kernel_for_packed_documents_cannot_be_forced_on_rows():
    encoder = HuggingFaceEncoder(build_network("deberta-v2"))
    with pytest.raises(InputError, match=r"padded rows only: write model\.attention=auto"):
        encoder.settle_kernels(ModelConfig(attention=AttentionBackend.sdpa), CPU, torch.float32)
    with pytest.raises(InputError, match="it runs on CUDA devices only"):
        encoder.settle_kernels(
            ModelConfig(attention=AttentionBackend.torch_varlen), CPU, torch.float32
        )


def test_a_network_without_an_encoder_of_its_own_is_refused():
    network = build_network("bert")
    network.base_model_prefix = "nothing"
    with pytest.raises(InputError, match="base_model_prefix"):
        HuggingFaceEncoder(network)


def test_rotary_frequencies_keep_their_precision_in_bf16(batch):
    encoder, _ = build("modernbert")
    exact = {name: b.clone() for name, b in encoder.network.named_buffers() if "inv_freq" in name}
    encoder.network.bfloat16()
    assert any(b.dtype is torch.bfloat16 for b in encoder.network.buffers())
    hidden = encoder.encode(batch)
    assert hidden.dtype is torch.bfloat16
    found = dict(encoder.network.named_buffers())
    assert exact
    assert all(found[name].equal(buffer) for name, buffer in exact.items())


def test_an_unknown_head_is_scored_whole(batch):
    """A head that does not end in a product with the vocabulary gives its scores, as it likes."""
    encoder, _ = build("bert")
    hidden = encoder.encode(batch)[batch.masked_positions]
    expected = encoder.score(hidden, batch.labels)
    encoder._decoder = None
    found = encoder.score(hidden, batch.labels)
    assert found[0].item() == pytest.approx(expected[0].item(), rel=1e-6)
    assert found[1].equal(expected[1])


@pytest.mark.parametrize("architecture", ["bert", "modernbert", "eurobert"])
def test_roles_follow_from_where_a_parameter_lies(architecture):
    encoder, _ = build(architecture)
    roles = encoder.list_roles()
    assert roles.keys() == dict(encoder.network.named_parameters()).keys()
    embedding = next(
        name for name in roles if "word_emb" in name or "tok_emb" in name or "embed_tokens" in name
    )
    assert roles[embedding] is Role.embedding
    tied = architecture != "eurobert"
    heads = {name for name, role in roles.items() if role is Role.head}
    assert (
        heads
        == {
            "bert": {"cls.predictions.transform.dense.weight"},
            "modernbert": {"head.dense.weight"},
            "eurobert": {"lm_head.weight"},
        }[architecture]
    )
    assert encoder.network.config.tie_word_embeddings is tied
    vectors = {name for name, role in roles.items() if role is Role.vector}
    assert all("norm" in name.lower() or name.endswith("bias") for name in vectors)


def test_weights_that_hold_several_matrices_are_taken_apart():
    encoder, _ = build("modernbert")
    weights, layouts = dict(encoder.network.named_parameters()), encoder.list_layouts()
    assert {name.split(".")[-2] for name in layouts} == {"Wqkv", "Wi"}
    qkv, wi = weights["model.layers.0.attn.Wqkv.weight"], weights["model.layers.1.mlp.Wi.weight"]
    layout = layouts["model.layers.0.attn.Wqkv.weight"]
    assert layout.take_apart(qkv).equal(qkv.view(3, 32, 32))
    assert layout.group_heads(2).take_apart(qkv).equal(qkv.view(6, 16, 32))
    assert layouts["model.layers.1.mlp.Wi.weight"].take_apart(wi).equal(wi.view(2, 64, 32))


@pytest.mark.parametrize("architecture", sorted(set(ARCHITECTURES) - {"modernbert"}))
def test_queries_keys_and_values_can_be_taken_apart_by_heads(architecture):
    encoder, _ = build(architecture)
    weights, layouts = dict(encoder.network.named_parameters()), encoder.list_layouts()
    assert len(layouts) == 6  # of two blocks
    for name, layout in layouts.items():
        assert encoder.list_roles()[name] is Role.hidden_matrix
        assert layout.num_matrices == 1
        single = layout.group_heads(1)
        assert single.take_apart(weights[name]).shape[1:] == (8, 32)


def build_other(kind, **settings):
    """A small random network of a class of transformers, by the name of its configuration."""
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 500}
    config = getattr(transformers, kind)(**shape, intermediate_size=64, pad_token_id=0, **settings)
    return HuggingFaceEncoder(AutoModelForMaskedLM.from_config(config).eval())


@pytest.mark.parametrize("kind", ["FNetConfig", "ConvBertConfig"])
def test_a_network_that_looks_at_padding_is_refused(kind):
    with pytest.raises(InputError, match="depend on the padding behind it"):
        build_other(kind).settle_kernels(ModelConfig(), CPU, torch.float32)


def test_a_network_that_takes_no_documents_of_any_length_is_refused():
    encoder = build_other("NystromformerConfig", segment_means_seq_len=64, num_landmarks=16)
    with pytest.raises(InputError, match="does not take documents of any length"):
        encoder.settle_kernels(ModelConfig(), CPU, torch.float32)


def test_a_head_that_adds_to_its_scores_is_scored_whole(batch):
    encoder = build_other("EsmConfig", mask_token_id=4, position_embedding_type="rotary")
    encoder.settle_kernels(ModelConfig(), CPU, torch.float32)
    small = batch.to(CPU)
    small.input_ids, small.labels = batch.input_ids % 400 + 50, batch.labels % 500
    loss, _ = encoder.score(encoder.encode(small)[small.masked_positions], small.labels)
    bounds = list(itertools.pairwise(small.cu_seqlens.tolist()))
    network = build_other("EsmConfig", mask_token_id=4, position_embedding_type="rotary").network
    scores = torch.cat([network(small.input_ids[None, a:b]).logits[0] for a, b in bounds])
    expected = F.cross_entropy(scores[small.masked_positions], small.labels, reduction="sum")
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)


def test_positions_of_any_kind_of_table_are_counted():
    assert build_other("IBertConfig", max_position_embeddings=514).max_length == 513


def test_sizes_are_those_of_the_network(make_config, tokenizer):
    config = make_config()
    expected = build_cost(config.model, tokenizer.vocab_size).size
    assert measure_size(build_encoder(config, tokenizer)) == expected


def test_a_folder_is_planned_as_it_is_built(tmp_path, tokenizer):
    network = write_folder(tmp_path, "bert", tokenizer)
    cost = build_cost(HuggingFaceModelConfig(name=str(tmp_path)), tokenizer.vocab_size)
    blocks = sum(p.numel() for p in network.bert.encoder.parameters())
    norm = network.bert.embeddings.LayerNorm
    assert cost.size.parameters == sum(p.numel() for p in network.parameters())
    assert cost.size.block_parameters == blocks + norm.weight.numel() + norm.bias.numel()
    assert cost.estimate_activation_bytes(2048, 0.2, True, False) > 0


def write_toy(folder):
    """The network in one file that docs/extending.md shows."""
    text = (Path(__file__).parents[2] / "docs" / "extending.md").read_text()
    (code,) = re.findall(r"```python\n# networks/toy/modeling_toy\.py\n(.*?)```", text, re.DOTALL)
    (settings,) = re.findall(r"```json\n(.*?)```", text[text.index(code) :], re.DOTALL)
    folder.mkdir()
    (folder / "modeling_toy.py").write_text(code)
    (folder / "config.json").write_text(settings)


def make(folder, *overrides):
    config = HuggingFaceModelConfig(name=str(folder))
    for name, value in overrides:
        setattr(config, name, value)
    return config


def test_random_weights_have_the_shape_that_is_asked_for(tmp_path, tokenizer, make_config):
    write_folder(tmp_path / "wide", "modernbert", tokenizer, num_hidden_layers=4)
    config = make_config()
    shape = [("from_scratch", True), ("num_hidden_layers", 2), ("hidden_size", 64)]
    config.model = make(tmp_path / "wide", *shape, ("num_attention_heads", 2))
    network = build_encoder(config, tokenizer).network
    assert len(network.model.layers) == 2
    assert network.model.embeddings.tok_embeddings.weight.shape == (VOCAB_SIZE, 64)
    assert network.config.layer_types == ["full_attention", "sliding_attention"]
    assert network.config.cls_token_id == tokenizer.special.cls
    again = build_encoder(config, tokenizer).network
    assert all(a.equal(b) for a, b in zip(network.parameters(), again.parameters(), strict=True))
    config.seed += 1
    other = build_encoder(config, tokenizer).network
    assert not other.head.dense.weight.equal(network.head.dense.weight)


def test_shape_that_is_not_overridden_stays(tmp_path, tokenizer):
    special = ("bos_token_id", "eos_token_id", "mask_token_id")
    write_folder(tmp_path / "euro", "eurobert", tokenizer, head_dim=16, num_key_value_heads=1)
    config = make(tmp_path / "euro", ("from_scratch", True), ("num_hidden_layers", 3))
    network = HuggingFaceEncoder.build(config, tokenizer, None).network
    assert (network.config.num_key_value_heads, network.config.head_dim) == (1, 16)
    assert network.config.num_hidden_layers == len(network.model.layers) == 3
    assert all(getattr(network.config, name) < tokenizer.vocab_size for name in special)
    write_folder(tmp_path / "distil", "distilbert", tokenizer)
    config = make(tmp_path / "distil", ("from_scratch", True), ("intermediate_size", 96))
    network = HuggingFaceEncoder.build(config, tokenizer, None).network
    assert network.distilbert.transformer.layer[0].ffn.lin1.out_features == 96


def test_weights_that_are_not_numbers_are_named(tmp_path, tokenizer):
    network = write_folder(tmp_path, "bert", tokenizer)
    network.bert.encoder.layer[1].output.dense.weight.data[3, 4] = torch.nan
    network.save_pretrained(tmp_path)
    with pytest.raises(
        InputError, match=r"layer\.1\.output\.dense\.weight has a value that is not"
    ):
        load_initial_weights("model.name", str(tmp_path), make(tmp_path), VOCAB_SIZE)


def test_layers_without_weights_and_weights_without_layers_are_told(tmp_path, tokenizer, caplog):
    write_folder(tmp_path, "bert", tokenizer)
    file = tmp_path / "config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps({**config, "num_hidden_layers": 3}))
    with pytest.raises(InputError, match="as many layers as its config"):
        HuggingFaceEncoder.load(tmp_path, "model=folder")
    file.write_text(json.dumps({**config, "num_hidden_layers": 1}))
    logging.getLogger("neobert_train").propagate = True
    HuggingFaceEncoder.load(tmp_path, "model=folder")
    assert "not taken from model=folder: bert.encoder.layer.1" in caplog.text


def test_dropout_is_off_in_training_and_restored_in_an_export(tmp_path, tokenizer, batch):
    write_folder(tmp_path / "model", "bert", tokenizer)
    config = make(tmp_path / "model")
    encoder = HuggingFaceEncoder.build(config, tokenizer, None)
    encoder.network.train()
    assert encoder.encode(batch).equal(encoder.encode(batch))
    kept = json.loads(json.dumps(encoder.describe_network()))
    again = HuggingFaceEncoder.build(make(tmp_path / "gone"), tokenizer, kept)
    again.write(tmp_path / "export", tokenizer, 128)
    written = json.loads((tmp_path / "export" / "config.json").read_text())
    assert written["hidden_dropout_prob"] == written["attention_probs_dropout_prob"] == 0.1
    assert "original_dropout" not in written
    assert again.network.config.hidden_dropout_prob == 0.0


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_an_export_loads_without_our_code(tmp_path, architecture, tokenizer, batch):
    network = write_folder(tmp_path / "model", architecture, tokenizer)
    encoder = find_family(tmp_path / "model", "model").load(tmp_path / "model", "model", False)
    assert isinstance(encoder, HuggingFaceEncoder)
    encoder.write(tmp_path / "export", tokenizer, 128)
    loaded = AutoModelForMaskedLM.from_pretrained(tmp_path / "export").eval()
    ids = batch.input_ids[None, :50]
    with torch.no_grad():
        assert loaded(ids).logits.equal(network(ids).logits)
    modes = {file.stat().st_mode for file in (tmp_path / "export").iterdir()}
    assert len(modes) == 1


def test_code_of_a_model_runs_only_where_it_is_trusted(
    tmp_path, tokenizer, make_config, batch, monkeypatch
):
    # Whatever another test has made known to transformers.
    monkeypatch.setattr(CONFIG_MAPPING, "_extra_content", {})
    config = make_config()
    ours = build_encoder(config, tokenizer)
    ours.write(tmp_path, tokenizer, 128)
    with pytest.raises(InputError, match=r"model\.trust_remote_code=true"):
        HuggingFaceEncoder.build(make(tmp_path), tokenizer, None)
    trusting = make(tmp_path, ("trust_remote_code", True))
    encoder = HuggingFaceEncoder.build(trusting, tokenizer, None)
    weights = load_initial_weights("model.name", str(tmp_path), trusting, tokenizer.vocab_size)
    encoder.network.load_state_dict(weights)
    with torch.no_grad():
        assert torch.allclose(encoder.encode(batch), ours.encode(batch), atol=1e-5)


def test_evaluation_runs_code_only_where_it_is_trusted(tmp_path, tokenizer):
    write_toy(tmp_path / "toy")
    trusting = make(tmp_path / "toy", ("from_scratch", True), ("trust_remote_code", True))
    HuggingFaceEncoder.build(trusting, tokenizer, None).write(tmp_path / "export", tokenizer, 128)
    label = "model=export"
    with pytest.raises(
        InputError, match="comes with code of its own: read it, and write trust_remote"
    ):
        find_family(tmp_path / "export", label, trust_remote_code=False)
    family = find_family(tmp_path / "export", label, trust_remote_code=True)
    encoder = family.load(tmp_path / "export", label, True)
    assert type(encoder.network).__name__ == "ToyForMaskedLM"


def test_what_does_not_fit_is_named(tmp_path, tokenizer, make_config):
    write_folder(tmp_path / "small", "bert", tokenizer, vocab_size=500)
    with pytest.raises(InputError, match="500 token ids, and the tokenizer has 30,522"):
        HuggingFaceEncoder.build(make(tmp_path / "small"), tokenizer, None)
    write_folder(tmp_path / "short", "roberta", tokenizer, max_position_embeddings=65)
    config = make_config()
    config.model = make(tmp_path / "short")
    with pytest.raises(InputError, match=r"write batch\.context_length=64"):
        build_encoder(config, tokenizer)
    BertModel(
        BertConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=4)
    ).save_pretrained(tmp_path / "headless")
    with pytest.raises(InputError, match=r"lacks weights that a head .*model\.from_scratch=true"):
        HuggingFaceEncoder.load(tmp_path / "headless", "model.name=headless")
    with pytest.raises(InputError, match="neither a folder nor a model on the Hub"):
        HuggingFaceEncoder.build(make(tmp_path / "nowhere"), tokenizer, None)
    with pytest.raises(InputError, match=r"holds a RobertaForMaskedLM .* and model\.kind=neobert"):
        load_initial_weights("init_from", str(tmp_path / "short"), NeoBERTModelConfig(), VOCAB_SIZE)
    problems = list(make("", ("hidden_size", 64), ("compile", True)).iter_problems())
    assert len(problems) == 3
    assert "model.from_scratch=true" in problems[-1]


def test_a_neobert_is_none_of_transformers(tmp_path, tokenizer, make_config):
    encoder = build_encoder(make_config(), tokenizer)
    encoder.write(tmp_path, tokenizer, 128)
    assert isinstance(find_family(tmp_path, "x").load(tmp_path, "x", False), NeoBERTEncoder)


def test_the_network_in_one_file_of_the_docs_trains(tmp_path, tokenizer, make_config, batch):
    write_toy(tmp_path / "toy")
    config = make_config()
    config.model = make(tmp_path / "toy", ("from_scratch", True), ("trust_remote_code", True))
    encoder = build_encoder(config, tokenizer)
    assert encoder.settle_kernels(ModelConfig(), CPU, torch.float32) == "padded"
    loss, _ = encoder.score(encoder.encode(batch)[batch.masked_positions], batch.labels)
    loss.backward()
    bounds = list(itertools.pairwise(batch.cu_seqlens.tolist()))
    scores = torch.cat([encoder.network(batch.input_ids[None, a:b]).logits[0] for a, b in bounds])
    expected = F.cross_entropy(scores[batch.masked_positions], batch.labels, reduction="sum")
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert all(parameter.grad.any() for parameter in encoder.network.parameters())
    assert encoder.list_layouts() == {}
    assert set(encoder.list_roles().values()) == set(Role)
