"""Blocks of NeoBERT compiled from one attention to the next."""

import itertools
from collections.abc import Iterable

import torch
from torch import Tensor

from neobert_train.modeling.blocks import EncoderBlock
from neobert_train.modeling.layouts import Layout


def connect(
    block: EncoderBlock, following: EncoderBlock, x: Tensor, attended: Tensor, turns: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the output of a block, and queries, keys and values of the one that follows."""
    x = EncoderBlock.combine(block, x, attended)
    return x, *EncoderBlock.project(following, x, turns)


class CompiledBlocks:
    """Computes blocks one after the other, for `NeoBERT.run_blocks`.

    What follows attention in a block and what precedes it in the next are compiled together: on GPUs
    one kernel adds to the residual stream and normalises it, and one sums its gradient. Beside its
    products a block of width 768 then reads and writes 86 kB a token for 93 (inductor's code for an H100).

    Args:
        blocks: at least one.

    Attributes:
        project, connect, combine: what is computed before the first attention, between two, and after
            the last one; each is one graph for all blocks, of batches of one size.
    """

    def __init__(self, blocks: Iterable[EncoderBlock]) -> None:
        self._blocks = list(blocks)
        self.project = torch.compile(EncoderBlock.project, dynamic=False)
        self.connect = torch.compile(connect, dynamic=False)
        self.combine = torch.compile(EncoderBlock.combine, dynamic=False)

    def __call__(self, x: Tensor, turns: Tensor, layout: Layout) -> Tensor:
        """Return [..., hidden_size] of the same shape, in the form of the layout."""
        q, k, v = self.project(self._blocks[0], x, turns)
        for block, following in itertools.pairwise(self._blocks):
            x, q, k, v = self.connect(block, following, x, layout.attend(q, k, v), turns)
        return self.combine(self._blocks[-1], x, layout.attend(q, k, v))
