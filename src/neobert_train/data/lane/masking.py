"""Which tokens a model has to predict, and what it sees in their place."""

from dataclasses import dataclass

import numpy as np

from neobert_train.config.data_schema import MaskingConfig, MaskingStrategy, MaskingUnit
from neobert_train.data.lane.words import WordStarts, build_word_starts
from neobert_train.tokenizers.text_tokenizer import TextTokenizer

# SpanBERT has 10 words for a mean of 3.8; this cuts at most one span in 20,000.
_LONGEST_SPAN = 10


@dataclass(frozen=True)
class Masking:
    """A masking rule for one vocabulary.

    Attributes:
        strategy: what the tokens to predict are replaced by.
        unit: what is chosen as a whole.
        span_words: unit=span: mean words of a span.
        words: unit=word and unit=span: where words begin.
        mask_id: id of [MASK].
        is_special: [vocab_size] bool, tokens that are never predicted.
        text_ids: [num_text_ids] int64, tokens that a random replacement is drawn from.
    """

    strategy: MaskingStrategy
    unit: MaskingUnit
    span_words: float
    words: WordStarts | None
    mask_id: int
    is_special: np.ndarray
    text_ids: np.ndarray

    def apply(
        self, ids: np.ndarray, generator: np.random.Generator, rate: float
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Choose `target` = round(rate x text tokens) tokens and replace them.

        - unit=token: exactly `target`, uniformly.
        - unit=word: all tokens of words that are drawn uniformly, up to the first word that would
          exceed `target`; fewer than `target` by less than the tokens of that word.
        - unit=span: exactly `target`. Spans of whole words are drawn uniformly and the last is cut
          where `target` is reached. Their length is geometric with mean `span_words`, ten times
          that at most, and less where the text ends before.

        Words and spans end at a special token, so they lie within a document.

        Args:
            ids: [T] int64.
            generator: decides which tokens, and by what they are replaced.
            rate: share of the text tokens to predict, in (0, 1).

        Returns:
            The ids with replacements [T], the chosen positions [M] ascending, and the tokens that
            stood there [M]; all int64.
        """
        is_text = ~self.is_special[ids]
        target = round(rate * int(np.count_nonzero(is_text)))
        if self.unit is MaskingUnit.token:
            candidates = np.flatnonzero(is_text)
            order = generator.choice(len(candidates), target, replace=False, shuffle=False)
            chosen = candidates[order]
        else:
            chosen = self._choose_units(ids, is_text, target, generator)
        is_chosen = np.zeros(len(ids), dtype=bool)
        is_chosen[chosen] = True
        positions = np.flatnonzero(is_chosen)
        labels = ids[positions]
        masked = ids.copy()
        masked[positions] = self._replace(labels, generator)
        return masked, positions, labels

    def _choose_units(
        self, ids: np.ndarray, is_text: np.ndarray, target: int, generator: np.random.Generator
    ) -> np.ndarray:
        """Return positions of the tokens of random words or spans, [M] int64 in no order."""
        assert self.words is not None
        starts = np.flatnonzero(self.words.find(ids))
        if self.unit is MaskingUnit.span:
            starts = starts[_find_span_starts(is_text[starts], self.span_words, generator)]
        lengths = np.diff(starts, append=len(ids))
        of_text = is_text[starts]
        starts, lengths = starts[of_text], lengths[of_text]
        # A unit has a token at least, so no more than `target` of them are needed.
        order = generator.choice(len(starts), min(len(starts), target), replace=False)
        starts, lengths = starts[order], lengths[order]
        room = target - (np.cumsum(lengths) - lengths)
        if self.unit is MaskingUnit.span:
            taken = np.clip(room, 0, lengths)
        else:
            taken = np.where(lengths <= room, lengths, 0)
        # The positions start, start + 1, ... of each unit, one unit after the other.
        begins = np.cumsum(taken) - taken
        positions: np.ndarray = np.arange(taken.sum()) + np.repeat(starts - begins, taken)
        return positions

    def _replace(self, labels: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        replaced = np.full_like(labels, self.mask_id)
        if self.strategy is MaskingStrategy.bert_80_10_10:
            draw = generator.random(len(labels))
            random_ids = self.text_ids[generator.integers(len(self.text_ids), size=len(labels))]
            replaced = np.where(draw < 0.8, replaced, np.where(draw < 0.9, random_ids, labels))
        return replaced


def _find_span_starts(
    is_text: np.ndarray, mean_words: float, generator: np.random.Generator
) -> np.ndarray:
    """Return the words that begin a span, [num_spans] int64 ascending.

    The whole text is divided, since a geometric length is a coin toss at every word: no span then
    overlaps another, and each word is as likely as any other to be in one that is drawn.

    Args:
        is_text: [num_words] bool, False for a special token, which is a span by itself.
        mean_words: mean length.
        generator: tosses the coins.
    """
    begins = generator.random(len(is_text), dtype=np.float32) < 1 / mean_words
    begins[:1] = True
    begins |= ~is_text
    begins[1:] |= ~is_text[:-1]
    starts = np.flatnonzero(begins)
    longest = round(_LONGEST_SPAN * mean_words)
    while len(too_long := starts[np.diff(starts, append=len(begins)) > longest]):
        begins[too_long + longest] = True
        starts = np.flatnonzero(begins)
    return starts


def build_masking(config: MaskingConfig, tokenizer: TextTokenizer) -> Masking:
    """Return the configured masking rule for a tokenizer's vocabulary.

    Raises:
        InputError: words are asked for that the tokenizer does not tell.
    """
    is_special = np.zeros(tokenizer.vocab_size, dtype=bool)
    is_special[tokenizer.special_ids] = True
    return Masking(
        strategy=config.strategy,
        unit=config.unit,
        span_words=config.span_words,
        words=None if config.unit is MaskingUnit.token else build_word_starts(tokenizer),
        mask_id=tokenizer.special.mask,
        is_special=is_special,
        text_ids=np.flatnonzero(~is_special),
    )
