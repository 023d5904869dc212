"""The learning rate of every step, computed from the step only."""

import math
from collections.abc import Callable

from neobert_train.config.choices import (
    CosineConfig,
    DecayShape,
    LinearConfig,
    SchedulerConfig,
    WSDConfig,
)


def compute_learning_rate(
    scheduler: SchedulerConfig, step: int, max_steps: int, peak: float = 1.0
) -> float:
    """Return the learning rate of optimiser step `step`, counted from 1.

    A linear warm-up reaches the peak at step `warmup_steps`. The decay begins and ends where the
    scheduler says, and its floor, `final_lr_ratio x peak`, holds to the end.

    Args:
        scheduler: its kind and settings.
        step: from 1.
        max_steps: of the run.
        peak: the rate after the warm-up; with 1 the result is a multiplier.
    """
    if step <= scheduler.warmup_steps:
        return peak * step / scheduler.warmup_steps
    decay = scheduler.find_decay(max_steps)
    if decay is None:
        return peak
    num_steps = decay.end - decay.start
    progress = min(1.0, max(0, step - decay.start) / num_steps) if num_steps > 0 else 1.0
    floor = decay.floor * peak
    return floor + (peak - floor) * SHAPES[type(scheduler)](scheduler, progress)


def _fall_as_cosine(scheduler: SchedulerConfig, progress: float) -> float:
    return 0.5 * (1.0 + math.cos(math.pi * progress))


def _fall_as_line(scheduler: SchedulerConfig, progress: float) -> float:
    return 1.0 - progress


def _fall_after_plateau(scheduler: SchedulerConfig, progress: float) -> float:
    assert isinstance(scheduler, WSDConfig)
    falls_linearly = scheduler.decay_shape is DecayShape.linear
    return 1.0 - (progress if falls_linearly else math.sqrt(progress))


# What remains between peak and floor once a share of the decay is over: from 1 at 0 to 0 at 1.
SHAPES: dict[type[SchedulerConfig], Callable[[SchedulerConfig, float], float]] = {
    CosineConfig: _fall_as_cosine,
    LinearConfig: _fall_as_line,
    WSDConfig: _fall_after_plateau,
}
