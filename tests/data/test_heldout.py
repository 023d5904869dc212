"""Held-out documents: their share, that training never meets them, and the entropy beside them."""

import collections
import itertools
import json
import math

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import BertTokenizer

from neobert_train.config.data_schema import BadRecordPolicy, MaskingConfig
from neobert_train.data import heldout
from neobert_train.data.documents import LaneOrder
from neobert_train.data.heldout import (
    build_evaluation_batches,
    compute_entropy,
    is_heldout,
    sample_corpus,
)
from neobert_train.data.lanes import Lane, LaneState
from neobert_train.data.masking import build_masking
from neobert_train.data.sources import EMBEDDED_TEXTS
from neobert_train.data.sources.parquet import list_parquet_units
from neobert_train.data.sources.text import list_text_units
from neobert_train.data.tokenization import SHIPPED_TOKENIZER

WORDS = [
    "river",
    "stone",
    "window",
    "garden",
    "music",
    "winter",
    "letter",
    "bridge",
    "candle",
    "forest",
]


@pytest.fixture(scope="module")
def masking(tokenizer):
    return build_masking(MaskingConfig(), tokenizer)


@pytest.fixture(scope="module")
def reference() -> BertTokenizer:
    content = json.loads((SHIPPED_TOKENIZER / "tokenizer.json").read_text(encoding="utf-8"))
    return BertTokenizer(vocab=content["model"]["vocab"])


def make_text(number: int, num_words: int = 12) -> str:
    """Distinct lower-case words, so that decoded tokens give the text back."""
    digits = [WORDS[int(digit)] for digit in f"{number:04d}"]
    return " ".join((digits * num_words)[: max(4, num_words)])


def write_units(path, texts, parts=1):
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return list_text_units(str(path), "jsonl", "text", parts)


def restore_chunks(batch) -> list[list[int]]:
    """The documents of a batch with the masked tokens put back."""
    ids = batch.input_ids.clone()
    ids[batch.masked_positions] = batch.labels
    bounds = batch.cu_seqlens.tolist()
    return [ids[a:b].tolist() for a, b in itertools.pairwise(bounds)]


@pytest.mark.parametrize("fraction", [0.002, 0.08, 0.5])
def test_the_share_of_held_out_documents_is_the_fraction(fraction):
    num_documents = 20_000
    held = sum(is_heldout(f"document number {n}", fraction) for n in range(num_documents))
    deviation = math.sqrt(num_documents * fraction * (1 - fraction))
    assert abs(held - num_documents * fraction) < 4 * deviation


@settings(deadline=None, max_examples=100)
@given(st.text(st.characters(exclude_categories=["Cs"])), st.floats(0, 0.99), st.floats(0, 0.99))
def test_a_larger_fraction_keeps_what_a_smaller_one_holds_out(text, one, other):
    assert not is_heldout(text, 0.0)
    assert is_heldout(text, max(one, other)) or not is_heldout(text, min(one, other))


def test_a_sample_holds_the_held_out_documents_of_every_order_and_layout(tokenizer, tmp_path):
    texts = [make_text(n) for n in range(300)]
    wanted = sorted(text for text in texts if is_heldout(text, 0.2))
    shuffled = [texts[i] for i in np.random.default_rng(0).permutation(300)]
    for name, order, parts in [("a", texts, 1), ("b", shuffled, 1), ("c", shuffled, 7)]:
        units = write_units(tmp_path / f"{name}.jsonl", order, parts)
        sample = sample_corpus(units, tokenizer, 0.2, 10**9, 10**9)
        assert sorted(sample.heldout) == wanted
        assert sample.num_documents == 300


def test_a_sample_stops_at_its_documents_or_with_enough_held_out_and_counted_tokens(
    tokenizer, tmp_path, monkeypatch
):
    monkeypatch.setattr(heldout, "_MOST_COUNTED_TOKENS", 3000)  # of about 8,000 here
    units = write_units(tmp_path / "a.jsonl", [make_text(n) for n in range(640)], 4)
    few = sample_corpus(units, tokenizer, 0.5, 100, 10**9)
    tokens = [len(ids) for ids in tokenizer.encode(few.heldout)]
    assert sum(tokens[:-1]) < 100 <= sum(tokens)
    assert 3000 // 12 <= few.num_documents < 640
    assert sample_corpus(units, tokenizer, 0.5, 10**9, 128).num_documents == 128


def test_a_sample_passes_over_empty_bad_and_undecodable_documents(tokenizer, tmp_path):
    file = tmp_path / "a.jsonl"
    lines = ['{"text": "river stone"}', '{"text": " "}', "{broken", '{"text": "\\ud800 window"}',
             '{"text": null}', '{"text": "garden"}']  # fmt: skip
    file.write_text("\n".join(lines) + "\n")
    units = list_text_units(str(file), "jsonl", "text", 1)
    sample = sample_corpus(units, tokenizer, 0.999999, 10**9, 10**9)
    assert (sample.heldout, sample.num_documents) == (["river stone", "garden"], 2)


@pytest.mark.parametrize("shuffle_window", [1, 16])
def test_training_never_meets_a_held_out_document_nor_its_copies(
    tokenizer, masking, reference, tmp_path, shuffle_window
):
    originals = [make_text(n, num_words=8 + n % 60) for n in range(60)]
    copies = [originals[n % 60] for n in range(0, 90, 2)]
    units = write_units(tmp_path / "a.jsonl", [*originals, *copies], parts=5)
    sample = sample_corpus(units, tokenizer, 0.3, 10**9, 10**9)
    assert 5 < len(set(sample.heldout)) < 40
    trained = collections.Counter()
    for number in range(2):
        order = LaneOrder(units, number, 2, 0, shuffle_window)
        lane = Lane(order, tokenizer, masking, 32, 128, 8, 0.3, BadRecordPolicy.stop)
        for batch in lane.iter_batches(LaneState()):
            trained.update(reference.decode(chunk[1:-1]) for chunk in restore_chunks(batch))
            if batch.lane_state["position"][0] >= 4:
                break

    def cut(text):
        words = text.split()
        return {" ".join(words[start : start + 30]) for start in range(0, len(words), 30)}

    kept = set().union(*map(cut, set(originals) - set(sample.heldout)))
    held = set().union(*map(cut, sample.heldout))
    assert not held & kept, "the pieces must tell the two apart"
    assert set(trained) == kept
    assert min(trained.values()) >= 4


def test_entropy_equals_the_formula():
    counts = [5, 0, 1, 3, 0, 1]
    expected = -sum(n / 10 * math.log(n / 10) for n in counts if n)
    assert compute_entropy(np.array(counts)) == pytest.approx(expected, rel=1e-12)
    assert compute_entropy(np.array([7])) == 0
    assert compute_entropy(np.full(30_522, 9)) == pytest.approx(math.log(30_522), rel=1e-12)
    assert math.isnan(compute_entropy(np.zeros(4, dtype=np.int64)))


def test_sampled_entropy_equals_a_count_of_transformers_tokens(tokenizer, reference, tmp_path):
    texts = [make_text(n, 4 + n % 50) for n in range(200)]
    sample = sample_corpus(
        write_units(tmp_path / "a.jsonl", texts, 3), tokenizer, 0.1, 10**9, 10**9
    )
    counts = collections.Counter(
        token for text in texts for token in reference(text, add_special_tokens=False)["input_ids"]
    )
    total = counts.total()
    expected = -sum(n / total * math.log(n / total) for n in counts.values())
    assert sample.unigram_entropy == pytest.approx(expected, rel=1e-12)


def test_entropy_of_the_shipped_speeches(tokenizer):
    units = list_parquet_units(str(EMBEDDED_TEXTS), "content", 8)
    sample = sample_corpus(units, tokenizer, 0.08, 10**9, 10**9)
    assert sample.num_documents == pq.read_metadata(EMBEDDED_TEXTS).num_rows == 74
    assert sample.unigram_entropy == pytest.approx(6.478, abs=1e-3)


def build_evaluation(tokenizer, masking, documents, max_tokens=10**9, seed=0):
    return build_evaluation_batches(documents, tokenizer, masking, 32, 128, max_tokens, seed)


def test_evaluation_batches_hold_every_document_once(tokenizer, masking):
    documents = [make_text(n, 4 + n % 50) for n in range(100)] + ["", "\u200b"]
    batches = build_evaluation(tokenizer, masking, documents)
    found = collections.Counter(tuple(c) for batch in batches for c in restore_chunks(batch))
    expected = collections.Counter()
    for ids in tokenizer.encode(documents):
        for start in range(0, len(ids), 30):
            expected[(101, *ids[start : start + 30].tolist(), 102)] += 1
    assert found == expected
    for batch in batches:
        assert batch.num_tokens == len(batch.input_ids) <= 128
        assert batch.num_masked == round(0.2 * (batch.num_tokens - 2 * (len(batch.cu_seqlens) - 1)))


def test_evaluation_batches_are_alike_each_time_and_masked_by_the_seed(tokenizer, masking):
    documents = [make_text(n) for n in range(40)]
    first, again, other = (
        build_evaluation(tokenizer, masking, documents, seed=s) for s in (1, 1, 2)
    )
    for a, b in zip(first, again, strict=True):
        assert a.input_ids.tolist() == b.input_ids.tolist()
        assert a.labels.tolist() == b.labels.tolist()
    assert any(
        a.masked_positions.tolist() != b.masked_positions.tolist()
        for a, b in zip(first, other, strict=True)
    )


def test_evaluation_ends_with_the_chunk_that_reaches_the_tokens_wanted(tokenizer, masking):
    documents = [make_text(n, 10) for n in range(40)]
    batches = build_evaluation(tokenizer, masking, documents, max_tokens=100)
    assert sum(batch.num_tokens for batch in batches) == 9 * 12
    assert build_evaluation(tokenizer, masking, [], max_tokens=100) == []
