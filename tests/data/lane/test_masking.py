"""What is masked, how often, and by what."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neobert_train.config.data_schema import MaskingConfig, MaskingStrategy, MaskingUnit
from neobert_train.config.derived import compute_masking_rate
from neobert_train.data.lane.collate import collate
from neobert_train.data.lane.masking import _find_span_starts, build_masking
from neobert_train.data.lane.randomness import keyed_generator

PAD, UNK, CLS, SEP, MASK = 0, 100, 101, 102, 103
SPECIAL = {PAD, UNK, CLS, SEP, MASK}


@pytest.fixture(scope="module")
def masking_of(tokenizer):
    """Build a masking rule of the shipped vocabulary."""
    return lambda **settings: build_masking(MaskingConfig(**settings), tokenizer)


@pytest.fixture(scope="module")
def continuing(tokenizer) -> set[int]:
    """Ids of the tokens that continue a word."""
    return {i for token, i in tokenizer.get_vocabulary().items() if token.startswith("##")}


def draw_ids(seed: int, num_tokens: int) -> np.ndarray:
    """Random text with about one special token in five."""
    generator = np.random.default_rng(seed)
    ids = generator.integers(1000, 30_522, num_tokens)
    where = generator.random(num_tokens) < 0.2
    ids[where] = generator.choice(sorted(SPECIAL), where.sum())
    return ids


def find_words(ids: np.ndarray, continuing: set[int]) -> list[list[int]]:
    """The positions of each word's tokens, found one token at a time."""
    words: list[list[int]] = []
    inside = False
    for position, token in enumerate(ids.tolist()):
        if token in SPECIAL:
            inside = False
        elif inside and token in continuing:
            words[-1].append(position)
        else:
            words.append([position])
            inside = True
    return words


def assert_binomial(successes: int, trials: int, probability: float):
    """Within five standard deviations of the expected number."""
    deviation = math.sqrt(trials * probability * (1 - probability))
    assert abs(successes - trials * probability) < 5 * deviation


@settings(deadline=None, max_examples=100)
@given(
    st.integers(0, 2**32), st.integers(1, 400), st.floats(0.01, 0.99),
    st.sampled_from(MaskingStrategy), st.sampled_from(MaskingUnit),
)  # fmt: skip
def test_the_rounded_share_of_text_tokens_is_predicted_and_nothing_else_changes(
    masking_of, seed, num_tokens, rate, strategy, unit
):
    ids = draw_ids(seed, num_tokens)
    original = ids.copy()
    masking = masking_of(strategy=strategy, unit=unit)
    masked, positions, labels = masking.apply(ids, keyed_generator(seed), rate)
    text = [i for i, token in enumerate(original.tolist()) if token not in SPECIAL]
    if unit is MaskingUnit.word:
        assert len(positions) <= round(rate * len(text))
    else:
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


@pytest.mark.parametrize("unit", MaskingUnit)
def test_every_special_token_of_the_vocabulary_is_exempt(masking_of, unit):
    ids = np.array(sorted(SPECIAL) * 50)
    masked, positions, labels = masking_of(unit=unit).apply(ids, keyed_generator(0), 0.99)
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


@pytest.mark.parametrize("unit", MaskingUnit)
@pytest.mark.parametrize("strategy", MaskingStrategy)
def test_the_same_key_masks_alike_and_another_differently(masking_of, strategy, unit):
    ids = draw_ids(1, 500)
    masking = masking_of(strategy=strategy, unit=unit)
    first = masking.apply(ids, keyed_generator(7, "mask", 3, 11), 0.2)
    again = masking.apply(ids, keyed_generator(7, "mask", 3, 11), 0.2)
    for one, other in zip(first, again, strict=True):
        np.testing.assert_array_equal(one, other)
    for key in [(8, "mask", 3, 11), (7, "mask", 4, 11), (7, "mask", 3, 12), (7, "mask", 31, 1)]:
        assert not np.array_equal(first[1], masking.apply(ids, keyed_generator(*key), 0.2)[1])


def test_a_batch_holds_documents_positions_and_padding_apart(masking_of, tokenizer):
    chunks = [np.arange(2000, 2000 + n) for n in (5, 1, 9)]
    special = tokenizer.special
    batch = collate(chunks, 30, special, masking_of(), 0.4, keyed_generator(0), 3, {"a": 1})
    assert batch.input_ids.dtype == batch.labels.dtype == batch.masked_positions.dtype == np.int64
    assert batch.position_ids.dtype == batch.cu_seqlens.dtype == np.int32
    assert batch.cu_seqlens.tolist() == [0, 7, 10, 21]
    assert batch.position_ids.tolist() == [*range(7), *range(3), *range(11), *[0] * 9]
    assert batch.input_ids[21:].tolist() == [PAD] * 9
    assert (batch.max_seqlen, batch.num_tokens, batch.num_targets) == (11, 21, 6)
    assert (batch.lane, batch.lane_state) == (3, {"a": 1})
    restored = batch.input_ids.copy()
    restored[batch.masked_positions] = batch.labels
    framed = [token for chunk in chunks for token in (CLS, *chunk.tolist(), SEP)]
    assert restored[:21].tolist() == framed
    assert (batch.input_ids[batch.masked_positions] == MASK).all()


def test_max_seqlen_covers_a_padding_longer_than_every_document(masking_of, tokenizer):
    chunk = np.array([2000])
    batch = collate([chunk], 16, tokenizer.special, masking_of(), 0.2, keyed_generator(0))
    assert batch.max_seqlen == 13
    assert batch.num_targets == 0


@settings(deadline=None, max_examples=200)
@given(st.integers(0, 2**32), st.integers(1, 400), st.floats(0.01, 0.99))
def test_words_are_predicted_whole_up_to_the_one_that_would_exceed_the_target(
    masking_of, continuing, seed, num_tokens, rate
):
    ids = draw_ids(seed, num_tokens)
    words = find_words(ids, continuing)
    masking = masking_of(unit=MaskingUnit.word)
    chosen = set(masking.apply(ids, keyed_generator(seed), rate)[1].tolist())
    left = [word for word in words if not chosen & set(word)]
    assert chosen == {i for word in words if word not in left for i in word}
    missing = round(rate * sum(map(len, words))) - len(chosen)
    assert 0 <= missing < max(map(len, left), default=1)


def test_every_word_is_as_likely_as_any_other_whatever_its_length(masking_of, continuing):
    ids = np.concatenate([[CLS], draw_ids(5, 4000), [SEP]])
    words = find_words(ids, continuing)
    masking = masking_of(unit=MaskingUnit.word)
    trials, rate = 400, 0.2
    hits = np.zeros(len(ids))
    for trial in range(trials):
        hits[masking.apply(ids, keyed_generator("words", trial), rate)[1]] += 1
    by_word = hits[[word[0] for word in words]]
    lengths = np.array([len(word) for word in words])
    assert (lengths > 1).sum() > 400
    expected = trials * rate
    statistic = ((by_word - expected) ** 2 / (expected * (1 - rate))).sum()
    assert abs(statistic - len(words)) < 5 * math.sqrt(2 * len(words))
    for length in (1, 2, 3):
        of_length = by_word[lengths == length]
        assert_binomial(int(of_length.sum()), trials * len(of_length), rate)


@settings(deadline=None, max_examples=200)
@given(st.integers(0, 2**32), st.integers(1, 400), st.floats(0.01, 0.99), st.floats(1, 20))
def test_spans_are_of_whole_words_but_for_the_last_one(
    masking_of, continuing, seed, num_tokens, rate, span_words
):
    ids = draw_ids(seed, num_tokens)
    masking = masking_of(unit=MaskingUnit.span, span_words=span_words)
    chosen = set(masking.apply(ids, keyed_generator(seed), rate)[1].tolist())
    words = find_words(ids, continuing)
    cut = [word for word in words if chosen & set(word) and not chosen >= set(word)]
    assert len(cut) <= 1
    for word in cut:
        assert set(word[: len(chosen & set(word))]) <= chosen


def test_a_span_ends_where_its_document_ends(masking_of):
    lengths = np.random.default_rng(0).integers(1, 60, 300)
    documents = [np.array([CLS, *[2000] * n, SEP]) for n in lengths]
    ids = np.concatenate(documents)
    masking = masking_of(unit=MaskingUnit.span, span_words=1e9)  # as long as there is text
    _, positions, _ = masking.apply(ids, keyed_generator("documents"), 0.3)
    ends = np.cumsum([len(document) for document in documents])
    first_words = ends - lengths - 1
    taken = np.array([(positions < end).sum() for end in ends])
    taken = np.diff(taken, prepend=0)
    cut = (taken > 0) & (taken < lengths)
    assert cut.sum() <= 1
    assert 50 < (taken == lengths).sum() < 150
    for first, count in zip(first_words[cut], taken[cut], strict=True):
        assert set(range(first, first + count)) <= set(positions.tolist())


def test_spans_of_one_word_are_words(masking_of):
    ids = np.full(20_000, 2000)
    masking = masking_of(unit=MaskingUnit.span, span_words=1.0)
    chosen = np.zeros(20_000, dtype=bool)
    chosen[masking.apply(ids, keyed_generator("single"), 0.3)[1]] = True
    assert_binomial(int((chosen[:-1] & chosen[1:]).sum()), 19_999, 0.09)


def test_the_length_of_spans_is_geometric(masking_of):
    mean, rate, num_words = 4.0, 0.05, 400_000
    ids = np.full(num_words, 2000)
    masking = masking_of(unit=MaskingUnit.span, span_words=mean)
    _, positions, _ = masking.apply(ids, keyed_generator("geometric"), rate)
    runs = np.diff(np.flatnonzero(np.diff(positions, prepend=-9, append=num_words + 9) > 1))
    # A run goes on with the odds of the span going on, or of the next one being drawn as well.
    going_on = 1 - (1 - rate) / mean
    deviation = math.sqrt(going_on) / (1 - going_on)
    assert abs(runs.mean() - 1 / (1 - going_on)) < 5 * deviation / math.sqrt(len(runs))
    for length in (1, 2, 5):
        share = going_on ** (length - 1) * (1 - going_on)
        assert_binomial(int((runs == length).sum()), len(runs), share)


def test_every_word_is_as_likely_as_any_other_to_be_in_a_span(masking_of):
    ids = np.array([CLS, *[2000] * 60, SEP] * 20)
    masking = masking_of(unit=MaskingUnit.span, span_words=5.0)
    trials, rate = 1000, 0.2
    hits = np.zeros((20, 62))
    for trial in range(trials):
        hits.reshape(-1)[masking.apply(ids, keyed_generator("spans", trial), rate)[1]] += 1
    assert hits[:, 0].sum() == hits[:, -1].sum() == 0
    for place in range(1, 61):
        assert_binomial(int(hits[:, place].sum()), 20 * trials, rate)


class AllTails:
    """A generator under which no coin ends a span."""

    def random(self, size: int, dtype: type) -> np.ndarray:
        return np.full(size, 0.999, dtype=dtype)


def test_no_span_is_longer_than_ten_times_the_mean():
    is_text = np.ones(100, dtype=bool)
    is_text[[40, 41]] = False
    starts = _find_span_starts(is_text, 1.5, AllTails())
    assert starts.tolist() == [0, 15, 30, 40, 41, 42, 57, 72, 87]


@pytest.mark.parametrize("unit", MaskingUnit)
def test_a_text_without_tokens_is_left_alone(masking_of, unit):
    for ids in (np.array([], dtype=np.int64), np.array([CLS, SEP])):
        masked, positions, labels = masking_of(unit=unit).apply(ids, keyed_generator(0), 0.5)
        np.testing.assert_array_equal(masked, ids)
        assert len(positions) == len(labels) == 0


def test_the_rate_goes_to_its_final_value_in_a_straight_line(make_config):
    config = make_config("masking.rate=0.3", "masking.final_rate=0.1", "masking.rate_steps=200")
    rates = [compute_masking_rate(config, step) for step in (0, 50, 100, 200, 201, 10_000)]
    assert rates == pytest.approx([0.3, 0.25, 0.2, 0.1, 0.1, 0.1])
    rising = make_config("masking.rate=0.1", "masking.final_rate=0.4", "trainer.max_steps=8")
    assert [compute_masking_rate(rising, step) for step in (0, 4, 8)] == pytest.approx(
        [0.1, 0.25, 0.4]
    )
    constant = make_config("masking.rate=0.15")
    assert {compute_masking_rate(constant, step) for step in (0, 1, 10_000)} == {0.15}
