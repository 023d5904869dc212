"""What an objective comes to on fixed batches."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from neobert_train.batch import Batch
from neobert_train.objectives.objective import Objective, Outcome


@dataclass(frozen=True)
class Evaluation:
    """The means of an objective over all targets.

    Attributes:
        name: of the objective.
        loss: cross-entropy, in nats.
        means: the others by name, such as `accuracy`.
        num_targets: how many there were; without any, the means are NaN.
    """

    name: str
    loss: float
    means: dict[str, float]
    num_targets: int

    @property
    def perplexity(self) -> float:
        """exp(loss): the number of equally likely tokens the model is in doubt between."""
        return math.exp(min(self.loss, 700.0))

    def to_metrics(self) -> dict[str, float]:
        """Return the means under the names of metrics.jsonl."""
        return {
            f"eval/{self.name}_loss": self.loss,
            **{f"eval/{self.name}_{name}": mean for name, mean in self.means.items()},
            "eval/perplexity": self.perplexity,
        }


def evaluate_objective(
    compute: Callable[[Batch], Outcome],
    objective: Objective,
    batches: Sequence[Batch],
    place: tuple[int, int] = (0, 1),
    sum_over_processes: Callable[[Sequence[float]], Sequence[float]] = tuple,
) -> Evaluation:
    """Compute an objective on all batches, divided among processes.

    Args:
        compute: the objective's sums over a batch, which it moves to its device itself.
        objective: whose name and means the result has.
        batches: the same on every process.
        place: rank of this process, and number of those that call this together.
        sum_over_processes: adds up numbers of all of them.
    """
    rank, world_size = place
    loss_sum, num_targets = 0.0, 0
    sums = dict.fromkeys(objective.means, 0.0)
    with torch.no_grad():
        # With weights spread over processes every forward pass is a joint one, so all processes
        # make equally many; what is beyond the end does not count.
        for start in range(0, len(batches), world_size):
            counts = start + rank < len(batches)
            batch = batches[start + rank if counts else 0]
            outcome = compute(batch)
            if counts:
                loss_sum += outcome.loss_sum.item()
                num_targets += batch.num_targets
                for name in sums:
                    sums[name] += outcome.sums[name].item()
    loss_sum, total, *rest = sum_over_processes([loss_sum, float(num_targets), *sums.values()])
    means = {
        name: value / total if total else math.nan for name, value in zip(sums, rest, strict=True)
    }
    return Evaluation(objective.name, loss_sum / total if total else math.nan, means, int(total))
