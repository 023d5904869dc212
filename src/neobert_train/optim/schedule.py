"""The learning rate of every step, computed from the step alone."""

import math

from neobert_train.config.derived import compute_decay_end
from neobert_train.config.schema import ScheduleName, TrainConfig


def compute_learning_rate(config: TrainConfig, step: int) -> float:
    """Learning rate of optimiser step `step`, counted from 1.

    Linear warm-up reaches the peak at step `warmup_steps`; the decay reaches
    `final_lr_ratio x peak` at step `decay_fraction x max_steps`, and stays there.
    """
    schedule, peak = config.scheduler, config.optimizer.lr
    if step <= schedule.warmup_steps:
        return peak * step / schedule.warmup_steps
    if schedule.name is ScheduleName.constant:
        return peak
    decay_steps = compute_decay_end(config) - schedule.warmup_steps
    progress = min(1.0, (step - schedule.warmup_steps) / decay_steps) if decay_steps else 1.0
    if schedule.name is ScheduleName.linear:
        remaining = 1.0 - progress
    else:
        remaining = 0.5 * (1.0 + math.cos(math.pi * progress))
    floor = schedule.final_lr_ratio * peak
    return floor + (peak - floor) * remaining
