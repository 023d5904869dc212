"""Vectors of texts, by sentence-transformers, which is imported only where it is used."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from neobert_train.evaluation.candidates import Candidate
from neobert_train.evaluation.conditions import Conditions
from neobert_train.models.exported import register_neobert

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

# What says that a folder is a sentence-transformers model with a pooling of its own.
_MODULES_FILE = "modules.json"


def load_embedder(
    candidate: Candidate, max_length: int, conditions: Conditions
) -> SentenceTransformer:
    """Load a model that embeds texts: with its own pooling and prompts, or as the mean over tokens.

    Args:
        candidate: a sentence-transformers model, or an encoder.
        max_length: tokens after which texts are cut; fewer for a model that takes fewer.
        conditions: device and precision.
    """
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

    register_neobert()
    folder, trusted = str(candidate.folder), candidate.trust_remote_code
    if (candidate.folder / _MODULES_FILE).is_file():
        model = SentenceTransformer(folder, device="cpu", trust_remote_code=trusted)
    else:
        trust = {"trust_remote_code": trusted}
        transformer = Transformer(
            folder, model_kwargs={**trust, "dtype": "float32"}, processor_kwargs=dict(trust),
            config_kwargs=dict(trust),
        )  # fmt: skip
        pooling = Pooling(transformer.get_embedding_dimension(), "mean")
        model = SentenceTransformer(modules=[transformer, pooling], device="cpu")
    own_length = model.max_seq_length or max_length
    model.max_seq_length = min(own_length, max_length, candidate.max_length)
    if conditions.bf16:
        model.to(torch.bfloat16)
    return model.to(conditions.device)


def embed_texts(
    model: SentenceTransformer,
    texts: Sequence[str],
    batch_tokens: int,
    prompt: str | None = None,
    role: str | None = None,
) -> np.ndarray:
    """Return the vectors of texts.

    Args:
        model: that embeds them.
        texts: without the prompt.
        batch_tokens: padded tokens of one forward pass at most.
        prompt: what is written before each; None leaves it to the model.
        role: query or document, for which a model may have a prompt; None for other texts.

    Returns:
        [n, d] float32.

    Raises:
        FloatingPointError: a vector is not finite.
    """
    encoders = {"query": model.encode_query, "document": model.encode_document}
    vectors = encoders.get(role or "", model.encode)(
        list(texts),
        prompt=prompt,
        batch_size=max(1, batch_tokens // model.max_seq_length),
        show_progress_bar=False,
        convert_to_numpy=True,
    )
    if not np.isfinite(vectors).all():
        raise FloatingPointError("the vectors of the model are not finite")
    return np.asarray(vectors, np.float32)


def normalise(vectors: np.ndarray) -> np.ndarray:
    """Return vectors [n, d] of length 1, for cosines."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors / np.maximum(lengths, np.finfo(np.float32).tiny))
