"""Steps that do harm: found, and their documents written down to be looked at."""

import itertools
import logging
import math
import statistics
from collections.abc import Sequence
from typing import Any

import torch

from neobert_train.batch import Batch
from neobert_train.config.schema import OnDivergence, OnSpike, TrainConfig
from neobert_train.distributed import Collectives
from neobert_train.files import write_json
from neobert_train.run.checkpoint import DivergenceState
from neobert_train.run.directory import RunDirectory
from neobert_train.tokenizers.text_tokenizer import TextTokenizer

logger = logging.getLogger(__name__)


class DivergedError(RuntimeError):
    """Training has gone wrong in a way that the configuration does not fix."""


class SpikeDetector:
    """Compares every loss with the median of those before it.

    Args:
        factor: a loss above this many times the median is a spike; 0 finds none.
        window: losses that the median is taken over; before so many are seen, none is a spike.
        losses: seen before, oldest first; extended and cut in place.
    """

    def __init__(self, factor: float, window: int, losses: list[float]) -> None:
        self._factor, self._window = factor, window
        self._losses = losses

    def is_spike(self, loss: float) -> bool:
        """Return whether a loss stands out. It is not counted among those to compare with if it does."""
        full = len(self._losses) >= self._window
        if self._factor and full and loss > self._factor * self.median:
            return True
        self._losses.append(loss)
        del self._losses[: -self._window]
        return False

    @property
    def median(self) -> float:
        """Of the losses that are compared with."""
        return statistics.median(self._losses)


class Guard:
    """Decides which steps are skipped and when to go back, and writes down what they held.

    Args:
        config: of the run.
        collectives: of its processes, which all come to the same decisions.
        run: where `anomalies/` lies.
        tokenizer: turns tokens back into text.
        state: what happened so far; kept up to date in place.
    """

    def __init__(
        self,
        config: TrainConfig,
        collectives: Collectives,
        run: RunDirectory,
        tokenizer: TextTokenizer,
        state: DivergenceState,
    ) -> None:
        self._config, self._collectives = config.divergence, collectives
        self._run, self._tokenizer, self._state = run, tokenizer, state
        self._spikes = SpikeDetector(
            self._config.spike_factor, self._config.spike_window, state.recent_losses
        )
        self._spike: float | None = None

    def must_skip(self, losses: Sequence[torch.Tensor], num_targets: int) -> bool:
        """Return whether a step has to be skipped for its loss, which is known before its update.

        Args:
            losses: summed loss of each micro-batch of this process.
            num_targets: of the global batch.
        """
        self._spike = None
        if not self._config.spike_factor or self._config.on_spike is OnSpike.warn:
            return False
        loss = reduce_loss(self._collectives, losses, num_targets)
        if math.isfinite(loss) and self._spikes.is_spike(loss):
            self._spike = loss
        return self._spike is not None

    def note_update(self) -> None:
        """Take into account that the weights were updated."""
        self._state.skipped_in_a_row = 0

    def note_skipped(
        self, step: int, batches: Sequence[Batch], losses: Sequence[torch.Tensor]
    ) -> bool:
        """Take into account that a step was skipped: warn, and write its documents down.

        Returns:
            Whether to go back to the last checkpoint.

        Raises:
            DivergedError: it was one too many.
        """
        reason = self._find_reason(losses)
        state = self._state
        state.skipped_steps += 1
        state.skipped_in_a_row += 1
        self._write_anomaly(step, reason, batches, losses)
        if self._collectives.world.is_main:
            logger.warning(
                "step %d was skipped: %s; its documents are in %s",
                step,
                reason,
                self._run.anomalies,
            )
        rewinds = self._spike is not None and self._config.on_spike is OnSpike.rewind
        if not rewinds and state.skipped_in_a_row >= self._config.max_skipped_steps:
            rewinds = self._config.action is OnDivergence.rewind
            if not rewinds:
                raise DivergedError(
                    f"{state.skipped_in_a_row} steps in a row were skipped, the last one, {step}, because "
                    f"{reason}: look at {self._run.anomalies}, lower optimizer.lr or lengthen "
                    f"scheduler.warmup_steps; divergence.action=rewind goes back to the last "
                    f"checkpoint and on past these documents"
                )
        if rewinds:
            state.skipped_in_a_row = 0
            state.rewinds += 1
            if state.rewinds > self._config.max_rewinds:
                raise DivergedError(
                    f"the run went back {self._config.max_rewinds} times (divergence.max_rewinds), "
                    f"and diverges again because {reason}"
                )
        return rewinds

    def look_at(self, step: int, loss: float) -> None:
        """Warn of the loss of a logged step where it is a spike."""
        if self._config.on_spike is not OnSpike.warn or not math.isfinite(loss):
            return
        if self._spikes.is_spike(loss) and self._collectives.world.is_main:
            logger.warning(
                "the loss of step %d, %.4f, is far above the running median %.4f",
                step, loss, self._spikes.median,
            )  # fmt: skip

    def _find_reason(self, losses: Sequence[torch.Tensor]) -> str:
        if self._spike is not None:
            return f"its loss {self._spike:.4f} is far above the median {self._spikes.median:.4f}"
        finite = all(math.isfinite(float(loss)) for loss in losses)
        (num_infinite,) = self._collectives.sum([not finite])
        return "the loss is not finite" if num_infinite else "the gradient is not finite"

    def _write_anomaly(
        self, step: int, reason: str, batches: Sequence[Batch], losses: Sequence[torch.Tensor]
    ) -> None:
        """Write down the micro-batches to blame, or all where each looks sound by itself."""
        found = [(batch, float(loss)) for batch, loss in zip(batches, losses, strict=True)]
        blamed = [(batch, loss) for batch, loss in found if not math.isfinite(loss)]
        (num_blamed,) = self._collectives.sum([len(blamed)])
        described = [
            _describe_micro_batch(batch, loss, self._tokenizer)
            for batch, loss in (blamed if num_blamed else found)
        ]
        parts = self._collectives.gather(described)
        if not self._collectives.world.is_main:
            return
        entries = [entry for part in parts for entry in part]
        try:
            self._run.anomalies.mkdir(exist_ok=True)
            write_json(
                self._run.anomalies / f"step-{step:08d}.json",
                {"step": step, "reason": reason, "micro_batches": entries},
            )
        except OSError as error:
            logger.warning("the documents of a skipped step cannot be written: %s", error)


def reduce_loss(
    collectives: Collectives, losses: Sequence[torch.Tensor], num_targets: int
) -> float:
    """Return the mean loss of the global batch, in nats per target.

    Args:
        collectives: of the processes that share the batch.
        losses: summed loss of each micro-batch of this process.
        num_targets: of the global batch.
    """
    (loss_sum,) = collectives.sum_floats([sum(float(loss) for loss in losses)])
    return loss_sum / max(1, num_targets)


def _describe_micro_batch(batch: Batch, loss: float, tokenizer: TextTokenizer) -> dict[str, Any]:
    """Return what a micro-batch held, as JSON."""
    ids = batch.input_ids.clone()
    ids[batch.masked_positions] = batch.labels
    bounds = itertools.pairwise(batch.cu_seqlens.tolist())
    return {
        "lane": batch.lane,
        "loss": str(loss / max(1, batch.num_targets)),  # JSON knows no NaN or infinity
        "documents": [tokenizer.decode(ids[start + 1 : end - 1].tolist()) for start, end in bounds],
    }
