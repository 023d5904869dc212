"""Where words begin, against what the tokenizers library says of real text."""

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from neobert_train.config.data_schema import MaskingConfig, MaskingUnit
from neobert_train.data.masking import build_masking
from neobert_train.data.tokenization import TextTokenizer
from neobert_train.data.words import build_word_starts
from neobert_train.errors import InputError

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
TEXTS = [
    "The state of the union, as Congress knows, is strong: 1,234 reasons (and more)!",
    "unbelievably internationalised neologisms don't tokenise e.g. antidisestablishmentarianism",
    "Größe und Übermut, naïve façades; 東京 は 大きい。 Привет, мир!",
]


def train_tokenizer(model, pre_tokenizer, trainer, decoder) -> TextTokenizer:
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizer, decoder
    tokenizer.train_from_iterator(TEXTS * 3, trainer)
    return TextTokenizer(tokenizer, "test")


@pytest.fixture(scope="module")
def byte_level() -> TextTokenizer:
    return train_tokenizer(
        models.BPE(),
        pre_tokenizers.ByteLevel(add_prefix_space=False),
        trainers.BpeTrainer(
            vocab_size=400,
            special_tokens=SPECIAL,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
        decoders.ByteLevel(),
    )


@pytest.fixture(scope="module")
def unigram() -> TextTokenizer:
    trainer = trainers.UnigramTrainer(
        vocab_size=150, special_tokens=SPECIAL, unk_token="[UNK]", show_progress=False
    )
    return train_tokenizer(
        models.Unigram(), pre_tokenizers.Metaspace(), trainer, decoders.Metaspace()
    )


def find_starts(tokenizer: TextTokenizer, text: str) -> tuple[list[str], list[bool]]:
    (ids,) = tokenizer.encode([text])
    tokens = {index: token for token, index in tokenizer.vocabulary.items()}
    return [tokens[i] for i in ids.tolist()], build_word_starts(tokenizer).find(ids).tolist()


@pytest.mark.parametrize("text", TEXTS)
def test_words_of_wordpiece_are_those_of_its_pre_tokenizer(tokenizer, text):
    encoding = tokenizer._tokenizer.encode(text, add_special_tokens=False)
    word_ids = np.array(encoding.word_ids)
    expected = np.concatenate([[True], np.diff(word_ids) != 0])
    assert find_starts(tokenizer, text)[1] == expected.tolist()


@pytest.mark.parametrize("text", TEXTS)
def test_words_of_byte_level_bpe_begin_at_spaces_and_beside_punctuation(byte_level, text):
    """As characters: a word is a run of letters and digits, or of anything else but spaces."""
    encoding = byte_level._tokenizer.encode(text, add_special_tokens=False)
    _, starts = find_starts(byte_level, text)
    for (begin, end), is_start in zip(encoding.offsets, starts, strict=True):
        piece = text[begin:end]
        before = text[begin - 1] if begin else " "
        if piece.startswith(" ") or begin == 0:
            assert is_start
        elif before == " ":  # a token of its own, which begins the word
            assert not is_start
        elif len(piece.encode()) > 1 or piece.isascii():  # not a part of a character
            # All bytes beyond ASCII count as letters.
            is_letter, was_letter = (c.isalnum() or not c.isascii() for c in (piece[0], before))
            assert is_start == (was_letter != is_letter), (before, piece)


@pytest.mark.parametrize("text", TEXTS)
def test_words_of_unigram_begin_at_spaces_and_beside_punctuation(unigram, text):
    tokens, starts = find_starts(unigram, text)
    for index, (token, is_start) in enumerate(zip(tokens, starts, strict=True)):
        if token == "[UNK]" or (index and tokens[index - 1] == "[UNK]"):
            continue
        if index == 0 or token.startswith("\u2581"):
            assert is_start
        elif tokens[index - 1] == "\u2581":  # which begins the word
            assert not is_start
        else:
            assert is_start == (tokens[index - 1][-1].isalnum() != token[0].isalnum())


def test_special_tokens_end_words(tokenizer):
    go_on = tokenizer.vocabulary["##ing"]
    special = tokenizer.special
    ids = np.array([special.cls, go_on, go_on, special.sep, special.cls, go_on, special.sep])
    assert build_word_starts(tokenizer).find(ids).tolist() == [True, True, False, *[True] * 4]


@pytest.mark.parametrize("unit", [MaskingUnit.word, MaskingUnit.span])
def test_a_tokenizer_that_does_not_tell_words_is_refused(unit):
    vocabulary = {token: index for index, token in enumerate([*SPECIAL, "a", "b"])}
    plain = TextTokenizer(Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]")), "test")
    with pytest.raises(InputError, match=r"write masking\.unit=token"):
        build_masking(MaskingConfig(unit=unit), plain)
    build_masking(MaskingConfig(), plain)
