"""Texts too long to be tokenised at once, cut into pieces that give the tokens of the whole.

The library needs some hundred bytes of memory per character. A piece ends where a paragraph does,
or else a line, a sentence, a word, as late as possible. Which side the white space belongs to depends
on the tokenizer (to the next word for byte-level BPE, to none for WordPiece), so a place is taken if
the text around it gives the same tokens cut and uncut.
"""

import re
import unicodedata
from collections.abc import Callable, Iterator
from typing import Any

MOST_CHARACTERS = 1 << 20
_AROUND = 256  # characters on each side of a cut whose tokens are compared
_TRIED = 16  # places of each kind, the last ones of a piece
_ANYWHERE = 64  # last places of a piece, for text without spaces

_SPACE = re.compile(r"(?<!\s)\s+")
# Full stops, question and exclamation marks of scripts that put no space behind them: Chinese and
# Japanese, Devanagari, Arabic, Ethiopic, Khmer.
_AFTER_STOP = re.compile("(?<=[\u3002\uff0e\uff01\uff1f\u0964\u06d4\u1362\u17d4])")
_STOPS = ".!?…"
_JOINER = "\u200d"
# Vowels and final consonants of Korean that are written as parts of a syllable.
_JAMO = range(0x1160, 0x1200)

Span = tuple[int, int]


def split_text(
    text: str, tokenize: Callable[[str], list[Any]], most_characters: int = MOST_CHARACTERS
) -> Iterator[str]:
    """Give the pieces of a text in order; a short text is its only piece.

    The pieces together have the tokens of the text where its white space allows. What begins a
    piece is no combining character. White space between two pieces may be left out.

    Args:
        text: of any length.
        tokenize: gives the tokens of a short text.
        most_characters: of a piece.
    """
    start = 0
    while len(text) - start > most_characters:
        stop, next_start = _find_cut(text, start, start + most_characters, tokenize)
        yield text[start:stop]
        start = next_start
    yield text[start:] if start else text


def _find_cut(text: str, start: int, limit: int, tokenize: Callable[[str], list[Any]]) -> Span:
    """Return the end of the piece that begins at `start`, at most `limit`, and the next beginning."""
    searched = limit - (limit - start) // 8
    best: Span | None = None
    for places in _iter_kinds_of_places(text, searched, limit):
        for cut in _iter_cuts(text, places[-_TRIED:]):
            stop, next_start = cut
            left = text[max(start, stop - _AROUND) : stop]
            right = text[next_start : next_start + _AROUND]
            if tokenize(left + text[stop:next_start] + right) == tokenize(left) + tokenize(right):
                return cut
            best = best or cut
    return best or (limit, limit)


def _iter_kinds_of_places(text: str, searched: int, limit: int) -> Iterator[list[Span]]:
    """Give where paragraphs end, then lines, sentences and words, then any characters."""
    spaces = [match.span() for match in _SPACE.finditer(text, searched + 1, limit)]
    yield [span for span in spaces if text.count("\n", *span) > 1]
    yield [span for span in spaces if text.count("\n", *span)]
    stops = [match.span() for match in _AFTER_STOP.finditer(text, searched + 1, limit)]
    yield sorted([span for span in spaces if text[span[0] - 1] in _STOPS] + stops)
    yield spaces
    yield [(place, place) for place in range(max(searched, limit - _ANYWHERE) + 1, limit + 1)]


def _iter_cuts(text: str, places: list[Span]) -> Iterator[Span]:
    """Give the end of a piece and the beginning of the next, of each place, the last one first.

    White space is tried as part of the next piece, of none, and of the piece before.
    """
    for first, last in reversed(places):
        for cut in dict.fromkeys(((first, first), (first, last), (last, last))):
            if _may_begin(text, cut[1]):
                yield cut


def _may_begin(text: str, place: int) -> bool:
    """Return whether a piece may begin at a place, which is in the middle of no character."""
    character = text[place]
    return not (
        unicodedata.category(character) in ("Mn", "Mc", "Me", "Cf", "Sk")
        or ord(character) in _JAMO
        or text[place - 1] == _JOINER
    )
