"""Where words begin in a run of tokens, for tokenizers whose entries tell it."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from neobert_train.data.tokenization import TextTokenizer
from neobert_train.errors import InputError

_METASPACE = "\u2581"  # what Unigram and SentencePiece write for a space
_BYTE_SPACE = "\u0120"  # what byte-level BPE writes for a space
_LETTERS, _OTHERS = 1, 2


@dataclass(frozen=True)
class WordStarts:
    """A rule for one vocabulary.

    Attributes:
        is_special: [vocab_size] bool, tokens that stand for no text.
        begins: [vocab_size] bool, tokens that begin a word wherever they stand.
        first_class, last_class: [vocab_size] uint8, whether the first and the last character of a
            token are letters or digits, or anything else; 0 where a word goes on in any case.
    """

    is_special: np.ndarray
    begins: np.ndarray
    first_class: np.ndarray
    last_class: np.ndarray

    def find(self, ids: np.ndarray) -> np.ndarray:
        """Which tokens begin a word; a special token does, and so does what follows one.

        Args:
            ids: [T] integers.

        Returns:
            [T] bool.
        """
        special = self.is_special[ids]
        starts = self.begins[ids] | special
        first, before = self.first_class[ids[1:]], self.last_class[ids[:-1]]
        starts[1:] |= special[:-1] | ((first != before) & (first > 0) & (before > 0))
        starts[:1] = True
        return starts


def build_word_starts(tokenizer: TextTokenizer) -> WordStarts:
    """The rule for a tokenizer.

    WordPiece marks tokens that go on with a word, by a prefix. Byte-level BPE and Unigram mark the
    space before a word; there, punctuation is parted from letters and digits as well.

    Raises:
        InputError: its entries do not tell words.
    """
    size = tokenizer.vocab_size
    is_special = np.zeros(size, dtype=bool)
    is_special[tokenizer.special_ids] = True
    begins = np.zeros(size, dtype=bool)
    classes = np.zeros((2, size), dtype=np.uint8)
    definition = tokenizer.definition
    vocabulary = tokenizer.vocabulary
    prefix = definition["model"].get("continuing_subword_prefix")
    if definition["model"]["type"] == "WordPiece" and prefix:
        for token, index in vocabulary.items():
            begins[index] = not token.startswith(prefix)
        return WordStarts(is_special, begins, *classes)
    marker = _find_space_marker(definition)
    if marker is None:
        raise InputError(
            "the tokenizer does not tell where words begin (it is neither WordPiece, byte-level BPE "
            "nor Unigram with a space marker): write masking.unit=token, or another tokenizer.path"
        )
    for token, index in vocabulary.items():
        begins[index] = token.startswith(marker)
        text = token.removeprefix(marker)
        if text:
            classes[:, index] = _classify(text[0], marker), _classify(text[-1], marker)
    return WordStarts(is_special, begins, *classes)


def _find_space_marker(definition: dict[str, Any]) -> str | None:
    """What stands for a space in the entries; None where nothing does."""
    parts = list(_iter_types(definition.get("pre_tokenizer"))) + list(
        _iter_types(definition.get("decoder"))
    )
    if "ByteLevel" in parts:
        return _BYTE_SPACE
    return _METASPACE if "Metaspace" in parts else None


def _iter_types(part: Any) -> Any:
    if isinstance(part, dict):
        yield part.get("type")
        for value in part.values():
            yield from _iter_types(value)
    elif isinstance(part, list):
        for value in part:
            yield from _iter_types(value)


def _classify(character: str, marker: str) -> int:
    # Byte-level BPE writes bytes of letters beyond ASCII as signs such as these.
    is_high_byte = marker == _BYTE_SPACE and ord(character) >= 0xA1
    return _LETTERS if character.isalnum() or is_high_byte else _OTHERS
