"""Chunks joined into a micro-batch."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from neobert_train.batch import MicroBatch
from neobert_train.data.lane.masking import Masking
from neobert_train.tokenizers.special_tokens import SpecialTokens


def collate(
    chunks: Sequence[np.ndarray],
    micro_batch_tokens: int,
    special: SpecialTokens,
    masking: Masking,
    masking_rate: float,
    generator: np.random.Generator,
    lane: int = 0,
    lane_state: dict[str, Any] | None = None,
) -> MicroBatch[np.ndarray]:
    """Return one masked micro-batch of exactly `micro_batch_tokens` tokens.

    Args:
        chunks: token ids of each document, [length - 2] integers, without [CLS] and [SEP].
        micro_batch_tokens: T; at least the sum of the lengths.
        special: ids of the tokens around each document and of the padding of the tail, which no
            document attends to and no label points at.
        masking: the masking rule.
        masking_rate: share of the text tokens to predict.
        generator: decides which tokens are masked.
        lane, lane_state: carried by the micro-batch.
    """
    lengths = np.array([len(chunk) + 2 for chunk in chunks], dtype=np.int64)
    ends = np.cumsum(lengths)
    num_tokens = int(ends[-1])
    ids = np.empty(num_tokens, dtype=np.int64)
    for chunk, end in zip(chunks, ends.tolist(), strict=True):
        ids[end - 1 - len(chunk) : end - 1] = chunk
    ids[ends - lengths] = special.cls
    ids[ends - 1] = special.sep
    masked, positions, labels = masking.apply(ids, generator, masking_rate)
    input_ids = np.full(micro_batch_tokens, special.pad, dtype=np.int64)
    input_ids[:num_tokens] = masked
    position_ids = np.zeros(micro_batch_tokens, dtype=np.int32)
    position_ids[:num_tokens] = np.arange(num_tokens) - np.repeat(ends - lengths, lengths)
    return MicroBatch(
        input_ids=input_ids,
        position_ids=position_ids,
        cu_seqlens=np.concatenate([[0], ends]).astype(np.int32),
        max_seqlen=max(int(lengths.max()), micro_batch_tokens - num_tokens),
        masked_positions=positions,
        labels=labels,
        lane=lane,
        lane_state=lane_state or {},
        num_unknown=sum(special.count_unknown(chunk) for chunk in chunks),
    )
