"""Where words begin, against what the tokenizers library and plain regular expressions say."""

import itertools
import re

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from neobert_train.config.data_schema import MaskingConfig, MaskingUnit
from neobert_train.data.lane.masking import build_masking
from neobert_train.data.lane.words import build_word_starts
from neobert_train.data.sources import EMBEDDED_TEXTS
from neobert_train.errors import InputError
from neobert_train.tokenizers.loading import SHIPPED_TOKENIZER
from neobert_train.tokenizers.text_tokenizer import TextTokenizer

ROLES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
# Without an apostrophe: byte-level tokenizers have tokens such as 's.
ALPHABET = "abcdefghijklmnopqrstuvwxyzé123.,!-_“"
WORDS = re.compile(r"[^\W_]+|(?:[^\w\s]|_)+")


@pytest.fixture(scope="module")
def speeches() -> list[str]:
    return pq.read_table(EMBEDDED_TEXTS).column("content").to_pylist()[:6]


@pytest.fixture(scope="module")
def reference() -> Tokenizer:
    tokenizer = Tokenizer.from_file(str(SHIPPED_TOKENIZER / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.encode_special_tokens = True
    return tokenizer


def train(tokenizer: Tokenizer, trainer_type: type, texts: list[str], **settings) -> TextTokenizer:
    trainer = trainer_type(special_tokens=ROLES, show_progress=False, **settings)
    tokenizer.train_from_iterator([*texts, " ".join(ALPHABET)], trainer)
    return TextTokenizer(tokenizer, "trained")


def train_byte_level(texts: list[str], pre_tokenizer=None) -> TextTokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizer or pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    # Repeated, so that the bytes of a quotation mark become one token.
    texts = [*texts, "“ “a" * 200]
    return train(tokenizer, trainers.BpeTrainer, texts, vocab_size=700, initial_alphabet=alphabet)


def train_unigram(texts: list[str]) -> TextTokenizer:
    tokenizer = Tokenizer(models.Unigram())
    # SentencePiece keeps punctuation apart from letters, as does this.
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Metaspace(), pre_tokenizers.Punctuation()]
    )
    tokenizer.decoder = decoders.Metaspace()
    return train(tokenizer, trainers.UnigramTrainer, texts, vocab_size=700, unk_token="[UNK]")


def build_byte_fallback() -> TextTokenizer:
    """Like Llama 2's: the normalizer sets the markers, and unknown characters become bytes."""
    tokens = [*ROLES, *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *ALPHABET]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocabulary, [], byte_fallback=True, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    return TextTokenizer(tokenizer, "bytes")


KINDS = {"byte-level": train_byte_level, "unigram": train_unigram}


@pytest.fixture(scope="module", params=KINDS)
def trained(request, speeches) -> TextTokenizer:
    return KINDS[request.param](speeches)


def split_into_words(tokenizer: TextTokenizer, text: str) -> list[str]:
    """The text of each word that the tokens of `text` are divided into."""
    [ids] = tokenizer.encode([text])
    starts = np.flatnonzero(build_word_starts(tokenizer).find(ids))
    return [tokenizer.decode(part.tolist()).strip() for part in np.split(ids, starts)[1:]]


def find_starts(reference: Tokenizer, text: str) -> tuple[list[int], list[bool]]:
    encoding = reference.encode(text, add_special_tokens=False)
    words = [None, *encoding.word_ids]
    return encoding.ids, [one != other for one, other in itertools.pairwise(words)]


def test_word_pieces_begin_words_as_the_library_says_on_speeches(tokenizer, reference, speeches):
    words = build_word_starts(tokenizer)
    for text in speeches:
        ids, starts = find_starts(reference, text)
        assert len(ids) > sum(starts) > 1000
        assert words.find(np.array(ids)).tolist() == starts


@settings(deadline=None, max_examples=200)
@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=60))
def test_word_pieces_begin_words_as_the_library_says_on_any_unicode(tokenizer, reference, text):
    ids, starts = find_starts(reference, text)
    assert build_word_starts(tokenizer).find(np.array(ids, dtype=np.int64)).tolist() == starts


def test_a_special_token_is_a_word_by_itself(tokenizer):
    vocabulary = tokenizer.get_vocabulary()
    tokens = ["[CLS]", "play", "##ing", "##s", "[UNK]", "##s", "[SEP]", "[CLS]", "##ing", "##s"]
    starts = build_word_starts(tokenizer).find(np.array([vocabulary[token] for token in tokens]))
    assert starts.tolist() == [True, True, False, False, True, True, True, True, True, False]


def test_words_of_speeches_are_those_of_a_regular_expression(trained, speeches):
    for text in speeches:
        # Line breaks are words to some tokenizers and lost to others.
        plain = " ".join(text.encode("ascii", "ignore").decode().replace("'", "-").split())
        assert split_into_words(trained, plain) == WORDS.findall(plain)


@settings(deadline=None, max_examples=200)
@given(st.lists(st.text(ALPHABET, min_size=1, max_size=8), min_size=1, max_size=10).map(" ".join))
def test_words_of_any_text_are_those_of_a_regular_expression(trained, text):
    assert split_into_words(trained, text) == WORDS.findall(text)


def test_line_breaks_are_words_of_byte_level_tokenizers(speeches):
    tokenizer = train_byte_level(speeches)
    [ids] = tokenizer.encode(["one\n\ntwo\n three"])
    starts = np.flatnonzero(build_word_starts(tokenizer).find(ids))
    parts = [tokenizer.decode(part.tolist()) for part in np.split(ids, starts)[1:]]
    assert parts == ["one", "\n\n", "two", "\n", " three"]


def test_parts_of_a_character_are_letters(speeches):
    text, words = "on 東京 and naïve, ok\n.", ["on", "東京", "and", "naïve", ",", "ok", "", "."]
    for tokenizer in (train_byte_level(speeches), build_byte_fallback()):
        assert split_into_words(tokenizer, text) == words


def test_a_token_of_letters_and_punctuation_counts_by_its_ends():
    pieces = [*ROLES, "▁", "▁it.", "b", ".", "▁a", "▁b", "\u00ad"]
    tokenizer = Tokenizer(models.Unigram([(piece, -1.0) for piece in pieces], unk_id=1))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.add_special_tokens(ROLES)
    words = build_word_starts(TextTokenizer(tokenizer, "pieces"))
    spelled = ["▁it.", "b", ".", ".", "▁it.", ".", "▁", "b", "▁", ".", "b", "\u00ad", "b"]
    starts = words.find(np.array([pieces.index(piece) for piece in spelled]))
    assert starts.astype(int).tolist() == [1, 1, 1, 0, 1, 0, 1, 0, 1, 0, 1, 0, 0]


def build_whole_words() -> Tokenizer:
    vocabulary = {token: index for index, token in enumerate([*ROLES, "a", "b"])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return tokenizer


def build_characters(suffix: str | None = None) -> Tokenizer:
    vocabulary = {token: index for index, token in enumerate([*ROLES, "a", "b", " "])}
    vocabulary |= {f"{token}{suffix}": 8 + n for n, token in enumerate("ab") if suffix}
    settings = {"end_of_word_suffix": suffix} if suffix else {}
    tokenizer = Tokenizer(models.BPE(vocabulary, [], unk_token="[UNK]", **settings))
    if suffix:
        tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return tokenizer


def build_unmarked_bytes() -> Tokenizer:
    """The space marker is in the vocabulary, and white space is lost before it could be used."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Whitespace(), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        special_tokens=ROLES, initial_alphabet=alphabet, vocab_size=300, show_progress=False
    )
    tokenizer.train_from_iterator(["a b a b"], trainer)
    return tokenizer


@pytest.mark.parametrize("unit", [MaskingUnit.word, MaskingUnit.span])
@pytest.mark.parametrize(
    "build",
    [build_whole_words, build_characters, lambda: build_characters("</w>"), build_unmarked_bytes],
    ids=["whole words", "characters", "suffix", "unmarked bytes"],
)
def test_a_tokenizer_that_cannot_tell_words_is_refused(build, unit):
    tokenizer = TextTokenizer(build(), "some/tokenizer")
    with pytest.raises(InputError, match=r"masking\.unit=token") as error:
        build_masking(MaskingConfig(unit=unit), tokenizer)
    assert "'some/tokenizer' (tokenizer.path)" in str(error.value)
    build_masking(MaskingConfig(unit=MaskingUnit.token), tokenizer)
