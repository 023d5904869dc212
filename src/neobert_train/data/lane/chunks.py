"""Documents as chunks that fit the context."""

import numpy as np


def split_document(ids: np.ndarray, context_length: int) -> list[np.ndarray]:
    """A document as parts that fit the context together with [CLS] and [SEP].

    Args:
        ids: [num_tokens] integers, without special tokens.
        context_length: most tokens of a part, the two special ones included.
    """
    length = context_length - 2
    return [ids[start : start + length] for start in range(0, len(ids), length)]
