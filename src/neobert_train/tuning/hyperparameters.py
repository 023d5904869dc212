"""Hyper-parameters of fine-tuning, and what follows from them; imports no trainer."""

import math
from dataclasses import dataclass

from neobert_train.config.choices import LinearConfig
from neobert_train.optim.schedules import compute_learning_rate


@dataclass(frozen=True)
class FineTuning:
    """Hyper-parameters of one run; `GridConfig` describes them.

    Attributes:
        max_steps, evaluate_every_steps, patience, max_grad_norm: None for none.
    """

    learning_rate: float
    batch_size: int
    weight_decay: float
    epochs: int
    max_steps: int | None
    warmup_fraction: float
    decay_fraction: float
    final_fraction: float
    evaluate_every_steps: int | None
    evaluations_per_epoch: int
    patience: int | None
    max_length: int
    dropout: float
    adam_beta1: float
    adam_beta2: float
    adam_epsilon: float
    max_grad_norm: float | None

    def count_steps(self, num_examples: int) -> int:
        """Return the steps of a run over this many training examples."""
        steps = self.epochs * math.ceil(num_examples / self.batch_size)
        return steps if self.max_steps is None else min(steps, self.max_steps)

    def multiply(self, step: int, steps: int) -> float:
        """Return the learning rate of a step, counted from 0, as a share of the peak."""
        schedule = LinearConfig(
            warmup_steps=round(self.warmup_fraction * steps),
            decay_fraction=self.decay_fraction,
            final_lr_ratio=self.final_fraction,
        )
        return compute_learning_rate(schedule, step + 1, steps)
