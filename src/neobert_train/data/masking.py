"""Which tokens a model has to predict, and what it sees in their place."""

from dataclasses import dataclass

import numpy as np

from neobert_train.config.data_schema import MaskingConfig, MaskingStrategy
from neobert_train.data.tokenization import TextTokenizer


@dataclass(frozen=True)
class Masking:
    """A masking rule for one vocabulary.

    Attributes:
        rate: share of the text tokens to predict.
        strategy: what they are replaced by.
        mask_id: id of [MASK].
        is_special: [vocab_size] bool, tokens that are never predicted.
        text_ids: [num_text_ids] int64, tokens that a random replacement is drawn from.
    """

    strategy: MaskingStrategy
    mask_id: int
    is_special: np.ndarray
    text_ids: np.ndarray

    def apply(
        self, ids: np.ndarray, generator: np.random.Generator, rate: float
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Choose round(rate x text tokens) tokens uniformly and replace them.

        Args:
            ids: [T] int64.
            generator: decides which tokens, and by what they are replaced.

        Returns:
            The ids with replacements [T], the chosen positions [M] ascending, and the tokens that
            stood there [M]; all int64.
        """
        candidates = np.flatnonzero(~self.is_special[ids])
        count = round(rate * len(candidates))
        chosen = generator.permutation(len(candidates))[:count]
        positions = candidates[np.sort(chosen)]
        labels = ids[positions]
        masked = ids.copy()
        masked[positions] = self._replace(labels, generator)
        return masked, positions, labels

    def _replace(self, labels: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        replaced = np.full_like(labels, self.mask_id)
        if self.strategy is MaskingStrategy.bert_80_10_10:
            draw = generator.random(len(labels))
            random_ids = self.text_ids[generator.integers(len(self.text_ids), size=len(labels))]
            replaced = np.where(draw < 0.8, replaced, np.where(draw < 0.9, random_ids, labels))
        return replaced


def build_masking(config: MaskingConfig, tokenizer: TextTokenizer) -> Masking:
    """The configured masking rule for a tokenizer's vocabulary."""
    is_special = np.zeros(tokenizer.vocab_size, dtype=bool)
    is_special[tokenizer.special_ids] = True
    return Masking(
        config.strategy,
        tokenizer.special.mask,
        is_special,
        np.flatnonzero(~is_special),
    )
