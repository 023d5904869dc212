"""The forward and backward pass against the same model written from its formulas in float64."""

import pytest
import torch
from float64_reference import (
    assert_near,
    build_random_model,
    double_state,
    encode,
    predict,
    random_ids,
    rotate_complex,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from neobert_train.modeling.blocks import rotary_factors, rotate, turn_with_flip


@pytest.fixture(scope="module")
def model():
    return build_random_model()


@pytest.fixture(scope="module")
def state(model):
    return double_state(model)


def test_pairs_are_turned_alike_in_the_form_for_gpus():
    positions = torch.randint(0, 4096, (50,), generator=torch.Generator().manual_seed(0))
    x = torch.randn(50, 3, 2, 16, generator=torch.Generator().manual_seed(1))
    pairs, turns = x.unflatten(-1, (-1, 2)), rotary_factors(positions, 16)
    turned = turn_with_flip(pairs, turns)
    assert turned.equal(rotate(x, turns).view_as(turned))
    exact = [rotate_complex(part.double(), positions) for part in x.flatten(1, 2).unbind(1)]
    assert (turned.flatten(-2).flatten(1, 2).double() - torch.stack(exact, 1)).abs().max() < 2e-3


def bounds_of(lengths: list[int], dtype: torch.dtype = torch.int32) -> torch.Tensor:
    return torch.tensor([sum(lengths[:i]) for i in range(len(lengths) + 1)], dtype=dtype)


def mask_of(lengths: list[int], width: int, side: str) -> torch.Tensor:
    columns = torch.arange(width)
    rows = [columns < n if side == "right" else columns >= width - n for n in lengths]
    return torch.stack(rows).long()


def test_unpadded_call_without_a_mask_equals_the_reference(model, state):
    ids = random_ids(2, 13)
    logits = model(ids).logits
    for row in range(2):
        assert_near(logits[row], predict(state, model.config, ids[row]))


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("dtype", [torch.long, torch.bool, torch.float32])
def test_padded_call_equals_the_reference_whatever_stands_in_the_padding(model, state, side, dtype):
    lengths, width = [9, 1, 14, 5], 14
    ids = random_ids(4, width)
    mask = mask_of(lengths, width, side)
    logits = model(ids, mask.to(dtype)).logits
    hidden = model.model(ids, mask.to(dtype)).last_hidden_state
    for row in range(4):
        tokens = mask[row].bool()
        assert_near(logits[row][tokens], predict(state, model.config, ids[row][tokens]))
        assert (hidden[row][~tokens] == 0).all()


def test_a_mask_marks_tokens_by_any_value_but_zero(model):
    ids, mask = random_ids(2, 6), mask_of([4, 6], 6, "right")
    segments = mask * torch.tensor([1, 1, 2, 2, 2, 3])
    assert torch.equal(model(ids, segments).logits, model(ids, mask).logits)


@settings(deadline=None, max_examples=25)
@given(
    lengths=st.lists(st.integers(0, 11), min_size=1, max_size=6).filter(any),
    tail=st.integers(0, 6),
    row_form=st.booleans(),
    announce=st.booleans(),
)
def test_each_packed_document_equals_the_reference_of_it_alone(
    model, state, lengths, tail, row_form, announce
):
    ids = random_ids(sum(lengths) + tail)
    bounds = bounds_of(lengths)
    longest = max(*lengths, tail) if announce else None
    logits = model(ids[None] if row_form else ids, cu_seqlens=bounds, max_seqlen=longest).logits
    assert logits.shape == (*([1] if row_form else []), len(ids), 61)
    logits = logits.reshape(len(ids), 61)
    assert logits.isfinite().all()
    for start, length in zip(bounds.tolist(), lengths, strict=False):
        if length:
            document = slice(start, start + length)
            assert_near(logits[document], predict(state, model.config, ids[document]))


def test_packed_bounds_may_be_int64(model):
    ids = random_ids(12)
    short = model(ids, cu_seqlens=bounds_of([5, 7])).logits
    long = model(ids, cu_seqlens=bounds_of([5, 7], torch.int64)).logits
    assert torch.equal(short, long)


def test_packed_padded_and_single_calls_agree_to_1e_5(model):
    lengths, width = [9, 1, 14, 5], 14
    ids = random_ids(4, width)
    mask = mask_of(lengths, width, "right").bool()
    padded = model(ids, mask).logits[mask]
    packed = model(ids[mask], cu_seqlens=bounds_of(lengths)).logits
    singles = [model(ids[row : row + 1, :n]).logits[0] for row, n in enumerate(lengths)]
    assert (padded - packed).abs().max() < 1e-5
    assert (torch.cat(singles) - packed).abs().max() < 1e-5


def test_tokens_of_one_document_or_of_the_tail_change_no_other(model):
    ids = random_ids(20)
    changed = ids.clone()
    changed[6:9] = 7
    changed[15:] = 8
    bounds = bounds_of([6, 3, 6])
    before, after = (model(x, cu_seqlens=bounds).logits for x in (ids, changed))
    assert torch.equal(before[:6], after[:6])
    assert torch.equal(before[9:15], after[9:15])
    assert not torch.allclose(before[6:9], after[6:9])


@pytest.mark.parametrize("form", ["packed", "left", "right"])
def test_gradients_of_every_weight_equal_the_reference(form):
    model = build_random_model(seed=3)
    state = double_state(model)
    lengths, tail, width = [7, 1, 4], 3, 7
    weights = torch.randn(sum(lengths), 61, generator=torch.Generator().manual_seed(5))
    documents = [random_ids(n, seed=n) for n in lengths]
    if form == "packed":
        ids = torch.cat([*documents, random_ids(tail, seed=9)])
        logits = model(ids, cu_seqlens=bounds_of(lengths)).logits[: sum(lengths)]
    else:
        mask = mask_of(lengths, width, form)
        ids = random_ids(3, width, seed=11)
        ids[mask.bool()] = torch.cat(documents)
        logits = model(ids, mask).logits[mask.bool()]
    (logits * weights).sum().backward()
    reference = torch.cat([predict(state, model.config, document) for document in documents])
    (reference * weights).sum().backward()
    for name, parameter in model.named_parameters():
        assert_near(parameter.grad, state[name].grad, relative=1e-5)


@pytest.mark.parametrize("shift", [1, 37])
def test_shifting_all_positions_changes_nothing(model, shift):
    ids = random_ids(1, 16)
    positions = torch.arange(16)[None]
    plain, shifted = (model(ids, position_ids=p).logits for p in (positions, positions + shift))
    assert_near(plain, shifted, relative=1e-5)
    assert not torch.allclose(plain, model(ids, position_ids=2 * positions).logits, atol=1e-2)


def test_explicit_positions_reach_the_rotation_in_both_forms(model, state):
    ids, positions = random_ids(10), torch.tensor([3, 1, 4, 1, 5, 9, 2, 6, 50, 40])
    lengths = [6, 4]
    packed = model(ids, position_ids=positions.int(), cu_seqlens=bounds_of(lengths)).logits
    padded = model(ids[None].expand(2, -1), position_ids=positions).logits
    by_row = model(
        ids[None].expand(2, -1), position_ids=torch.stack((positions, positions.flip(0)))
    ).logits
    for part in (slice(0, 6), slice(6, 10)):
        assert_near(packed[part], predict(state, model.config, ids[part], positions[part]), 1e-5)
    assert_near(padded[1], predict(state, model.config, ids, positions), 1e-5)
    assert_near(by_row[1], predict(state, model.config, ids, positions.flip(0)), 1e-5)


@pytest.mark.parametrize("side", ["left", "right"])
def test_hidden_states_are_the_embeddings_the_residual_streams_and_the_normalised_last_one(
    model, state, side
):
    lengths, width = [5, 8], 8
    ids, mask = random_ids(2, width), mask_of(lengths, width, side)
    output = model(ids, mask, output_hidden_states=True)
    assert len(output.hidden_states) == model.config.num_hidden_layers + 1
    for row in range(2):
        tokens = mask[row].bool()
        hidden, streams, _ = encode(state, model.config, ids[row][tokens])
        streams[-1] = hidden
        for ours, reference in zip(output.hidden_states, streams, strict=True):
            assert_near(ours[row][tokens], reference)


@pytest.mark.parametrize("side", ["left", "right"])
def test_attentions_are_the_probabilities_with_none_on_padding(model, state, side):
    lengths, width = [5, 8, 1], 8
    ids, mask = random_ids(3, width), mask_of(lengths, width, side).bool()
    attentions = model(ids, mask, output_attentions=True).attentions
    assert len(attentions) == model.config.num_hidden_layers
    for row in range(3):
        maps = encode(state, model.config, ids[row][mask[row]])[2]
        for ours, reference in zip(attentions, maps, strict=True):
            assert ours.shape == (3, 4, width, width)
            assert_near(ours[row][:, mask[row]][..., mask[row]], reference)
            assert (ours[row][..., ~mask[row]] == 0).all()
            sums = ours[row].sum(-1)
            assert (sums[:, mask[row]] - 1).abs().max() < 1e-6
            assert (sums[:, ~mask[row]] == 0).all()


def test_embeddings_can_be_given_in_place_of_ids(model):
    ids = random_ids(2, 9)
    embeds = model.get_input_embeddings()(ids)
    assert torch.equal(model(inputs_embeds=embeds).logits, model(ids).logits)
    bounds = bounds_of([4, 5])
    packed = model(inputs_embeds=embeds[0], cu_seqlens=bounds).logits
    assert torch.equal(packed, model(ids[0], cu_seqlens=bounds).logits)


@pytest.mark.parametrize("form", ["packed", "padded"])
def test_bf16_stays_close_to_float64(form):
    half = build_random_model().to(torch.bfloat16)
    ids = random_ids(30)
    rounded = double_state(half)  # the same weights, so that only the arithmetic is compared
    bounds = bounds_of([30])
    packed = form == "packed"
    logits = half(ids, cu_seqlens=bounds).logits if packed else half(ids[None]).logits[0]
    assert logits.dtype == torch.bfloat16
    reference = predict(rounded, half.config, ids).detach()
    error = (logits.double() - reference).pow(2).mean().sqrt() / reference.pow(2).mean().sqrt()
    assert error < 0.03
