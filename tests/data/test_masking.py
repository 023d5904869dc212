"""What is masked, how often, and by what."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from neobert_train.config.data_schema import MaskingConfig, MaskingStrategy, MaskingUnit
from neobert_train.config.derived import compute_masking_rate
from neobert_train.config.schema import TrainConfig
from neobert_train.data.collate import collate
from neobert_train.data.masking import build_masking
from neobert_train.data.randomness import keyed_generator

PAD, UNK, CLS, SEP, MASK = 0, 100, 101, 102, 103
SPECIAL = {PAD, UNK, CLS, SEP, MASK}


@pytest.fixture(scope="module")
def masking_of(tokenizer):
    """Build the masking rule of the shipped vocabulary."""
    return lambda **settings: build_masking(MaskingConfig(**settings), tokenizer)


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
    masking = masking_of(strategy=strategy)
    masked, positions, labels = masking.apply(ids, keyed_generator(seed), rate)
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
    masked, positions, labels = masking_of().apply(ids, keyed_generator(0), 0.99)
    np.testing.assert_array_equal(masked, ids)
    assert len(positions) == len(labels) == 0


def test_positions_are_chosen_uniformly(masking_of):
    num_text, trials, rate = 200, 3000, 0.2
    ids = np.full(num_text + 2, 2000)
    ids[0], ids[-1] = CLS, SEP
    hits = np.zeros(num_text + 2)
    masking = masking_of()
    for trial in range(trials):
        hits[masking.apply(ids, keyed_generator("uniform", trial), rate)[1]] += 1
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
    chosen[masking_of().apply(ids, keyed_generator("pairs"), 0.3)[1]] = True
    assert_binomial(int((chosen[:-1] & chosen[1:]).sum()), 19_999, 0.09)


def test_bert_proportions_and_random_replacements(masking_of):
    ids = np.full(100_000, 2000)
    masking = masking_of(strategy=MaskingStrategy.bert_80_10_10)
    masked, positions, labels = masking.apply(ids, keyed_generator("bert"), 0.5)
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
    masking = masking_of(strategy=MaskingStrategy.bert_80_10_10)
    masked, positions, _ = masking.apply(ids, keyed_generator("halves"), 0.5)
    kept = masked[positions] == 2000
    half = len(kept) // 2
    assert_binomial(int(kept[:half].sum()), half, 0.1)
    assert_binomial(int(kept[half:].sum()), len(kept) - half, 0.1)


@pytest.mark.parametrize("strategy", MaskingStrategy)
def test_the_same_key_masks_alike_and_another_differently(masking_of, strategy):
    ids = draw_ids(1, 500)
    masking = masking_of(strategy=strategy)
    first = masking.apply(ids, keyed_generator(7, "mask", 3, 11), 0.2)
    again = masking.apply(ids, keyed_generator(7, "mask", 3, 11), 0.2)
    for one, other in zip(first, again, strict=True):
        np.testing.assert_array_equal(one, other)
    for key in [(8, "mask", 3, 11), (7, "mask", 4, 11), (7, "mask", 3, 12), (7, "mask", 31, 1)]:
        assert not np.array_equal(first[1], masking.apply(ids, keyed_generator(*key), 0.2)[1])


def frame(parts) -> np.ndarray:
    """Documents of ids within [CLS] and [SEP], joined."""
    return np.concatenate([[CLS, *part, SEP] for part in parts])


@pytest.fixture(scope="module")
def words_of(tokenizer):
    """Token ids by what a word is for a plain reading of the vocabulary."""
    vocabulary = tokenizer.vocabulary
    endings = sorted(index for token, index in vocabulary.items() if token.startswith("##"))
    return {"begin": vocabulary["union"], "go_on": endings[:50]}


@st.composite
def documents(draw, words_of):
    """Documents as lists of words as lists of tokens."""
    word = st.integers(1, 6).map(lambda n: [words_of["begin"], *words_of["go_on"][: n - 1]])
    return draw(st.lists(st.lists(word, max_size=30), min_size=1, max_size=6))


def list_words(parts) -> list[list[int]]:
    """Positions of every word in the joined documents."""
    words, place = [], 0
    for part in parts:
        place += 1
        for word in part:
            words.append(list(range(place, place + len(word))))
            place += len(word)
        place += 1
    return words


@settings(deadline=None, max_examples=150)
@given(st.data(), st.floats(0.05, 0.95), st.integers(0, 99))
def test_whole_words_are_chosen_up_to_the_count(masking_of, words_of, data, rate, seed):
    parts = data.draw(documents(words_of))
    ids = frame([[token for word in part for token in word] for part in parts])
    masking = masking_of(unit=MaskingUnit.word)
    masked, positions, labels = masking.apply(ids, keyed_generator(seed), rate)
    words = list_words(parts)
    count = round(rate * sum(map(len, words)))
    chosen = set(positions.tolist())
    assert all(chosen >= set(word) or not chosen & set(word) for word in words)
    assert len(positions) == sum(len(word) for word in words if word[0] in chosen) <= count
    missing = [len(word) for word in words if word[0] not in chosen]
    assert not missing or len(positions) + max(missing) > count
    assert (np.diff(positions) > 0).all()
    np.testing.assert_array_equal(labels, ids[positions])
    assert (masked[positions] == MASK).all()


@settings(deadline=None, max_examples=150)
@given(st.data(), st.floats(0.05, 0.95), st.integers(0, 99), st.floats(1.0, 8.0))
def test_spans_are_of_whole_words_but_for_the_last(masking_of, words_of, data, rate, seed, mean):
    parts = data.draw(documents(words_of))
    ids = frame([[token for word in part for token in word] for part in parts])
    masking = masking_of(unit=MaskingUnit.span, span_words=mean)
    _, positions, labels = masking.apply(ids, keyed_generator(seed), rate)
    words = list_words(parts)
    assert len(positions) == round(rate * sum(map(len, words)))
    chosen = set(positions.tolist())
    assert chosen <= {place for word in words for place in word}
    assert sum(0 < len(chosen & set(word)) < len(word) for word in words) <= 1
    assert (np.diff(positions) > 0).all()
    np.testing.assert_array_equal(labels, ids[positions])


def test_words_are_chosen_uniformly(masking_of, words_of):
    lengths = [1 + n % 4 for n in range(120)]
    parts = [[[words_of["begin"], *words_of["go_on"][: n - 1]] for n in lengths]]
    ids, words = frame([[token for word in parts[0] for token in word]]), list_words(parts)
    masking = masking_of(unit=MaskingUnit.word)
    hits = np.zeros(len(ids))
    for trial in range(2000):
        hits[masking.apply(ids, keyed_generator("words", trial), 0.3)[1]] += 1
    share = np.array([hits[word[0]] for word in words]) / 2000
    for length in range(1, 5):
        own = share[[n == length for n in lengths]]
        assert abs(own.mean() - 0.3) < 0.015, "short and long words alike"
    assert share.std() < 0.02


@pytest.mark.parametrize("mean", [1.0, 3.0, 6.0])
def test_spans_have_the_mean_length(masking_of, words_of, mean):
    # At a low rate spans hardly meet, so that what lies together is one span.
    ids = frame([[words_of["begin"]] * 30_000])
    masking = masking_of(unit=MaskingUnit.span, span_words=mean)
    _, positions, _ = masking.apply(ids, keyed_generator("spans"), 0.02)
    num_spans = 1 + int((np.diff(positions) > 1).sum())
    assert abs(len(positions) / num_spans - mean) < 0.25 * mean


@pytest.mark.parametrize("unit", MaskingUnit)
def test_units_without_text_predict_nothing(masking_of, unit):
    masking = masking_of(unit=unit)
    masked, positions, _ = masking.apply(np.array([CLS, SEP, CLS, SEP]), keyed_generator(0), 0.5)
    assert len(positions) == 0
    assert masked.tolist() == [CLS, SEP, CLS, SEP]


def test_the_rate_goes_in_a_straight_line_and_stays():
    def rates(steps, **settings):
        config = TrainConfig(masking=MaskingConfig(rate=0.3, **settings))
        config.trainer.max_steps = 1000
        return [compute_masking_rate(config, step) for step in steps]

    assert rates([1, 500, 5000]) == [0.3] * 3
    assert rates([0, 500, 1000], final_rate=0.15) == pytest.approx([0.3, 0.225, 0.15])
    found = rates([10, 50, 100, 999], final_rate=0.5, rate_steps=100)
    assert found == pytest.approx([0.32, 0.4, 0.5, 0.5])


def test_a_batch_holds_documents_positions_and_padding_apart(masking_of, tokenizer):
    chunks = [np.arange(2000, 2000 + n) for n in (5, 1, 9)]
    special = tokenizer.special
    batch = collate(chunks, 30, special, masking_of(), 0.4, keyed_generator(0), 3, {"a": 1})
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
    assert restored[:21].tolist() == frame(chunks).tolist()
    assert (batch.input_ids[batch.masked_positions] == MASK).all()


def test_max_seqlen_covers_a_padding_longer_than_every_document(masking_of, tokenizer):
    chunk = np.array([2000])
    batch = collate([chunk], 16, tokenizer.special, masking_of(), 0.2, keyed_generator(0))
    assert batch.max_seqlen == 13
    assert batch.num_masked == 0
