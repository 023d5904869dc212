"""Examples of a task that is learned from labels."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Examples:
    """Texts, or pairs of texts, or words, with a label for each.

    Attributes:
        texts: one for each example; of a task on words, the words of each example.
        pairs: the second text of each example; None where examples are single texts.
        labels: [n] int64 classes or float64 scores; of a task on words, [n_words] int64 classes of all
            words of all examples, one after another.
    """

    texts: Sequence[Any]
    pairs: Sequence[str] | None
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.texts)

    @property
    def is_of_words(self) -> bool:
        """Whether each word has a label, and not each text."""
        return bool(self.texts) and not isinstance(self.texts[0], str)

    def take(self, indices: np.ndarray) -> "Examples":
        """Return the examples with these numbers, in their order."""
        if self.is_of_words:
            ends = np.cumsum([len(words) for words in self.texts])
            spans = [self.labels[ends[i] - len(self.texts[i]) : ends[i]] for i in indices]
            labels = np.concatenate(spans)
        else:
            labels = self.labels[indices]
        pairs = None if self.pairs is None else [self.pairs[i] for i in indices]
        return Examples([self.texts[i] for i in indices], pairs, labels)
