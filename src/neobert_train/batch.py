"""The record that data hands to training and evaluation: NumPy arrays at first, then tensors."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import numpy as np

if TYPE_CHECKING:  # processes that only make micro-batches do without
    import torch

Array = TypeVar("Array", np.ndarray, "torch.Tensor")


@dataclass
class MicroBatch(Generic[Array]):
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

    input_ids: Array
    position_ids: Array
    cu_seqlens: Array
    max_seqlen: int
    masked_positions: Array
    labels: Array
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
    def num_targets(self) -> int:
        """Tokens to predict."""
        return len(self.labels)


class Batch(MicroBatch["torch.Tensor"]):
    """A micro-batch as tensors."""

    @classmethod
    def from_arrays(cls, arrays: MicroBatch[np.ndarray]) -> "Batch":
        """Return tensors that share the memory of the arrays."""
        import torch

        return _convert(arrays, torch.from_numpy)

    @property
    def squared_lengths(self) -> int:
        """Sum of the squared lengths of the documents, which attention's work grows with."""
        return int(self.cu_seqlens.diff().long().square().sum())

    def pin_memory(self) -> "Batch":
        """Return a copy in page-locked memory, from which transfers to a GPU run asynchronously."""
        return _convert(self, lambda tensor: tensor.pin_memory())

    def to(self, device: "torch.device") -> "Batch":
        """Return the batch on `device`; asynchronous from pinned memory."""
        return _convert(self, lambda tensor: tensor.to(device, non_blocking=True))


def _convert(record: MicroBatch[Any], function: Callable[[Any], "torch.Tensor"]) -> Batch:
    """Return a record with `function` applied to each of its arrays."""
    values: dict[str, Any] = {
        name: value if isinstance(value, int | dict) else function(value)
        for name, value in vars(record).items()
    }
    return Batch(**values)
