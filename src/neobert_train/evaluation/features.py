"""Vectors of texts: the hidden states of a frozen encoder, pooled."""

from collections.abc import Sequence

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

_MULTIPLE = 8


@torch.no_grad()
def embed_texts(
    network: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    max_length: int,
    batch_tokens: int,
) -> np.ndarray:
    """Return the mean of the last hidden states of every text.

    Args:
        network: an encoder in evaluation mode.
        tokenizer: of the encoder.
        texts: to embed.
        max_length: tokens after which a text is cut.
        batch_tokens: padded tokens of one forward pass at most.

    Returns:
        [n, hidden_size] float32, in the order of the texts; the mean is over the tokens of a text,
        the special ones among them, as sentence-transformers takes it.

    Raises:
        FloatingPointError: a vector is not finite.
    """
    encoded = tokenizer(list(texts), truncation=True, max_length=max_length)
    names = list(encoded.keys())
    lengths = np.array([len(ids) for ids in encoded["input_ids"]])
    vectors = np.empty((len(texts), network.config.hidden_size), np.float32)
    for indices in _iter_batches(lengths, batch_tokens):
        rows = [{name: encoded[name][i] for name in names} for i in indices]
        batch = tokenizer.pad(rows, pad_to_multiple_of=_MULTIPLE, return_tensors="pt")
        batch = batch.to(network.device)
        states = network(**batch).last_hidden_state.float()
        weights = batch["attention_mask"].unsqueeze(-1)
        pooled = (states * weights).sum(1) / weights.sum(1)
        vectors[indices] = pooled.cpu().numpy()
    if not np.isfinite(vectors).all():
        raise FloatingPointError("the vectors of the model are not finite")
    return vectors


def normalise(vectors: np.ndarray) -> np.ndarray:
    """Return vectors [n, d] of length 1, for cosines."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors / np.maximum(lengths, np.finfo(np.float32).tiny))


def _iter_batches(lengths: np.ndarray, batch_tokens: int) -> list[np.ndarray]:
    """Return indices of texts of like length, such that no batch has more padded tokens."""
    order = np.argsort(-lengths, kind="stable")  # the longest first, so that memory fails at once
    batches, first = [], 0
    while first < len(order):
        size = max(1, batch_tokens // (int(lengths[order[first]]) + _MULTIPLE))
        batches.append(order[first : first + size])
        first += size
    return batches
