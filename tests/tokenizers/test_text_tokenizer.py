"""Tokenisation, the chunks of a document, and the folder that an export ships."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer, BertTokenizer

from neobert_train.data.lane.encoding import split_document
from neobert_train.data.sources import EMBEDDED_TEXTS
from neobert_train.tokenizers.loading import SHIPPED_TOKENIZER, load_tokenizer
from neobert_train.tokenizers.special_tokens import SpecialTokens
from neobert_train.tokenizers.text_tokenizer import TextTokenizer

SPECIAL = SpecialTokens(pad=0, unk=100, cls=101, sep=102, mask=103)
ROLES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


@pytest.fixture(scope="module")
def reference() -> BertTokenizer:
    """The tokenizer that transformers builds by itself from the vocabulary alone."""
    content = json.loads((SHIPPED_TOKENIZER / "tokenizer.json").read_text(encoding="utf-8"))
    return BertTokenizer(vocab=content["model"]["vocab"])


@pytest.fixture(scope="module")
def speeches() -> list[str]:
    return pq.read_table(EMBEDDED_TEXTS).column("content").to_pylist()[:6]


def encode_with(reference: BertTokenizer, texts: list[str]) -> list[list[int]]:
    return [reference(text, add_special_tokens=False)["input_ids"] for text in texts]


def build_word_tokenizer(words: list[str], first_word_id: int = 5, specials=ROLES) -> Tokenizer:
    """A tokenizer of whole words whose file says nothing of [CLS] and [SEP]."""
    vocabulary = {token: index for index, token in enumerate(specials)}
    vocabulary |= {word: first_word_id + index for index, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(specials)
    return tokenizer


def test_ids_equal_those_of_transformers_on_speeches(tokenizer, reference, speeches):
    ours = tokenizer.encode(speeches)
    assert [ids.tolist() for ids in ours] == encode_with(reference, speeches)
    assert all(ids.dtype == np.int32 for ids in ours)


@settings(deadline=None, max_examples=150)
@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=40), max_size=4))
def test_ids_equal_those_of_transformers_on_any_unicode(tokenizer, reference, texts):
    assert [ids.tolist() for ids in tokenizer.encode(texts)] == encode_with(reference, texts)


def test_the_vocabulary_is_that_of_bert(tokenizer):
    assert tokenizer.vocab_size == 30_522
    assert tokenizer.special == SPECIAL
    assert tokenizer.special_ids.tolist() == [0, 100, 101, 102, 103]


@pytest.mark.parametrize("token", ["[MASK]", "[CLS]", "[SEP]", "[PAD]", "[UNK]"])
def test_a_special_token_spelled_in_a_document_is_text(tokenizer, token):
    [ids] = tokenizer.encode([f"write {token} here"])
    assert not set(ids.tolist()) & set(tokenizer.special_ids.tolist())
    assert tokenizer.decode(ids).replace(" ", "") == f"write{token.lower()}here"


@settings(deadline=None, max_examples=100)
@given(st.integers(0, 300), st.integers(8, 64))
def test_chunks_rejoin_to_the_document(num_tokens, context_length):
    ids = np.arange(1000, 1000 + num_tokens)
    chunks = split_document(ids, context_length)
    assert len(chunks) == -(-num_tokens // (context_length - 2))
    assert all(1 <= len(chunk) <= context_length - 2 for chunk in chunks)
    assert all(len(chunk) == context_length - 2 for chunk in chunks[:-1])
    assert [token for chunk in chunks for token in chunk.tolist()] == ids.tolist()


def test_a_document_of_ten_megabytes_tokenises_as_its_parts_do(tokenizer):
    sentence = "The quick brown fox jumps over the lazy dog, again and again. "
    times = 10_000_000 // len(sentence) + 1
    [once], [whole] = tokenizer.encode([sentence]), tokenizer.encode([sentence * times])
    np.testing.assert_array_equal(whole, np.tile(once, times))


def test_a_saved_folder_loads_with_transformers_and_adds_cls_and_sep(tokenizer, tmp_path):
    folder = tmp_path / "deep" / "tokenizer"
    tokenizer.save(folder, max_length=4096)
    loaded = AutoTokenizer.from_pretrained(folder)
    encoded = loaded("Hello, world!")
    assert set(encoded) == {"input_ids", "attention_mask"}
    assert encoded["input_ids"] == [101, 7592, 1010, 2088, 999, 102]
    assert loaded.model_max_length == 4096
    assert (loaded.pad_token_id, loaded.mask_token_id, loaded.unk_token_id) == (0, 103, 100)
    assert loaded("The capital is [MASK].")["input_ids"][4] == loaded.mask_token_id
    padded = loaded(["one", "one two three"], padding=True)
    assert padded["attention_mask"] == [[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]


def test_a_saved_folder_loads_again_here_and_gives_the_same_ids(tokenizer, speeches, tmp_path):
    tokenizer.save(tmp_path, max_length=128)
    again = load_tokenizer(str(tmp_path))
    for ours, theirs in zip(tokenizer.encode(speeches), again.encode(speeches), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert load_tokenizer(str(tmp_path / "tokenizer.json")).special == SPECIAL


def test_truncation_and_padding_set_in_the_file_are_dropped(tmp_path):
    truncating = Tokenizer.from_file(str(SHIPPED_TOKENIZER / "tokenizer.json"))
    truncating.enable_truncation(4)
    truncating.enable_padding(length=4)
    truncating.save(str(tmp_path / "tokenizer.json"))
    loaded = load_tokenizer(str(tmp_path))
    assert [len(ids) for ids in loaded.encode(["a", "a b c d e f g"])] == [1, 7]
    loaded.save(tmp_path / "saved", max_length=64)
    assert len(AutoTokenizer.from_pretrained(tmp_path / "saved")("a b c d e f g").input_ids) == 9


def test_a_tokenizer_without_post_processor_is_saved_with_cls_and_sep(tmp_path):
    tokenizer = TextTokenizer(build_word_tokenizer(["hello", "world"]), "words")
    tokenizer.save(tmp_path, max_length=64)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert loaded.convert_ids_to_tokens(loaded("hello world")["input_ids"]) == [
        "[CLS]", "hello", "world", "[SEP]"
    ]  # fmt: skip


def test_every_id_lies_below_vocab_size_when_the_ids_have_gaps():
    tokenizer = TextTokenizer(build_word_tokenizer(["hello"], first_word_id=40), "words")
    [ids] = tokenizer.encode(["hello"])
    assert ids.tolist() == [40]
    assert tokenizer.vocab_size > 40


def test_the_spellings_of_other_families_are_found():
    specials = ["<pad>", "<unk>", "<s>", "</s>", "<mask>"]
    tokenizer = build_word_tokenizer(["hello"], specials=specials)
    tokenizer.model.unk_token = "<unk>"
    assert TextTokenizer(tokenizer, "words").special == SpecialTokens(0, 1, 2, 3, 4)


def test_a_tokenizer_gives_the_same_ids_as_the_one_it_was_saved_as(tokenizer, tmp_path):
    tokenizer.save(tmp_path / "saved", 512)
    saved = load_tokenizer(str(tmp_path / "saved"))
    assert saved.gives_same_ids_as(tokenizer)
    definition = json.loads((tmp_path / "saved" / "tokenizer.json").read_text())
    definition["normalizer"]["lowercase"] = False
    (tmp_path / "saved" / "tokenizer.json").write_text(json.dumps(definition))
    assert not load_tokenizer(str(tmp_path / "saved")).gives_same_ids_as(tokenizer)
