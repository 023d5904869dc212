"""Chunks of one micro-batch joined into a Batch."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from neobert_train.batch import Batch
from neobert_train.data.masking import Masking


def collate(
    chunks: Sequence[np.ndarray],
    micro_batch_tokens: int,
    pad_id: int,
    masking: Masking,
    generator: np.random.Generator,
    lane: int = 0,
    lane_state: dict[str, Any] | None = None,
) -> Batch:
    """One masked micro-batch of exactly `micro_batch_tokens` tokens.

    Args:
        chunks: token ids of each document, [length] int64, [CLS] and [SEP] included.
        micro_batch_tokens: T; at least the sum of the lengths.
        pad_id: fills the tail, which no document attends to and no label points at.
        masking: the masking rule.
        generator: decides which tokens are masked.
        lane, lane_state: carried by the batch.
    """
    lengths = np.array([len(chunk) for chunk in chunks], dtype=np.int64)
    num_tokens = int(lengths.sum())
    masked, positions, labels = masking.apply(np.concatenate(chunks), generator)
    input_ids = np.full(micro_batch_tokens, pad_id, dtype=np.int64)
    input_ids[:num_tokens] = masked
    position_ids = np.zeros(micro_batch_tokens, dtype=np.int32)
    position_ids[:num_tokens] = np.concatenate([np.arange(n, dtype=np.int32) for n in lengths])
    cu_seqlens = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    return Batch(
        input_ids=torch.from_numpy(input_ids),
        position_ids=torch.from_numpy(position_ids),
        cu_seqlens=torch.from_numpy(cu_seqlens),
        max_seqlen=max(int(lengths.max()), micro_batch_tokens - num_tokens),
        masked_positions=torch.from_numpy(positions),
        labels=torch.from_numpy(labels),
        lane=lane,
        lane_state=lane_state or {},
    )
