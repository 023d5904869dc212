"""Special tokens that a document spells out, of models that have them as pieces of text."""

import hashlib
import json

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from neobert_train.tokenizers.text_tokenizer import TextTokenizer

SPECIALS = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
LETTERS = "abcdefghsmkpnu/<>▁"
TEXTS = ["a</s>b", "<s>gap</s>", "<mask>", "ab <pad> cd<mask>ef", "<unk>", "<s><s>", "a <s> b"]


def build_unigram() -> Tokenizer:
    """As XLM-RoBERTa's: special tokens are pieces, the mask and a last one are added to them."""
    pieces = [(token, 0.0) for token in SPECIALS[:4]] + [(letter, -3.0) for letter in LETTERS]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=3))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.add_special_tokens(SPECIALS)
    tokenizer.add_tokens(["gap"])
    return tokenizer


def build_words() -> Tokenizer:
    words = [*SPECIALS, "ab", "a", "b", *(f"{token}x" for token in SPECIALS)]
    vocabulary = {token: index for index, token in enumerate(words)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(SPECIALS)
    return tokenizer


def build_merges() -> Tokenizer:
    """Merges that come to special tokens, and on from there."""
    merges = [("<", "s"), ("<s", ">"), ("<s>", "a"), ("a", "b")]
    vocabulary = [*SPECIALS, *LETTERS, "<s", "<s>a", "ab"]
    tokenizer = Tokenizer(models.BPE({t: i for i, t in enumerate(vocabulary)}, merges))
    tokenizer.add_special_tokens(SPECIALS)
    return tokenizer


@pytest.mark.parametrize("build", [build_unigram, build_words, build_merges])
def test_no_text_gets_the_id_of_a_special_token(build):
    library, tokenizer = build(), TextTokenizer(build(), "ours")
    library.encode_special_tokens = True
    reserved = set(tokenizer.special_ids.tolist()) - {tokenizer.special.unk}
    reached = [set(library.encode(text).ids) & reserved for text in TEXTS]
    assert any(reached)  # so there is something to do
    for ids in tokenizer.encode(TEXTS):
        assert not set(ids.tolist()) & reserved


@pytest.mark.parametrize("build", [build_unigram, build_words, build_merges])
def test_all_other_texts_keep_their_ids_and_all_ids_their_spelling(build):
    library, tokenizer = build(), TextTokenizer(build(), "ours")
    library.encode_special_tokens = True
    texts = ["abba", "a b gap", "ab ab", "< / >", "hug", "", "s", "gapgap"]
    expected = [library.encode(text, add_special_tokens=False).ids for text in texts]
    assert [ids.tolist() for ids in tokenizer.encode(texts)] == expected
    assert tokenizer.get_vocabulary() == library.get_vocab(with_added_tokens=True)
    assert tokenizer.decode(tokenizer.special_ids.tolist()).split() == sorted(
        SPECIALS, key=library.token_to_id
    )


def test_spelled_tokens_come_back_as_the_text_they_are():
    tokenizer = TextTokenizer(build_unigram(), "ours")
    [ids] = tokenizer.encode(["a</s>b"])
    assert [tokenizer.decode([index]) for index in ids.tolist()[1:]] == [
        "a",
        "<",
        "/",
        "s",
        ">",
        "b",
    ]
    [ids] = tokenizer.encode(["<unk>"])
    assert not np.isin(ids, [tokenizer.special.unk]).any()


def test_shards_of_a_tokenizer_that_took_them_for_special_are_those_of_another(tokenizer):
    library = build_unigram()
    library.encode_special_tokens = True
    canonical = json.dumps(json.loads(library.to_str()), sort_keys=True).encode()
    assert TextTokenizer(library, "ours").fingerprint != hashlib.sha256(canonical).hexdigest()
    # Where nothing is hidden, shards that are there stay what they are.
    canonical = json.dumps(json.loads(tokenizer.to_json()), sort_keys=True).encode()
    assert tokenizer.fingerprint == hashlib.sha256(canonical).hexdigest()
