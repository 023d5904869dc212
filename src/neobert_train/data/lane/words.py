"""Where words begin among the tokens of a text.

A vocabulary entry says by its spelling what it may follow within a word, so two tables of one
byte per entry answer for a whole micro-batch at once.
"""

import functools
import json
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from tokenizers import decoders

from neobert_train.errors import InputError
from neobert_train.tokenizers.text_tokenizer import TextTokenizer

# What a token begins or ends with, as bits; a word continues where both sides share one.
_LETTER, _PUNCTUATION, _SPACE = 1, 2, 4
_NONE, _ANY = 0, _LETTER | _PUNCTUATION | _SPACE


@dataclass(frozen=True)
class WordStarts:
    """Where the words of one vocabulary begin.

    Attributes:
        continues: [vocab_size] uint8, the kinds of ending that a token continues; 0 for one
            that always begins a word.
        ends: [vocab_size] uint8, the kinds of ending that a token is; 0 for one that always ends
            its word.
    """

    continues: np.ndarray
    ends: np.ndarray

    def find(self, ids: np.ndarray) -> np.ndarray:
        """Return whether each token begins a word, [T] bool; a special token is a word by itself.

        Args:
            ids: [T] int64.
        """
        starts = np.ones(len(ids), dtype=bool)
        starts[1:] = (self.continues[ids[1:]] & self.ends[ids[:-1]]) == 0
        return starts


@functools.lru_cache(maxsize=1)  # every lane asks for the same tokenizer
def build_word_starts(tokenizer: TextTokenizer) -> WordStarts:
    """Return the word boundaries of a tokenizer's vocabulary.

    With a continuation prefix (WordPiece: `##ing`) every token without it begins a word. With a
    space marker (byte-level BPE: `Ġword`, SentencePiece: `▁word`) a word begins at a marker, at
    white space, and where letters or digits change to punctuation or back. So a stretch of a
    language that writes no spaces is one word there.

    Raises:
        InputError: the tokens do not tell where a word begins.
    """
    definition = json.loads(tokenizer.to_json())
    vocabulary = tokenizer.get_vocabulary()
    continues = np.zeros(tokenizer.vocab_size, dtype=np.uint8)
    ends = np.zeros(tokenizer.vocab_size, dtype=np.uint8)
    if prefix := definition["model"].get("continuing_subword_prefix"):
        for token, index in vocabulary.items():
            continues[index] = _ANY if token.startswith(prefix) else _NONE
            ends[index] = _ANY
    else:
        spell = _find_spelling(definition, tokenizer)
        for token, index in vocabulary.items():
            continues[index], ends[index] = _classify(spell(token))
    continues[tokenizer.special_ids] = ends[tokenizer.special_ids] = _NONE
    return WordStarts(continues, ends)


def _find_spelling(definition: dict[str, Any], tokenizer: TextTokenizer) -> Callable[[str], str]:
    """Return what turns a token into its text, the marker of a new word into a space."""
    stages = [definition[key] for key in ("normalizer", "pre_tokenizer", "decoder")]
    byte_level, byte_fallback = decoders.ByteLevel(), decoders.ByteFallback()
    if '"ByteLevel"' in json.dumps(stages):
        marker, spell = "Ġ", lambda token: byte_level.decode([token])
    else:
        marker, spell = "▁", lambda token: byte_fallback.decode([token.replace("▁", " ")])
    # Some settings leave a marker in the vocabulary that no text is ever given.
    [probe] = tokenizer.encode(["a b"])
    later = set(probe[1:].tolist())
    marked = any(
        token.startswith(marker)
        for token, index in tokenizer.get_vocabulary().items()
        if index in later
    )
    if not marked:
        raise InputError(
            f"the tokenizer '{tokenizer.name}' (tokenizer.path) does not tell where a word begins: "
            "masking.unit=word and masking.unit=span need tokens with a continuation prefix (##) "
            "or a space marker (Ġ or ▁); write masking.unit=token"
        )
    return spell


def _classify(text: str) -> tuple[int, int]:
    """Return what a token continues, and what it ends as."""
    if not text.strip(" "):  # a marker by itself belongs to the word after it
        return _NONE, _ANY
    return (_NONE if text[0] == " " else _find_class(text[0])), _find_class(text[-1])


def _find_class(character: str) -> int:
    if character.isspace():
        return _SPACE
    category = unicodedata.category(character)
    # Format characters join letters, and U+FFFD stands for a part of a character.
    if category[0] in "LMN" or category == "Cf" or character == "\ufffd":
        return _LETTER
    return _PUNCTUATION
