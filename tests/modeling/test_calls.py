"""Calls as other libraries make them: names, masks, threads, implementations of attention."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from float64_reference import SMALL, assert_near, build_random_model, random_ids
from transformers import DataCollatorWithFlattening

from neobert_train.modeling import layouts, modeling_neobert
from neobert_train.modeling.configuration_neobert import NeoBERTConfig
from neobert_train.modeling.heads import (
    NeoBERTForMaskedLM,
    NeoBERTForMultipleChoice,
    NeoBERTForQuestionAnswering,
    NeoBERTForSequenceClassification,
    NeoBERTForTokenClassification,
    NeoBERTLMHead,
)
from neobert_train.modeling.layouts import build_packed_layout
from neobert_train.modeling.modeling_neobert import NeoBERT

LENGTHS = [6, 1, 5]


@pytest.fixture(scope="module")
def model():
    return build_random_model()


def build(head, implementation="sdpa", **changes):
    torch.manual_seed(0)
    config = NeoBERTConfig(**{**SMALL, "num_labels": 3, **changes})
    config._attn_implementation = implementation
    return head(config).eval()


def test_threads_get_what_one_thread_gets(model):
    """Texts of many lengths, so that a batch's plan would not fit another."""
    generator = torch.Generator().manual_seed(0)
    batches = []
    for _ in range(150):
        ids = torch.randint(1, 61, (4, 40), generator=generator)
        lengths = torch.randint(1, 41, (4, 1), generator=generator)
        batches.append((ids, (torch.arange(40) < lengths).long()))

    def embed(batch):
        with torch.no_grad():
            return model.model(*batch).last_hidden_state

    expected = [embed(batch) for batch in batches]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(embed, batches))
    assert all(a.equal(b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("with_bounds", [False, True])
def test_documents_flattened_by_transformers_stay_apart(implementation, with_bounds):
    model = build(NeoBERTForMaskedLM, implementation)
    documents = [random_ids(n, seed=n) for n in LENGTHS]
    collator = DataCollatorWithFlattening(return_flash_attn_kwargs=with_bounds)
    batch = collator([{"input_ids": ids.tolist(), "labels": ids.tolist()} for ids in documents])
    batch.pop("labels")
    logits = model(**batch).logits
    assert logits.shape == (1, sum(LENGTHS), 61)
    for ids, found in zip(documents, logits[0].split(LENGTHS), strict=True):
        assert_near(found, model(ids[None]).logits[0], relative=1e-5)


def test_rows_that_hold_several_documents_and_rows_that_do_not(model):
    ids = random_ids(2, 9)
    positions = torch.stack([torch.tensor([0, 1, 2, 3, 0, 1, 2, 0, 1]), torch.arange(9)])
    logits = model(ids, position_ids=positions).logits
    parts = [model(part[None]).logits[0] for part in ids[0].split([4, 3, 2])]
    assert_near(logits[0], torch.cat(parts), relative=1e-5)
    assert_near(logits[1], model(ids[1:]).logits[0], relative=1e-5)
    # Positions of another kind are positions and nothing else.
    odd = torch.tensor([[4, 0, 9, 1, 0, 3, 2, 2, 8]])
    packed = model(ids[0], position_ids=odd[0], cu_seqlens=torch.tensor([0, 9])).logits
    assert_near(model(ids[:1], position_ids=odd).logits[0], packed, relative=1e-5)


@pytest.mark.parametrize("names", [{"attention_msk": None}, {"past_key_values": None}])
@pytest.mark.parametrize("head", [NeoBERTForMaskedLM, NeoBERTForSequenceClassification])
def test_a_keyword_that_nothing_takes_is_refused(head, names):
    (name,) = names
    with pytest.raises(TypeError, match=f"unexpected keyword argument '{name}'"):
        build(head)(random_ids(1, 4), **names)


def test_token_types_are_taken_and_change_nothing(model):
    ids = random_ids(2, 7)
    types = torch.ones_like(ids)
    assert model(ids, token_type_ids=types).logits.equal(model(ids).logits)


@pytest.mark.parametrize("side", ["left", "right", "none"])
def test_eager_and_traced_attention_give_the_packed_numbers(side, monkeypatch):
    ids, mask = random_ids(3, 9), torch.ones(3, 9, dtype=torch.long)
    if side != "none":
        mask[1, :4] = 0
        mask[2, :8] = 0
        mask = mask.flip(1) if side == "right" else mask
    packed, eager = build(NeoBERTForMaskedLM), build(NeoBERTForMaskedLM, "eager")
    arguments = (ids,) if side == "none" else (ids, mask)
    expected = packed.model(*arguments, output_hidden_states=True)
    for padded in (
        eager.model(*arguments, output_hidden_states=True),
        packed.model(*arguments, output_hidden_states=True, output_attentions=True),
    ):
        pairs = zip(padded.hidden_states, expected.hidden_states, strict=True)
        assert all(torch.allclose(one, other, atol=1e-5) for one, other in pairs)
        assert padded.hidden_states[-1].equal(padded.last_hidden_state)
    # The last of them is the output.
    assert expected.hidden_states[-1].equal(expected.last_hidden_state)


@pytest.mark.parametrize("kind", ["boolean", "added"])
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_a_mask_for_pairs_of_tokens_is_obeyed(kind, implementation):
    model = build(NeoBERTForMaskedLM, implementation)
    ids, allowed = random_ids(2, 8), torch.ones(2, 1, 8, 8, dtype=torch.bool)
    allowed[0, 0, :5, 5:] = allowed[0, 0, 5:, :5] = False
    mask = allowed if kind == "boolean" else (~allowed).float() * torch.finfo(torch.float32).min
    positions = torch.arange(8)
    logits = model(ids, mask).logits
    bounds = torch.tensor([0, 5, 8])
    expected = model(ids[0], position_ids=positions, cu_seqlens=bounds).logits
    assert_near(logits[0], expected, relative=1e-5)
    assert_near(logits[1], model(ids[1:]).logits[0], relative=1e-5)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")  # of the checks of shapes
@pytest.mark.parametrize(
    "head",
    [NeoBERTForMaskedLM, NeoBERTForSequenceClassification, NeoBERTForTokenClassification,
     NeoBERTForQuestionAnswering, NeoBERTForMultipleChoice],
)  # fmt: skip
def test_every_head_is_exported_for_any_batch_and_length(head):
    """With padding on the left, where the first token is another one in every row."""
    model = build(head)
    choices = (3,) if head is NeoBERTForMultipleChoice else ()
    ids, mask = random_ids(4, *choices, 9), torch.ones(4, *choices, 9, dtype=torch.long)
    mask[1, ..., :4] = mask[2, ..., 7:] = 0
    auto = torch.export.Dim.DYNAMIC
    sizes = {0: auto, mask.dim() - 1: auto}
    small = random_ids(2, *choices, 5), torch.ones(2, *choices, 5, dtype=torch.long)
    program = torch.export.export(model, small, dynamic_shapes=(sizes, sizes))
    traced = torch.jit.trace(build(head, return_dict=False), small)
    expected = model(ids, mask)[0]
    assert torch.allclose(program.module()(ids, mask)[0], expected, atol=1e-5)
    assert torch.allclose(traced(ids, mask)[0], expected, atol=1e-5)


def test_a_row_of_padding_alone_is_zero_and_finite():
    for implementation in ("sdpa", "eager"):
        model = build(NeoBERTForMaskedLM, implementation)
        ids, mask = random_ids(2, 5), torch.tensor([[1, 1, 1, 0, 0], [0, 0, 0, 0, 0]])
        hidden = model.model(ids, mask).last_hidden_state
        assert hidden.isfinite().all()
        assert (hidden[1] == 0).all()
        assert (hidden[0, 3:] == 0).all()


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("shape", [(0, 5), (2, 0)])
def test_an_empty_batch_gives_an_empty_output(implementation, shape):
    ids = torch.zeros(shape, dtype=torch.long)
    model = build(NeoBERTForMaskedLM, implementation)
    assert model(ids).logits.shape == (*shape, 61)
    assert model(ids, torch.ones_like(ids)).logits.shape == (*shape, 61)


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_half_precision_on_a_cpu(implementation):
    exact = build(NeoBERTForMaskedLM, implementation)
    ids, mask = random_ids(2, 9), torch.tensor([[1] * 9, [1] * 6 + [0] * 3])
    expected = exact(ids, mask).logits
    half = build(NeoBERTForMaskedLM, implementation).half()
    assert torch.allclose(half(ids, mask).logits.float(), expected, atol=2e-2)
    assert half(ids, mask).logits.dtype is torch.float16


def test_second_derivatives_are_refused_or_right():
    embeds = torch.randn(1, 5, SMALL["hidden_size"], dtype=torch.float64)

    def run(model):
        model = model.double()
        return lambda x: model.model(inputs_embeds=x).last_hidden_state.square().sum()

    eager = run(build(NeoBERTForMaskedLM, "eager"))
    first = torch.autograd.functional.jacobian(eager, embeds)
    direction = torch.randn_like(embeds)
    second = torch.autograd.functional.hvp(eager, embeds, direction)[1]
    step = 1e-5
    moved = torch.autograd.functional.jacobian(eager, embeds + step * direction)
    assert torch.allclose(second, (moved - first) / step, rtol=1e-3, atol=1e-3)
    packed = build(NeoBERTForMaskedLM)
    embeds = embeds.float().requires_grad_()
    output = packed.model(inputs_embeds=embeds).last_hidden_state.square().sum()
    (gradient,) = torch.autograd.grad(output, embeds, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


def test_without_gradients_attention_keeps_nothing(model, monkeypatch):
    kept = []
    original = layouts.attend

    def attend(*arguments):
        output = original(*arguments)
        kept.append(output.grad_fn)
        return output

    monkeypatch.setattr(layouts, "attend", attend)
    with torch.no_grad():
        model(random_ids(2, 9))
    assert kept == [None] * SMALL["num_hidden_layers"]


def test_embeddings_and_projection_can_be_tied(tmp_path):
    model = build(NeoBERTForMaskedLM, tie_word_embeddings=True)
    assert model.decoder.weight is model.model.encoder.weight
    model.save_pretrained(tmp_path)
    again = NeoBERTForMaskedLM.from_pretrained(tmp_path)
    assert again.decoder.weight is again.model.encoder.weight
    assert again(random_ids(1, 4)).logits.equal(model(random_ids(1, 4)).logits)


def test_the_published_name_is_the_same_class():
    assert NeoBERTLMHead is NeoBERTForMaskedLM


def test_names_that_libraries_read():
    config = NeoBERTConfig(hidden_size=96, num_attention_heads=3, max_length=512)
    assert (config.max_position_embeddings, config.head_dim) == (512, 32)
    assert (config.hidden_act, config.initializer_range) == ("silu", 0.02)
    assert NeoBERTConfig(max_position_embeddings=77).max_length == 77
    assert NeoBERTConfig.from_dict(config.to_dict()).to_dict() == config.to_dict()


def test_tokens_are_classified_one_by_one():
    model, ids = build(NeoBERTForTokenClassification), random_ids(2, 6)
    labels = torch.tensor([[0, 1, 2, -100, -100, 0], [2, 2, -100, 1, 0, -100]])
    output = model(ids, labels=labels)
    hidden = model.model(ids).last_hidden_state
    assert_near(output.logits, hidden @ model.classifier.weight.T + model.classifier.bias)
    chosen = output.logits[labels >= 0].log_softmax(-1)
    expected = -chosen[torch.arange(8), labels[labels >= 0]].mean()
    assert_near(output.loss, expected)
    assert_near(model(ids, labels=labels, num_items_in_batch=32).loss, expected / 4)


def test_the_ends_of_an_answer_are_scored_and_positions_beyond_the_text_ignored():
    model, ids = build(NeoBERTForQuestionAnswering), random_ids(3, 6)
    starts, ends = torch.tensor([1, 6, 0]), torch.tensor([[3], [9], [2]])
    output = model(ids, start_positions=starts, end_positions=ends)
    assert output.start_logits.shape == output.end_logits.shape == (3, 6)
    begin, end = output.start_logits.log_softmax(-1), output.end_logits.log_softmax(-1)
    expected = -(begin[0, 1] + begin[2, 0] + end[0, 3] + end[2, 2]) / 4
    assert_near(output.loss, expected)


def test_choices_are_scored_side_by_side():
    model, ids = build(NeoBERTForMultipleChoice), random_ids(2, 3, 5)
    mask = torch.ones_like(ids)
    mask[0, 1, 3:] = 0
    output = model(ids, mask, labels=torch.tensor([2, 0]))
    assert output.logits.shape == (2, 3)
    hidden = model.model(ids[0, 1:2, :3]).last_hidden_state[0, 0]
    assert_near(output.logits[0, 1], model.classifier(hidden)[0])
    assert_near(output.loss, -output.logits.log_softmax(-1)[[0, 1], [2, 0]].mean())
    types = torch.zeros_like(ids)
    assert model(ids, mask, token_type_ids=types).logits.equal(output.logits)


@pytest.mark.parametrize("name", ["qkv", "wo", "ffn", "ffn.w12", "ffn.w3"])
def test_what_a_hook_sees_without_a_gradient_stays_as_it_is(name):
    config = NeoBERTConfig(
        hidden_size=64, num_hidden_layers=1, num_attention_heads=2, intermediate_size=96
    )
    model = NeoBERT(config).eval()
    seen = []
    layer = model.transformer_encoder[0].get_submodule(name)
    layer.register_forward_hook(lambda *call: seen.append((call[-1], call[-1].clone())))
    with torch.no_grad():
        model(torch.arange(1000, 1010)[None])
    ((kept, copy),) = seen
    assert torch.equal(kept, copy)


def test_a_large_batch_is_encoded_in_parts_that_nobody_sees(monkeypatch):
    config = NeoBERTConfig(
        hidden_size=64, num_hidden_layers=2, num_attention_heads=2, intermediate_size=96
    )
    model = NeoBERT(config).eval()
    ids = torch.randint(1000, 9000, (12, 64))
    mask = torch.ones_like(ids)
    mask[3:5, 32:] = mask[8, 50:] = 0

    @torch.no_grad()
    def encode(watched=None):
        """Return all hidden states, and how many tokens passed through a part of the model at a time."""
        rows = []
        hook = lambda module, given: rows.append(len(given[0]))  # noqa: E731
        handle = None if watched is None else watched.register_forward_pre_hook(hook)
        states = model(ids, mask, output_hidden_states=True).hidden_states
        if handle is not None:
            handle.remove()
        return states, rows

    expected, _ = encode()
    monkeypatch.setattr(modeling_neobert, "_INFERENCE_TOKENS", 256)
    parts = build_packed_layout(ids.shape, ids.device, mask, None, None, "sdpa").split(256)
    assert [(place.start, place.stop) for place, _ in parts] == [(0, 256), (256, 690)]
    for watched in (None, model.transformer_encoder[1]):
        states, rows = encode(watched)
        assert rows in ([], [690])
        assert all(map(torch.equal, states, expected))


@pytest.mark.parametrize("name", ["qkv", "wo", "ffn.w12", "ffn.w3", "ffn_norm"])
def test_a_layer_with_something_added_is_called_as_a_whole(name):
    class Doubled(torch.nn.Module):
        def __init__(self, layer):
            super().__init__()
            self.layer = layer

        def forward(self, x):
            return 2 * self.layer(x)

    model = build_random_model().model
    ids = random_ids(3, 7)
    before = model(ids).last_hidden_state
    parent, _, child = name.rpartition(".")
    owner = model.transformer_encoder[0].get_submodule(parent)
    setattr(owner, child, Doubled(getattr(owner, child)))
    after = model(ids).last_hidden_state
    assert not torch.allclose(before, after, atol=1e-3)
    with torch.no_grad():
        assert_near(model(ids).last_hidden_state, after)


@pytest.mark.parametrize("shape", [(1, 1), (1, 16), (3, 128), (2, 300), (40, 7), (9, 256)])
@pytest.mark.parametrize("ragged", [False, True])
def test_without_a_gradient_the_numbers_are_the_same(shape, ragged):
    model = NeoBERT(NeoBERTConfig(**{**SMALL, "hidden_size": 64, "intermediate_size": 96})).eval()
    assert model._is_plain_inference(torch.zeros(1)) is False
    ids, mask = random_ids(*shape), torch.ones(shape, dtype=torch.int64)
    if ragged:
        mask = (torch.arange(shape[1]) < torch.randint(1, shape[1] + 1, (shape[0], 1))).long()
    expected = model(ids, mask).last_hidden_state
    with torch.no_grad():
        assert model._is_plain_inference(torch.zeros(1))
        assert torch.equal(model(ids, mask).last_hidden_state, expected)


def test_what_replaces_the_forward_of_a_class_is_called(monkeypatch):
    model, ids = build_random_model().model, random_ids(2, 9)
    calls, forward = [], torch.nn.Linear.forward
    monkeypatch.setattr(
        torch.nn.Linear, "forward", lambda layer, x: calls.append(layer) or forward(layer, x)
    )
    with torch.no_grad():
        model(ids)
    assert len(calls) == 4 * len(model.transformer_encoder)


@pytest.mark.filterwarnings("ignore:There is a performance drop")  # torch's attention under vmap
def test_transforms_of_functions_go_through_the_model():
    model = build_random_model().model
    embeddings = torch.randn(2, 9, model.config.hidden_size, requires_grad=True)

    def measure(x):
        return model(inputs_embeds=x).last_hidden_state.square().sum()

    (expected,) = torch.autograd.grad(measure(embeddings), embeddings)
    assert_near(torch.func.grad(measure)(embeddings.detach()), expected)
    twice = torch.stack([embeddings.detach(), 2 * embeddings.detach()])
    with torch.no_grad():
        each = torch.stack([measure(x) for x in twice])
        assert_near(torch.func.vmap(measure)(twice), each)


def test_another_default_device_changes_nothing():
    model, ids = build_random_model().model, random_ids(3, 9)
    mask = (torch.arange(9) < torch.tensor([[9], [4], [5]])).long()
    with torch.no_grad():
        expected = model(ids, mask).last_hidden_state
        with torch.device("meta"):
            assert torch.equal(model(ids, mask).last_hidden_state, expected)
