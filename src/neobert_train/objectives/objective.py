"""What an objective is, and what it says of a batch."""

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from neobert_train.batch import Batch
from neobert_train.models.encoder import Encoder


@dataclass(frozen=True)
class Outcome:
    """Sums over the targets of a batch, from which the means of any batch can be put together.

    Attributes:
        loss_sum: float32 scalar with a gradient.
        sums: other sums by the name of their mean, such as `accuracy`; they have no gradient.
    """

    loss_sum: Tensor
    sums: dict[str, Tensor]


class Objective(Protocol):
    """What an encoder is trained to do; a batch has `num_targets` of it.

    Attributes:
        name: in the names of metrics, as in `eval/NAME_loss`.
        means: names of the sums of an outcome.
        encoder: that is trained.
    """

    name: str
    means: tuple[str, ...]
    encoder: Encoder

    def compute(self, batch: Batch) -> Outcome:
        """Return what the encoder makes of a batch that lies on its device."""
