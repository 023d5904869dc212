"""How numbers are computed, for all cells alike."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Conditions:
    """How numbers are computed, for all cells alike.

    Attributes:
        device: of forward passes.
        bf16: whether they are in bf16, or else in fp32.
        batch_tokens: of a forward pass without gradients, at most.
    """

    device: torch.device
    bf16: bool
    batch_tokens: int
