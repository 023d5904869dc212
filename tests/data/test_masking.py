"""What is masked, how often, and by what."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from neobert_train.config.data_schema import MaskingConfig, MaskingStrategy
from neobert_train.data.collate import collate
from neobert_train.data.masking import build_masking
from neobert_train.data.randomness import keyed_generator

PAD, UNK, CLS, SEP, MASK = 0, 100, 101, 102, 103
SPECIAL = {PAD, UNK, CLS, SEP, MASK}


@pytest.fixture(scope="module")
def masking_of(tokenizer):
    """Build the masking rule of the shipped vocabulary."""
    return lambda rate=0.2, strategy=MaskingStrategy.mask_only: build_masking(
        MaskingConfig(rate=rate, strategy=strategy), tokenizer
    )


def draw_ids(seed: int, num_tokens: int) -> np.ndarray:
    """Random text with about one special token in five."""
    generator = np.random.default_rng(seed)
    ids = generator.integers(1000, 30_522, num_tokens)
    where = generator.random(num_tokens) < 0.2
    ids[where] = generator.choice(sorted(SPECIAL), where.sum())
    return ids


def assert_binomial(successes: int, trials: int, probability: float):
    """Within five standard deviations of the expected number."""
    deviation = math.sqrt(trials * probability * (1 - probability))
    assert abs(successes - trials * probability) < 5 * deviation


@settings(deadline=None, max_examples=100)
@given(
    st.integers(0, 2**32), st.integers(1, 400), st.floats(0.01, 0.99), st.sampled_from(list(MaskingStrategy))
)  # fmt: skip
def test_the_rounded_share_of_text_tokens_is_predicted_and_nothing_else_changes(
    masking_of, seed, num_tokens, rate, strategy
):
    ids = draw_ids(seed, num_tokens)
    original = ids.copy()
    masked, positions, labels = masking_of(rate, strategy).apply(ids, keyed_generator(seed))
    text = [i for i, token in enumerate(original.tolist()) if token not in SPECIAL]
    assert len(positions) == round(rate * len(text))
    assert set(positions.tolist()) <= set(text)
    assert (np.diff(positions) > 0).all()
    np.testing.assert_array_equal(labels, original[positions])
    np.testing.assert_array_equal(ids, original)
    others = np.setdiff1d(np.arange(num_tokens), positions)
    np.testing.assert_array_equal(masked[others], original[others])
    assert masked.dtype == positions.dtype == labels.dtype == np.int64
    if strategy is MaskingStrategy.mask_only:
        assert (masked[positions] == MASK).all()


def test_every_special_token_of_the_vocabulary_is_exempt(masking_of):
    ids = np.array(sorted(SPECIAL) * 50)
    masked, positions, labels = masking_of(0.99).apply(ids, keyed_generator(0))
    np.testing.assert_array_equal(masked, ids)
    assert len(positions) == len(labels) == 0


def test_positions_are_chosen_uniformly(masking_of):
    num_text, trials, rate = 200, 3000, 0.2
    ids = np.full(num_text + 2, 2000)
    ids[0], ids[-1] = CLS, SEP
    hits = np.zeros(num_text + 2)
    masking = masking_of(rate)
    for trial in range(trials):
        hits[masking.apply(ids, keyed_generator("uniform", trial))[1]] += 1
    assert hits[0] == hits[-1] == 0
    expected = trials * rate
    # Without replacement the variance of a count is that of a Bernoulli draw, and the counts of
    # all positions sum to a constant: chi-square with one degree of freedom less.
    statistic = ((hits[1:-1] - expected) ** 2 / (expected * (1 - rate))).sum()
    degrees = num_text - 1
    assert abs(statistic - degrees) < 5 * math.sqrt(2 * degrees)


def test_neighbouring_positions_are_chosen_independently(masking_of):
    ids = np.full(20_000, 2000)
    chosen = np.zeros(20_000, dtype=bool)
    chosen[masking_of(0.3).apply(ids, keyed_generator("pairs"))[1]] = True
    assert_binomial(int((chosen[:-1] & chosen[1:]).sum()), 19_999, 0.09)


def test_bert_proportions_and_random_replacements(masking_of):
    ids = np.full(100_000, 2000)
    masking = masking_of(0.5, MaskingStrategy.bert_80_10_10)
    masked, positions, labels = masking.apply(ids, keyed_generator("bert"))
    new = masked[positions]
    count = len(positions)
    assert (labels == 2000).all()
    assert_binomial(int((new == MASK).sum()), count, 0.8)
    assert_binomial(int((new == 2000).sum()), count, 0.1)
    replaced = new[(new != MASK) & (new != 2000)]
    assert_binomial(len(replaced), count, 0.1)
    assert not set(replaced.tolist()) & SPECIAL
    # Uniform over the 30,517 text tokens: half of them lie in the lower half.
    text = np.setdiff1d(np.arange(30_522), sorted(SPECIAL))
    assert_binomial(int((replaced < text[len(text) // 2]).sum()), len(replaced), 0.5)
    assert replaced.max() < 30_522


def test_what_is_kept_does_not_depend_on_the_position(masking_of):
    ids = np.full(100_000, 2000)
    masking = masking_of(0.5, MaskingStrategy.bert_80_10_10)
    masked, positions, _ = masking.apply(ids, keyed_generator("halves"))
    kept = masked[positions] == 2000
    half = len(kept) // 2
    assert_binomial(int(kept[:half].sum()), half, 0.1)
    assert_binomial(int(kept[half:].sum()), len(kept) - half, 0.1)


@pytest.mark.parametrize("strategy", MaskingStrategy)
def test_the_same_key_masks_alike_and_another_differently(masking_of, strategy):
    ids = draw_ids(1, 500)
    masking = masking_of(0.2, strategy)
    first = masking.apply(ids, keyed_generator(7, "mask", 3, 11))
    again = masking.apply(ids, keyed_generator(7, "mask", 3, 11))
    for one, other in zip(first, again, strict=True):
        np.testing.assert_array_equal(one, other)
    for key in [(8, "mask", 3, 11), (7, "mask", 4, 11), (7, "mask", 3, 12), (7, "mask", 31, 1)]:
        assert not np.array_equal(first[1], masking.apply(ids, keyed_generator(*key))[1])


def test_a_batch_holds_documents_positions_and_padding_apart(masking_of):
    chunks = [np.array([CLS, *range(2000, 2000 + n), SEP]) for n in (5, 1, 9)]
    batch = collate(chunks, 30, PAD, masking_of(0.4), keyed_generator(0), 3, {"a": 1})
    assert (
        batch.input_ids.dtype == batch.labels.dtype == batch.masked_positions.dtype == torch.int64
    )
    assert batch.position_ids.dtype == batch.cu_seqlens.dtype == torch.int32
    assert batch.cu_seqlens.tolist() == [0, 7, 10, 21]
    assert batch.position_ids.tolist() == [*range(7), *range(3), *range(11), *[0] * 9]
    assert batch.input_ids[21:].tolist() == [PAD] * 9
    assert (batch.max_seqlen, batch.num_tokens, batch.num_masked) == (11, 21, 6)
    assert (batch.lane, batch.lane_state) == (3, {"a": 1})
    restored = batch.input_ids.clone()
    restored[batch.masked_positions] = batch.labels
    assert restored[:21].tolist() == np.concatenate(chunks).tolist()
    assert (batch.input_ids[batch.masked_positions] == MASK).all()


def test_max_seqlen_covers_a_padding_longer_than_every_document(masking_of):
    chunk = np.array([CLS, 2000, SEP])
    batch = collate([chunk], 16, PAD, masking_of(), keyed_generator(0))
    assert batch.max_seqlen == 13
    assert batch.num_masked == 0
