"""Loss, accuracy and perplexity of masked language modelling on fixed batches."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from neobert_train.batch import Batch


@dataclass(frozen=True)
class MaskedLMResult:
    """What predicting masked tokens gave.

    Attributes:
        loss: mean cross-entropy over the masked tokens, in nats.
        accuracy: share of them predicted right.
        masked_tokens: how many there were.
    """

    loss: float
    accuracy: float
    masked_tokens: int

    @property
    def perplexity(self) -> float:
        """exp(loss): the number of equally likely tokens the model is in doubt between."""
        return math.exp(min(self.loss, 700.0))

    def to_metrics(self) -> dict[str, float]:
        """Under the names of metrics.jsonl."""
        return {
            "eval/masked_lm_loss": self.loss,
            "eval/masked_lm_accuracy": self.accuracy,
            "eval/perplexity": self.perplexity,
        }


def evaluate_masked_lm(
    objective: Callable[[Batch], tuple[Tensor, Tensor]],
    batches: Sequence[Batch],
    device: torch.device,
    rank: int = 0,
    world_size: int = 1,
    sum_over_processes: Callable[[Sequence[float]], Sequence[float]] = tuple,
) -> MaskedLMResult:
    """Predict the masked tokens of all batches, divided among processes.

    Args:
        objective: gives the summed loss and the number of right predictions of a batch.
        batches: the same on every process.
        device: where the objective computes.
        rank, world_size: this process among those that call this together.
        sum_over_processes: adds up numbers of all of them.
    """
    loss_sum, correct, masked = 0.0, 0.0, 0
    with torch.no_grad():
        # With weights spread over processes every forward pass is a joint one, so all processes
        # make equally many; what is beyond the end does not count.
        for start in range(0, len(batches), world_size):
            counts = start + rank < len(batches)
            batch = batches[start + rank if counts else 0]
            loss, num_correct = objective(batch.to(device))
            if counts:
                loss_sum += loss.item()
                correct += num_correct.item()
                masked += batch.num_masked
    loss_sum, correct, total = sum_over_processes([loss_sum, correct, float(masked)])
    if not total:
        return MaskedLMResult(math.nan, math.nan, 0)
    return MaskedLMResult(loss_sum / total, correct / total, int(total))
