"""The record that data hands to training and evaluation."""

from dataclasses import dataclass, fields, replace
from typing import Any

import torch


@dataclass
class Batch:
    """One packed micro-batch of T tokens holding whole documents, attended one by one.

    Attributes:
        input_ids: [T] int64, with the chosen tokens replaced; past `cu_seqlens[-1]` padding.
        position_ids: [T] int32, counting from 0 in every document.
        cu_seqlens: [num_documents + 1] int32, where documents begin and the last one ends.
        max_seqlen: tokens of the longest document, or of the padding where that is longer.
        masked_positions: [M] int64, indices into `input_ids` to predict, ascending.
        labels: [M] int64, the tokens that stood there.
        lane: the lane this micro-batch belongs to.
        lane_state: JSON-ready state from which the lane continues after this micro-batch.
        num_unknown: text tokens that are [UNK], which are never predicted.
    """

    input_ids: torch.Tensor
    position_ids: torch.Tensor
    cu_seqlens: torch.Tensor
    max_seqlen: int
    masked_positions: torch.Tensor
    labels: torch.Tensor
    lane: int
    lane_state: dict[str, Any]
    num_unknown: int = 0

    @property
    def num_tokens(self) -> int:
        """Tokens of documents, padding not counted."""
        return int(self.cu_seqlens[-1])

    @property
    def num_text(self) -> int:
        """Tokens of documents without the [CLS] and [SEP] around each."""
        return self.num_tokens - 2 * (len(self.cu_seqlens) - 1)

    @property
    def squared_lengths(self) -> int:
        """Sum of the squared lengths of the documents, which attention's work grows with."""
        return int(self.cu_seqlens.diff().long().square().sum())

    @property
    def num_targets(self) -> int:
        """Tokens to predict."""
        return self.labels.numel()

    def pin_memory(self) -> "Batch":
        """Return a copy in page-locked memory, from which transfers to a GPU run asynchronously."""
        return self._map(torch.Tensor.pin_memory)

    def to(self, device: torch.device) -> "Batch":
        """Return the batch on `device`; asynchronous from pinned memory."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=True))

    def _map(self, function: Any) -> "Batch":
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        tensors = {name: v for name, v in values.items() if isinstance(v, torch.Tensor)}
        return replace(self, **{name: function(tensor) for name, tensor in tensors.items()})
