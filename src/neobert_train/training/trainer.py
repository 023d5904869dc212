"""The training loop."""

import math
import time
from collections.abc import Sequence
from dataclasses import astuple, dataclass, field, replace
from typing import Any

import torch

from neobert_train.batch import Batch
from neobert_train.checkpoint import Checkpoint, TrainingState
from neobert_train.config.derived import compute_num_lanes, resolve_sources
from neobert_train.config.schema import TrainConfig
from neobert_train.data.lanes import SourceProgress, sum_progress
from neobert_train.data.loader import StepLoader
from neobert_train.distributed import Collectives
from neobert_train.errors import InputError
from neobert_train.evaluation.masked_lm import MaskedLMResult, evaluate_masked_lm
from neobert_train.optim.schedule import compute_learning_rate
from neobert_train.training.checkpointing import CheckpointWriter
from neobert_train.training.console import Console
from neobert_train.training.engine import read_engine_state, set_learning_rate, step_engine
from neobert_train.training.metrics import MetricsLog
from neobert_train.training.preemption import StopRequest


class DivergedError(RuntimeError):
    """The loss is no longer a number."""


class StoppedError(Exception):
    """A signal asked to stop; a checkpoint was written."""


@dataclass
class StepResult:
    """What one optimiser step did on this process, and what all processes know of it.

    Attributes:
        loss_sum: summed cross-entropy of this process's masked tokens, on the device.
        num_correct: right predictions of this process, on the device.
        tokens: tokens of documents in the global batch.
        masked_tokens: masked tokens in the global batch.
        seconds: duration of the step, data included.
        data_wait_seconds: part of it that waited for data.
    """

    loss_sum: torch.Tensor
    num_correct: torch.Tensor
    tokens: int
    masked_tokens: int
    seconds: float
    data_wait_seconds: float


@dataclass
class Trainer:
    """Takes optimiser steps until the run is complete.

    Attributes:
        config: of the run.
        engine: the DeepSpeed engine around the objective.
        loader: the batches of this process.
        collectives: sums over processes.
        state: how far the run has come; of `lanes`, those this process serves.
        evaluation_batches: held-out documents, the same on every process; empty for none.
        writer, metrics: on the main process only, None elsewhere.
        console: shows progress.
        stop: requests to stop.
        latest_evaluation: what the last evaluation of this process's life gave.
    """

    config: TrainConfig
    engine: Any
    loader: StepLoader
    collectives: Collectives
    state: TrainingState
    evaluation_batches: Sequence[Batch]
    writer: CheckpointWriter | None
    metrics: MetricsLog | None
    console: Console
    stop: StopRequest
    latest_evaluation: MaskedLMResult | None = None
    _since_log: list[StepResult] = field(default_factory=list, init=False)
    _grad_norm: float = field(default=math.nan, init=False)
    _saved_step: int | None = field(default=None, init=False)

    def fit(self) -> None:
        """Train until `trainer.max_steps`.

        Raises:
            StoppedError: a signal came; the state is saved.
            InputError: the data cannot be read on; the state is saved.
            DivergedError: the loss is not finite.
        """
        trainer, max_steps = self.config.trainer, self.config.trainer.max_steps
        while self.state.step < max_steps:
            result = self._take_step()
            step, last = self.state.step, self.state.step == max_steps
            saves = last or step % self.config.checkpoint.save_every_steps == 0
            record: dict[str, Any] = {}
            if last or step % trainer.log_every_steps == 0:
                record |= self._compute_metrics(result)
            if last or _is_due(step, trainer.evaluate_every_steps):
                record |= self._evaluate()
            if record and self.metrics is not None:
                self.metrics.write({"step": step, **record})
            if saves:
                self._check_finite(result)
                self._save()
            self.console.advance()

    def close(self) -> None:
        """Finish what is being written and end the worker processes."""
        self.console.close()
        self.loader.close()
        if self.metrics is not None:
            self.metrics.close()
        if self.writer is not None:
            self.writer.join()

    def _take_step(self) -> StepResult:
        start = time.perf_counter()
        batches, failure = self._next_batches()
        data_wait = time.perf_counter() - start
        tokens = sum(batch.num_tokens for batch in batches)
        masked = sum(batch.num_masked for batch in batches)
        tokens, masked, failures, stops = self.collectives.sum(
            [tokens, masked, failure is not None, self.stop.requested]
        )
        if failures:
            self._save()
            messages = self.collectives.gather_objects(failure)
            raise InputError.from_problems(list(dict.fromkeys(str(m) for m in messages if m)))
        if stops:
            self._save()
            names = self.collectives.gather_objects(self.stop.signal_name)
            raise StoppedError(next(name for name in names if name))
        loss_sum, num_correct = self._forward_backward(batches, masked)
        self.state.step += 1
        self.state.tokens += tokens
        self.state.masked_tokens += masked
        self.state.lanes.update({batch.lane: batch.lane_state for batch in batches})
        seconds = time.perf_counter() - start
        result = StepResult(loss_sum, num_correct, tokens, masked, seconds, data_wait)
        self._since_log.append(result)
        return result

    def _next_batches(self) -> tuple[list[Batch], str | None]:
        try:
            return self.loader.next_step(), None
        except InputError as error:
            return [], str(error)

    def _forward_backward(
        self, batches: Sequence[Batch], masked_tokens: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Accumulate the gradient of the mean loss over the global batch, and step.

        DeepSpeed averages gradients over processes; times their number over the masked tokens of
        all, the sum over micro-batches is the gradient of one big batch.
        """
        engine = self.engine
        set_learning_rate(engine, compute_learning_rate(self.config, self.state.step + 1))
        scale = self.collectives.world.world_size / max(1, masked_tokens)
        loss_sum = torch.zeros((), device=engine.device)
        num_correct = torch.zeros((), device=engine.device, dtype=torch.int64)
        for batch in batches:
            loss, correct = engine(batch.to(engine.device))
            engine.backward(loss * scale, scale_wrt_gas=False)
            self._grad_norm = step_engine(engine, self.config.optimizer.max_grad_norm)
            loss_sum += loss.detach()
            num_correct += correct
        return loss_sum, num_correct

    def _compute_metrics(self, result: StepResult) -> dict[str, Any]:
        """Metrics of the step just taken; speeds are means since the last logged step."""
        recent, self._since_log = self._since_log, []
        loss, accuracy = self._reduce(result)
        seconds = sum(step.seconds for step in recent)
        tokens = sum(step.tokens for step in recent)
        record: dict[str, Any] = {
            "train/loss": loss,
            "train/accuracy": accuracy,
            "train/learning_rate": compute_learning_rate(self.config, self.state.step),
            "train/grad_norm": float(self._grad_norm),
            "train/tokens": self.state.tokens,
            "train/masked_tokens": self.state.masked_tokens,
            "train/tokens_per_second": tokens / seconds,
            "train/step_seconds": seconds / len(recent),
            "train/data_wait_seconds": sum(step.data_wait_seconds for step in recent) / len(recent),
            "data/packing_efficiency": tokens / len(recent) / self.config.batch.global_batch_tokens,
            **self._count_records(),
        }
        steps_left = self.config.trainer.max_steps - self.state.step
        self.console.show(
            {"step": self.state.step, **record}, steps_left * record["train/step_seconds"]
        )
        return record

    def _count_records(self) -> dict[str, Any]:
        """What the lanes have read so far and given of each source, summed over all of them."""
        names = list(resolve_sources(self.config.data))
        parts = [sum_progress(self.state.lanes.values(), name) for name in names]
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

    def _reduce(self, result: StepResult) -> tuple[float, float]:
        """Loss and accuracy of the global batch."""
        local = [result.loss_sum.item(), float(result.num_correct.item())]
        loss_sum, num_correct = self.collectives.sum_floats(local)
        return loss_sum / result.masked_tokens, num_correct / result.masked_tokens

    def _evaluate(self) -> dict[str, float]:
        if not self.evaluation_batches:
            return {}
        world = self.collectives.world
        self.engine.eval()
        self.latest_evaluation = evaluate_masked_lm(
            self.engine,
            self.evaluation_batches,
            self.engine.device,
            world.rank,
            world.world_size,
            self.collectives.sum_floats,
        )
        self.engine.train()
        evaluation = self.latest_evaluation
        self.console.say(
            f"step {self.state.step}: held-out loss {evaluation.loss:.4f}, "
            f"accuracy {evaluation.accuracy:.1%}"
        )
        return evaluation.to_metrics()

    def _check_finite(self, result: StepResult) -> None:
        loss, _ = self._reduce(result)
        if not math.isfinite(loss):
            raise DivergedError(
                f"the loss is {loss} at step {self.state.step}; the last checkpoint is from before: "
                f"lower optimizer.lr or lengthen scheduler.warmup_steps, and start again"
            )

    def _save(self) -> None:
        """Collect the whole state and hand it to the writer; every process takes part."""
        if self._saved_step == self.state.step:
            return
        self._saved_step = self.state.step
        lanes: dict[int, dict[str, Any]] = {}
        for part in self.collectives.gather_objects(self.state.lanes):
            lanes.update(part)  # type: ignore[call-overload]
        model = read_engine_state(self.engine, self.state.step, keep=self.writer is not None)
        if self.writer is not None and model is not None:
            state = replace(self.state, lanes=lanes)
            self.writer.write(Checkpoint(state, model.weights, model.moments))


def _is_due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0
