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

from neobert_train.config.data_schema import DataConfig, MaskingConfig, MixtureSourceConfig
from neobert_train.config.schema import BatchConfig, EvaluationConfig, TrainConfig
from neobert_train.data import heldout
from neobert_train.data.heldout import (
    CorpusSample,
    build_evaluation_batches,
    compute_entropy,
    sample_corpus,
    sample_source,
)
from neobert_train.data.lane.admission import Admission, is_heldout
from neobert_train.data.lane.lane import Lane, LaneState
from neobert_train.data.sources import EMBEDDED_TEXTS, Unit
from neobert_train.data.sources.parquet import ParquetRows
from neobert_train.data.sources.text import LineRanges, TextLayout
from neobert_train.errors import InputError
from neobert_train.storage.stored_files import StoredFile
from neobert_train.tokenizers.loading import SHIPPED_TOKENIZER

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
def reference() -> BertTokenizer:
    content = json.loads((SHIPPED_TOKENIZER / "tokenizer.json").read_text(encoding="utf-8"))
    return BertTokenizer(vocab=content["model"]["vocab"])


def make_text(number: int, num_words: int = 12) -> str:
    """Distinct lower-case words, so that decoded tokens give the text back."""
    digits = [WORDS[int(digit)] for digit in f"{number:04d}"]
    return " ".join((digits * num_words)[: max(4, num_words)])


def write_units(path, texts, parts=1):
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return Unit(StoredFile(str(path)), LineRanges(TextLayout("jsonl", "text"))).divide(parts)


def sample(units, tokenizer, fraction, max_tokens=10**9, scan_documents=10**9):
    admission = Admission(heldout_fraction=fraction)
    return sample_source(units, admission, tokenizer, max_tokens, scan_documents)


def decode(tokenizer, documents) -> list[str]:
    return [tokenizer.decode(ids) for ids in documents]


def restore_chunks(batch) -> list[list[int]]:
    """The documents of a batch with the masked tokens put back."""
    ids = np.array(batch.input_ids)
    ids[np.array(batch.masked_positions)] = batch.labels
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
        found = sample(units, tokenizer, 0.2)
        assert sorted(decode(tokenizer, found.heldout)) == wanted
        assert found.num_documents == 300


def test_a_sample_stops_at_its_documents_or_with_enough_held_out_and_counted_tokens(
    tokenizer, tmp_path, monkeypatch
):
    monkeypatch.setattr(heldout, "_MOST_COUNTED_TOKENS", 3000)  # of about 8,000 here
    units = write_units(tmp_path / "a.jsonl", [make_text(n) for n in range(640)], 4)
    few = sample(units, tokenizer, 0.5, 100)
    tokens = [len(ids) for ids in few.heldout]
    assert sum(tokens[:-1]) < 100 <= sum(tokens)
    assert 3000 // 12 <= few.num_documents < 640
    assert sample(units, tokenizer, 0.5, scan_documents=128).num_documents == 128


def test_a_sample_passes_over_empty_bad_and_undecodable_documents(tokenizer, tmp_path):
    file = tmp_path / "a.jsonl"
    lines = ['{"text": "river stone"}', '{"text": " "}', "{broken", '{"text": "\\ud800 window"}',
             '{"text": null}', '{"text": "garden"}']  # fmt: skip
    file.write_text("\n".join(lines) + "\n")
    units = [Unit(StoredFile(str(file)), LineRanges(TextLayout("jsonl", "text")))]
    found = sample(units, tokenizer, 0.999999)
    assert decode(tokenizer, found.heldout) == ["river stone", "garden"]
    assert found.num_documents == 2


@pytest.mark.parametrize("shuffle_window", [1, 16])
def test_training_never_meets_a_held_out_document_nor_its_copies(
    tokenizer, reference, tmp_path, shuffle_window
):
    originals = [make_text(n, num_words=8 + n % 60) for n in range(60)]
    copies = [originals[n % 60] for n in range(0, 90, 2)]
    units = write_units(tmp_path / "a.jsonl", [*originals, *copies], parts=5)
    kept_back = set(decode(tokenizer, sample(units, tokenizer, 0.3).heldout))
    assert 5 < len(kept_back) < 40
    config = TrainConfig(
        batch=BatchConfig(256, 128, 32),
        data=DataConfig(heldout_fraction=0.3, shuffle_window=shuffle_window, lookahead_documents=8),
    )
    trained = collections.Counter()
    for number in range(2):
        lane = Lane(config, {"corpus": units}, tokenizer, number)
        for batch in lane.iter_batches(LaneState()):
            trained.update(reference.decode(chunk[1:-1]) for chunk in restore_chunks(batch))
            if batch.lane_state["streams"]["corpus"]["position"][0] >= 4:
                break

    def cut(text):
        words = text.split()
        return {" ".join(words[start : start + 30]) for start in range(0, len(words), 30)}

    kept = set().union(*map(cut, set(originals) - kept_back))
    held = set().union(*map(cut, kept_back))
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


def sample_of(config, units, tokenizer):
    config.evaluation = EvaluationConfig(max_tokens=10**9, scan_documents=10**9)
    return sample_corpus(config, units, tokenizer)


def count_with(reference, texts) -> dict[int, float]:
    counts = collections.Counter(
        token for text in texts for token in reference(text, add_special_tokens=False)["input_ids"]
    )
    return {token: count / counts.total() for token, count in counts.items()}


def compute_plain_entropy(shares: dict[int, float]) -> float:
    return -sum(share * math.log(share) for share in shares.values())


def test_sampled_entropy_equals_a_count_of_transformers_tokens(tokenizer, reference, tmp_path):
    texts = [make_text(n, 4 + n % 50) for n in range(200)]
    units = {"corpus": write_units(tmp_path / "a.jsonl", texts, 3)}
    found = sample_of(TrainConfig(data=DataConfig(heldout_fraction=0.1)), units, tokenizer)
    expected = compute_plain_entropy(count_with(reference, texts))
    assert found.unigram_entropy == pytest.approx(expected, rel=1e-12)


def test_a_sample_of_a_mixture_has_the_weights_and_each_document_once(
    tokenizer, reference, tmp_path
):
    one = [make_text(n, 4 + n % 50) for n in range(100)]
    other = [make_text(n, 9) for n in range(50, 300)]
    units = {
        "one": write_units(tmp_path / "a.jsonl", one, 2),
        "other": write_units(tmp_path / "b.jsonl", other, 2),
        "again": write_units(tmp_path / "c.jsonl", one, 2),
        "later": write_units(tmp_path / "d.jsonl", ["a text of a later step"], 1),
    }
    entries = {
        "one": MixtureSourceConfig(weight=1.0),
        "other": MixtureSourceConfig(weight=2.0),
        "again": MixtureSourceConfig(weight=1.0, min_tokens=20),
        "later": MixtureSourceConfig(weight=0.0, weight_from={5: 1.0}),
    }
    config = TrainConfig(data=DataConfig(heldout_fraction=0.2, mixture=entries))
    found = sample_of(config, units, tokenizer)
    wanted = {text for text in [*one, *other] if is_heldout(text, 0.2)}
    assert sorted(decode(tokenizer, found.heldout)) == sorted(wanted)
    long = [text for text in one if len(text.split()) >= 20]
    shares = collections.Counter()
    for weight, texts in [(0.25, one), (0.5, other), (0.25, long)]:
        for token, share in count_with(reference, texts).items():
            shares[token] += weight * share
    assert found.unigram_entropy == pytest.approx(compute_plain_entropy(shares), rel=1e-9)


def test_the_share_of_a_source_of_the_heldout_tokens_is_its_weight(tokenizer, tmp_path):
    texts = [make_text(n, 20) for n in range(600)]
    units = {name: write_units(tmp_path / f"{name}.jsonl", texts, 1) for name in ("a", "b")}
    units["b"] = write_units(tmp_path / "b.jsonl", [f"other {text}" for text in texts], 1)
    entries = {"a": MixtureSourceConfig(weight=1.0), "b": MixtureSourceConfig(weight=3.0)}
    config = TrainConfig(data=DataConfig(heldout_fraction=0.5, mixture=entries))
    config.evaluation = EvaluationConfig(max_tokens=1000)
    documents = decode(tokenizer, sample_corpus(config, units, tokenizer).heldout)
    tokens = collections.Counter(text.startswith("other") for text in documents)
    assert tokens[False] == pytest.approx(250 / 20, abs=1)
    assert tokens[True] == pytest.approx(750 / 21, abs=1)


def test_entropy_of_the_shipped_speeches(tokenizer):
    units = {"corpus": [Unit(StoredFile(str(EMBEDDED_TEXTS)), ParquetRows("content"))]}
    found = sample_of(TrainConfig(data=DataConfig(heldout_fraction=0.08)), units, tokenizer)
    assert found.num_documents == pq.read_metadata(EMBEDDED_TEXTS).num_rows == 74
    assert found.unigram_entropy == pytest.approx(6.478, abs=1e-3)


def test_a_sample_holds_and_counts_only_documents_within_the_bounds(tokenizer, reference, tmp_path):
    texts = [make_text(n, 4 + n % 20) for n in range(300)]
    units = write_units(tmp_path / "a.jsonl", texts, 3)
    lengths = {text: len(text.split()) for text in texts}  # a token a word
    admission = Admission(
        min_characters=40, max_characters=110, min_tokens=9, max_tokens=15, heldout_fraction=0.5
    )
    found = sample_source(units, admission, tokenizer, 10**9, 10**9)
    readable = [text for text in texts if 40 <= len(text) <= 110]
    kept = [text for text in readable if 9 <= lengths[text] <= 15]
    assert {9, 15} <= {lengths[text] for text in kept}
    assert len(kept) < len(readable) < len(texts)
    wanted = sorted(text for text in kept if is_heldout(text, 0.5))
    assert sorted(decode(tokenizer, found.heldout)) == wanted
    assert found.num_documents == len(readable)
    counts = {n: count for n, count in enumerate(found.counts.tolist()) if count}
    total = sum(counts.values())
    assert {n: count / total for n, count in counts.items()} == count_with(reference, kept)


def build_evaluation(tokenizer, documents, max_tokens=10**9, seed=0):
    ids = [ids.tolist() for ids in tokenizer.encode(documents)]
    return build_evaluation_batches(ids, tokenizer, MaskingConfig(), 32, 128, max_tokens, seed)


def test_evaluation_batches_hold_every_document_once(tokenizer):
    documents = [make_text(n, 4 + n % 50) for n in range(100)] + ["", "\u200b"]
    batches = build_evaluation(tokenizer, documents)
    found = collections.Counter(tuple(c) for batch in batches for c in restore_chunks(batch))
    expected = collections.Counter()
    for ids in tokenizer.encode(documents):
        for start in range(0, len(ids), 30):
            expected[(101, *ids[start : start + 30].tolist(), 102)] += 1
    assert found == expected
    for batch in batches:
        assert batch.num_tokens == len(batch.input_ids) <= 128
        assert batch.num_targets == round(
            0.2 * (batch.num_tokens - 2 * (len(batch.cu_seqlens) - 1))
        )


def test_evaluation_batches_of_one_size_predict_the_same_tokens(tokenizer):
    documents = [list(range(2000, 2000 + length)) for length in (5, 70, 20, 30, 9)]
    rest = tokenizer, MaskingConfig(), 32, 128, 10_000, 3
    plain, padded = (build_evaluation_batches(documents, *rest, pads=p) for p in (False, True))
    assert {len(batch.input_ids) for batch in padded} == {128}
    assert {len(batch.input_ids) for batch in plain} != {128}
    for one, other in zip(plain, padded, strict=True):
        assert one.num_tokens == other.num_tokens
        assert one.masked_positions.equal(other.masked_positions)
        assert one.labels.equal(other.labels)
        assert one.cu_seqlens.equal(other.cu_seqlens)


def test_evaluation_batches_are_alike_each_time_and_masked_by_the_seed(tokenizer):
    documents = [make_text(n) for n in range(40)]
    first, again, other = (build_evaluation(tokenizer, documents, seed=s) for s in (1, 1, 2))
    for a, b in zip(first, again, strict=True):
        assert a.input_ids.tolist() == b.input_ids.tolist()
        assert a.labels.tolist() == b.labels.tolist()
    assert any(
        a.masked_positions.tolist() != b.masked_positions.tolist()
        for a, b in zip(first, other, strict=True)
    )


def test_evaluation_ends_with_the_chunk_that_reaches_the_tokens_wanted(tokenizer):
    documents = [make_text(n, 10) for n in range(40)]
    batches = build_evaluation(tokenizer, documents, max_tokens=100)
    assert sum(batch.num_tokens for batch in batches) == 9 * 12
    assert build_evaluation(tokenizer, [], max_tokens=100) == []


def test_the_file_of_an_earlier_version_is_read(tmp_path):
    file = tmp_path / "heldout.json"
    file.write_text('{"heldout": [[7, 8], [9]], "unigram_entropy": 6.5, "num_documents": 3}')
    assert CorpusSample.load(file, vocab_size=10) == CorpusSample([[7, 8], [9]], 6.5, 3)
    file.write_text('{"unigram_entropy": 6.5, "num_documents": 3}')
    with pytest.raises(InputError, match=r"holds no documents.*remove it"):
        CorpusSample.load(file, vocab_size=10)
    file.write_text('{"heldout": [[7], []]}')
    with pytest.raises(InputError, match=r"or empty ones.*remove it"):
        CorpusSample.load(file, vocab_size=10)


def test_of_a_very_long_document_no_more_is_kept_than_is_evaluated_on(
    tokenizer, tmp_path, make_config, monkeypatch
):
    monkeypatch.setattr(heldout, "_MOST_KEPT_TOKENS", 100)
    units = {"corpus": write_units(tmp_path / "a.jsonl", [make_text(n, 5000) for n in range(4)])}
    config = make_config("data.heldout_fraction=0.999999", "evaluation.max_tokens=2000")
    kept = sample_corpus(config, units, tokenizer).heldout
    assert [len(ids) for ids in kept] == [2000 + config.batch.context_length]
    whole = tokenizer.encode([make_text(n, 5000) for n in range(4)])
    assert [ids for ids in whole if ids.tolist()[: len(kept[0])] == kept[0]]
