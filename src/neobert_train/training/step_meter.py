"""The metrics of steps, summed over processes."""

import logging
import math
from collections.abc import Sequence
from dataclasses import astuple, dataclass, field
from typing import Any

from torch import Tensor

from neobert_train.config.derived import compute_num_lanes, resolve_sources
from neobert_train.config.schema import TrainConfig
from neobert_train.data.lane.lane import SourceProgress, sum_progress
from neobert_train.data.lane.targets import MOST_UNKNOWN, describe_unknown
from neobert_train.distributed import Collectives
from neobert_train.machine.devices import PeakMeter
from neobert_train.models.size import ModelSize
from neobert_train.optim.schedules import compute_learning_rate
from neobert_train.run.checkpoint import TrainingState
from neobert_train.training.divergence import reduce_loss
from neobert_train.training.step_batches import StepBatches

logger = logging.getLogger(__name__)


@dataclass
class StepResult:
    """What one optimiser step did on this process, and what all processes know of it.

    Attributes:
        data: what it trained on.
        losses: summed loss of each of this process's micro-batches, on the device.
        sums: the objective's other sums over them by name, on the device.
        seconds: duration of the step, data included.
        grad_norm: of the global batch, before clipping; NaN where the weights were not updated.
    """

    data: StepBatches
    losses: list[Tensor]
    sums: dict[str, Tensor]
    seconds: float
    grad_norm: float


@dataclass
class StepMeter:
    """Computes what metrics.jsonl says of steps; every process calls it alike.

    Attributes:
        config: of the run.
        collectives: sums over processes.
        size: of the model.
        peak: of this process's device.
        warned_of_unknown: whether it was said that the tokenizer knows too little of the documents.
    """

    config: TrainConfig
    collectives: Collectives
    size: ModelSize
    peak: PeakMeter
    warned_of_unknown: bool = False
    _steps: list[StepResult] = field(default_factory=list, init=False)

    def add(self, result: StepResult) -> None:
        """Take a step into account."""
        self._steps.append(result)

    def compute(self, state: TrainingState) -> dict[str, Any]:
        """Return the metrics of the latest step; speeds are averages since the last call.

        Args:
            state: of this process after that step.

        Returns:
            Values by the keys of `METRICS`.
        """
        steps, self._steps = self._steps, []
        latest, num_steps = steps[-1], len(steps)
        seconds = sum(step.seconds for step in steps)
        tokens = sum(step.data.tokens for step in steps)
        return {
            **self._reduce(latest),
            "train/learning_rate": self._find_learning_rate(state.step),
            "train/grad_norm": latest.grad_norm,
            "train/skipped_steps": state.divergence.skipped_steps,
            "train/rewinds": state.divergence.rewinds,
            "train/tokens": state.tokens,
            "train/masked_tokens": state.num_targets,
            "train/tokens_per_second": tokens / seconds,
            **self._measure_work(steps, seconds),
            "train/step_seconds": seconds / num_steps,
            "train/data_wait_seconds": sum(step.data.wait_seconds for step in steps) / num_steps,
            "data/packing_efficiency": tokens / num_steps / self.config.batch.global_batch_tokens,
            "data/unknown_share": self._measure_unknown(steps, state.step),
            **self._count_records(state),
        }

    def _measure_work(self, steps: Sequence[StepResult], seconds: float) -> dict[str, float]:
        """Count the operations that the documents need, per second and as a share of the peak."""
        tokens = sum(step.data.tokens for step in steps)
        squares = sum(step.data.squared_lengths for step in steps)
        targets = sum(step.data.num_targets for step in steps)
        rate = self.size.compute_flops(tokens, squares, targets) / seconds
        work = {"train/flops_per_second": rate}
        own = self.peak.read()
        (peak,) = self.collectives.sum_floats([math.nan if own is None else own])
        # A busy CPU may not have shown its peak yet, and a share above 1 would mean nothing.
        return {**work, "train/mfu": rate / peak} if rate <= peak else work

    def _measure_unknown(self, steps: Sequence[StepResult], step_number: int) -> float:
        """Return the share of text tokens that are [UNK]; warn of a large one, once per start."""
        text_tokens = sum(step.data.text_tokens for step in steps)
        share = sum(step.data.unknown_tokens for step in steps) / max(1, text_tokens)
        if share > MOST_UNKNOWN and self.collectives.world.is_main and not self.warned_of_unknown:
            self.warned_of_unknown = True
            documents = f"the documents up to step {step_number}"
            logger.warning("%s", describe_unknown(share, documents, self.config.tokenizer.path))
        return share

    def _count_records(self, state: TrainingState) -> dict[str, Any]:
        """Count what all lanes have read so far, and given of each source."""
        names = list(resolve_sources(self.config.data))
        parts = [sum_progress(state.lanes.values(), name) for name in names]
        numbers = self.collectives.sum([n for part in parts for n in astuple(part)])
        width = len(numbers) // len(names)
        sources = {
            name: SourceProgress(*numbers[index * width : (index + 1) * width])
            for index, name in enumerate(names)
        }
        num_lanes = compute_num_lanes(self.config)
        total = SourceProgress(*map(sum, zip(*map(astuple, sources.values()), strict=True)))
        record: dict[str, Any] = {
            "data/documents": total.documents,
            "data/empty_records": total.empty,
            "data/bad_records": total.bad,
            "data/filtered_records": total.filtered,
        }
        for name, progress in sources.items():
            record[f"data/{name}/tokens"] = progress.tokens
            record[f"data/{name}/epoch"] = progress.epochs / num_lanes
            record[f"data/{name}/share"] = progress.tokens / max(1, total.tokens)
        return record

    def _reduce(self, result: StepResult) -> dict[str, float]:
        """Return the loss and the other means of the global batch."""
        num_targets = result.data.num_targets
        sums = self.collectives.sum_floats([float(value) for value in result.sums.values()])
        means = {
            f"train/{name}": value / max(1, num_targets)
            for name, value in zip(result.sums, sums, strict=True)
        }
        return {"train/loss": reduce_loss(self.collectives, result.losses, num_targets), **means}

    def _find_learning_rate(self, step: int) -> float:
        """Return the rate of parameters whose `lr_multiplier` is 1."""
        config = self.config
        return compute_learning_rate(
            config.scheduler, step, config.trainer.max_steps, config.optimizer.lr
        )
