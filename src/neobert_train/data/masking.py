"""Which tokens a model has to predict, and what it sees in their place."""

import math
from dataclasses import dataclass

import numpy as np

from neobert_train.config.data_schema import MaskingConfig, MaskingStrategy, MaskingUnit
from neobert_train.data.tokenization import TextTokenizer
from neobert_train.data.words import WordStarts, build_word_starts

_LONGEST_SPAN = 10  # in units of the mean


@dataclass(frozen=True)
class Masking:
    """A masking rule for one vocabulary.

    Attributes:
        unit: what is chosen as a whole: tokens, words, or spans of words.
        strategy: what chosen tokens are replaced by.
        mask_id: id of [MASK].
        is_text: [vocab_size] bool, tokens that may be predicted.
        text_ids: [num_text_ids] int64, tokens that a random replacement is drawn from.
        span_words: mean length of a span.
        word_starts: where words begin; None for unit `token`.
    """

    unit: MaskingUnit
    strategy: MaskingStrategy
    mask_id: int
    is_text: np.ndarray
    text_ids: np.ndarray
    span_words: float = 1.0
    word_starts: WordStarts | None = None

    def apply(
        self, ids: np.ndarray, generator: np.random.Generator, rate: float
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Choose tokens to predict, and replace them.

        Their number is round(rate x text tokens); with whole words the largest one up to it that
        words taken in a random order come to before one would exceed it.

        Args:
            ids: [T] int64.
            generator: decides which tokens, and by what they are replaced.
            rate: share of the text tokens.

        Returns:
            The ids with replacements [T], the chosen positions [M] ascending, and the tokens that
            stood there [M]; all int64.
        """
        is_text = self.is_text[ids]
        count = round(rate * int(np.count_nonzero(is_text)))
        if self.unit is MaskingUnit.token:
            positions = _choose_tokens(np.flatnonzero(is_text), count, generator)
        else:
            assert self.word_starts is not None
            # Specials are words of their own, so that words and spans end at them.
            starts = np.flatnonzero(self.word_starts.find(ids))
            lengths = np.diff(starts, append=len(ids))
            words = np.flatnonzero(is_text[starts])
            if self.unit is MaskingUnit.word:
                chosen = _choose_words(lengths[words], count, generator)
                positions = _list_positions(starts[words[chosen]], lengths[words[chosen]])
            else:
                positions = self._choose_spans(starts, lengths, words, count, generator)
            positions.sort()
        labels = ids[positions]
        masked = ids.copy()
        masked[positions] = self._replace(labels, generator)
        return masked, positions, labels

    def _choose_spans(
        self,
        starts: np.ndarray,
        lengths: np.ndarray,
        words: np.ndarray,
        count: int,
        generator: np.random.Generator,
    ) -> np.ndarray:
        """Positions of spans of words drawn one after the other (SpanBERT, arXiv 1907.10529, 3.1).

        Each begins at a random word and has a geometric number of words, as far as its document
        goes; the last one is cut where it exceeds the count.

        Args:
            starts, lengths: [num_words] int64, of all words, special tokens as words included.
            words: indices of those that are text.
            count: tokens to choose.
            generator: decides.
        """
        # The end of the document that each word is in: the next word that is no text.
        is_text = np.zeros(len(starts) + 1, dtype=bool)
        is_text[words] = True
        ends = np.flatnonzero(~is_text)
        longest = round(_LONGEST_SPAN * self.span_words)
        chosen = np.empty(0, dtype=np.int64)
        while len(chosen) < count:
            num_spans = math.ceil(
                (count - len(chosen)) * len(starts) / lengths.sum() / self.span_words
            )
            first = words[generator.integers(len(words), size=num_spans)]
            num_words = np.minimum(generator.geometric(1 / self.span_words, num_spans), longest)
            last = np.minimum(first + num_words, ends[np.searchsorted(ends, first)])
            spans = _list_positions(first, last - first)
            tokens = _list_positions(starts[spans], lengths[spans])
            # In the order in which they were drawn, each token once.
            drawn = np.concatenate([chosen, tokens])
            _, places = np.unique(drawn, return_index=True)
            chosen = drawn[np.sort(places)]
        return chosen[:count]

    def _replace(self, labels: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        replaced = np.full_like(labels, self.mask_id)
        if self.strategy is MaskingStrategy.bert_80_10_10:
            draw = generator.random(len(labels))
            random_ids = self.text_ids[generator.integers(len(self.text_ids), size=len(labels))]
            replaced = np.where(draw < 0.8, replaced, np.where(draw < 0.9, random_ids, labels))
        return replaced


def _choose_tokens(
    candidates: np.ndarray, count: int, generator: np.random.Generator
) -> np.ndarray:
    """`count` of the candidates, each set of them equally likely, in their order."""
    chosen = np.zeros(len(candidates), dtype=bool)
    chosen[generator.choice(len(candidates), count, replace=False, shuffle=False)] = True
    return candidates[chosen]


def _choose_words(lengths: np.ndarray, count: int, generator: np.random.Generator) -> np.ndarray:
    """Indices of words in a random order, up to the first that would exceed `count` tokens."""
    order = generator.permutation(len(lengths))
    return order[: np.searchsorted(np.cumsum(lengths[order]), count, side="right")]


def _list_positions(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """starts[0], starts[0] + 1, ... for lengths[0] numbers, then the same from starts[1] on."""
    ends = np.cumsum(lengths)
    offsets = np.repeat(starts - (ends - lengths), lengths)
    return np.arange(len(offsets)) + offsets


def build_masking(config: MaskingConfig, tokenizer: TextTokenizer) -> Masking:
    """The configured masking rule for a tokenizer's vocabulary.

    Raises:
        InputError: words are asked for, and the tokenizer does not tell them.
    """
    is_text = np.ones(tokenizer.vocab_size, dtype=bool)
    is_text[tokenizer.special_ids] = False
    needs_words = config.unit is not MaskingUnit.token
    return Masking(
        config.unit,
        config.strategy,
        tokenizer.special.mask,
        is_text,
        np.flatnonzero(is_text),
        config.span_words,
        build_word_starts(tokenizer) if needs_words else None,
    )
