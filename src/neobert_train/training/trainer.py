"""The training loop."""

import copy
import logging
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from neobert_train.batch import Batch
from neobert_train.config.schema import (
    OnWriteError,
    TrainConfig,
    TrainerConfig,
)
from neobert_train.data.lane.targets import describe_no_targets
from neobert_train.data.loader import StepLoader
from neobert_train.distributed import Collectives
from neobert_train.errors import InputError
from neobert_train.evaluation.heldout import Evaluation, evaluate_objective
from neobert_train.run.checkpoint import (
    Checkpoint,
    TrainingState,
    load_moments,
    load_state,
    load_weights,
)
from neobert_train.run.checkpoint_search import find_checkpoint
from neobert_train.run.directory import RunDirectory
from neobert_train.run.shared import share_checkpoint
from neobert_train.training.checkpoint_writer import CheckpointWriter
from neobert_train.training.console import Console
from neobert_train.training.divergence import DivergedError, Guard
from neobert_train.training.engine import Engine, EngineState
from neobert_train.training.metrics_log import MetricsLog
from neobert_train.training.preemption import StopRequest
from neobert_train.training.probing import (
    ProbeTexts,
    compute_features,
    format_scores,
    score_features,
)
from neobert_train.training.step_batches import StepBatches, StoppedError, collect_step
from neobert_train.training.step_meter import StepMeter, StepResult
from neobert_train.training.watchdog import Watchdog

logger = logging.getLogger(__name__)


@dataclass
class Trainer:
    """Takes optimiser steps until the run is complete.

    Attributes:
        config: of the run.
        engine: trains the objective.
        loader: the batches of this process.
        collectives: sums over processes.
        state: how far the run has come; of `lanes`, those this process serves.
        meter: turns steps into metrics.
        evaluation_batches: held-out documents, the same on every process; empty for none.
        probe_texts: texts of the probes, the same on every process; None for none.
        run: the run directory.
        guard: decides what to do about steps that do harm.
        writer, metrics: on the main process only, None elsewhere.
        console: shows progress.
        watchdog: ends this process when it hangs.
        stop: requests to stop.
        begins: whether the run has no checkpoint yet.
        latest_evaluation: what the last evaluation of this process's life gave.
        latest_probes: the scores of its last probes, by the names of metrics.jsonl.
    """

    config: TrainConfig
    engine: Engine
    loader: StepLoader
    collectives: Collectives
    state: TrainingState
    meter: StepMeter
    evaluation_batches: Sequence[Batch]
    probe_texts: ProbeTexts | None
    run: RunDirectory
    guard: Guard
    writer: CheckpointWriter | None
    metrics: MetricsLog | None
    console: Console
    watchdog: Watchdog
    stop: StopRequest
    begins: bool
    latest_evaluation: Evaluation | None = None
    latest_probes: dict[str, float] = field(default_factory=dict)
    _saved_step: int | None = field(default=None, init=False)
    _slowest_step: float = field(default=0.0, init=False)
    _collect_seconds: float = field(default=0.0, init=False)
    _evaluation_seconds: float = field(default=0.0, init=False)
    _probe_seconds: float = field(default=0.0, init=False)

    def fit(self) -> None:
        """Train until the run is complete.

        Raises:
            StoppedError: a signal or the time limit; the state is saved.
            InputError: the data cannot be read on, or leaves nothing to predict; the state is saved.
            DivergedError: step after step had to be skipped.
        """
        trainer = self.config.trainer
        self.stop.begin_training()
        if self.begins and self.config.hub.repository and self.config.checkpoint.keep_every_steps:
            self._save()  # the untrained model is published too
        if self.state.step == 0 and self.probe_texts is not None:
            self._write({"train/tokens": 0, **self._probe()})
        while not is_complete(trainer, self.state):
            result = self._take_step()
            step, last = self.state.step, is_complete(trainer, self.state)
            self.state.heldout_loss = None
            saves = last or step % self.config.checkpoint.save_every_steps == 0
            record: dict[str, Any] = {}
            if last or step % trainer.log_every_steps == 0:
                record |= self.meter.compute(self.state)
                self.guard.look_at(step, record["train/loss"])
                self._warn_of_failed_writes()
            self.console.advance(result.data.tokens, result.seconds, record)
            if last or _is_due(step, trainer.evaluate_every_steps):
                record |= self._evaluate()
            if last or _is_due(step, self.config.evaluation.probe_every_steps):
                record |= self._probe()
            self._write(record)
            if saves:
                self._save()

    def _write(self, record: dict[str, Any]) -> None:
        """Write the metrics of this step, if there are any."""
        if record and self.metrics is not None:
            self.metrics.write({"step": self.state.step, **record})

    def close(self) -> None:
        """Finish what is being written and end the worker processes."""
        self._begin("ending the run")
        self.console.close()
        self.loader.close()
        if self.metrics is not None:
            self.metrics.close()
        if self.writer is not None:
            self.writer.join()

    def _take_step(self) -> StepResult:
        start = time.perf_counter()
        data = self._collect_batches()
        self._begin(f"step {self.state.step + 1}")
        losses, sums, grad_norm = self._forward_backward(data.batches, data.num_targets)
        self.state.step += 1
        if math.isfinite(grad_norm):
            self.state.updates += 1
            self.guard.note_update()
        elif self.guard.note_skipped(self.state.step, data.batches, losses):
            self._rewind()
        self.state.tokens += data.tokens
        self.state.num_targets += data.num_targets
        self.state.lanes.update({batch.lane: batch.lane_state for batch in data.batches})
        seconds = round(time.perf_counter() - start, 3)
        if self.config.trainer.max_seconds is not None:
            # All processes count the seconds of the main one, so that they end together.
            (milliseconds,) = self.collectives.broadcast([round(1000 * seconds)])
            seconds = milliseconds / 1000
        self.state.seconds += seconds
        # A wait for data hears a request to stop at once.
        self._slowest_step = max(0.9 * self._slowest_step, seconds - data.wait_seconds)
        result = StepResult(data, losses, sums, seconds, grad_norm)
        self.meter.add(result)
        return result

    def _collect_batches(self) -> StepBatches:
        """Wait for the next step's batches; the state is saved if they do not come."""
        self.watchdog.rest()  # the wait has limits of its own, and ends with a checkpoint
        self.console.note(f"waiting for the data of step {self.state.step + 1}")
        patience = self.config.trainer.step_timeout_seconds
        try:
            data = collect_step(self.loader, self.collectives, self._find_reason_to_stop, patience)
            if not data.num_targets:
                raise InputError(
                    describe_no_targets(
                        data.text_tokens,
                        data.unknown_tokens,
                        f"step {self.state.step + 1}",
                        self.config.tokenizer.path,
                    )
                )
            return data
        except (InputError, StoppedError):
            self._save()
            raise

    def _warn_of_failed_writes(self) -> None:
        if self.writer is not None and self.writer.failure:
            logger.warning("%s; training continues, and tries again", self.writer.failure)

    def _begin(self, what: str) -> None:
        self.watchdog.begin(what)
        self.console.note(what)

    def _find_reason_to_stop(self) -> str | None:
        if self.writer is not None:
            # A step, an evaluation and probes if they are due, collecting the state, and writing it,
            # as long as the last ones took.
            step = self.state.step + 1
            evaluates = _is_due(step, self.config.trainer.evaluate_every_steps)
            probes = _is_due(step, self.config.evaluation.probe_every_steps)
            self.stop.seconds_to_stop = 2 * (
                self._slowest_step
                + self._evaluation_seconds * evaluates
                + self._probe_seconds * probes
                + self._collect_seconds
                + self.writer.write_seconds
            )
            if self.writer.failure and self.config.checkpoint.on_error is OnWriteError.stop:
                return f"checkpoint.on_error=stop ({self.writer.failure})"
        return self.stop.reason

    def _forward_backward(
        self, batches: Sequence[Batch], num_targets: int
    ) -> tuple[list[Tensor], dict[str, Tensor], float]:
        """Accumulate the gradient of the mean loss over the global batch, and step.

        DeepSpeed averages gradients over processes; times their number over the targets of all, the
        sum over micro-batches is the gradient of one big batch.

        Returns:
            The summed loss of each micro-batch, the objective's other sums over them, and the
            gradient's norm. A norm that is not finite says that the weights were not updated.
        """
        self.engine.set_learning_rate(self.state.step + 1)
        scale = self.collectives.world.world_size / max(1, num_targets)
        losses: list[Tensor] = []
        sums: dict[str, Tensor] = {}
        grad_norm = math.nan
        for index, batch in enumerate(batches):
            outcome = self.engine.compute(batch)
            losses.append(outcome.loss_sum.detach())
            for name, value in outcome.sums.items():
                sums[name] = sums[name] + value if name in sums else value
            loss = outcome.loss_sum
            is_last = index == len(batches) - 1
            if is_last and self.guard.must_skip(losses, num_targets):
                # A gradient that is not finite is what every ZeRO stage skips by itself.
                loss = loss * math.nan
            self.engine.backward(loss * scale)
            grad_norm = self.engine.step()
        return losses, sums, grad_norm

    def _rewind(self) -> None:
        """Continue with the weights and moments of the last sound checkpoint, and the next documents.

        Raises:
            DivergedError: there is none.
        """
        if self.writer is not None:
            self.writer.join()
        checkpoint = share_checkpoint(self.collectives, lambda: find_checkpoint(self.run))
        state = self.collectives.on_all(lambda: load_state(checkpoint) if checkpoint else None)
        if checkpoint is None or state is None or not state.updates:
            raise DivergedError("the run diverges, and has no trained checkpoint to go back to")
        weights, moments = self.collectives.on_all(
            lambda: (load_weights(checkpoint), load_moments(checkpoint))
        )
        self.engine.restore(EngineState(weights, moments, state.updates))
        self.state.updates = state.updates
        if self.collectives.world.is_main:
            logger.warning(
                "went back to the weights of step %d; continues after step %d with the documents that "
                "follow", state.step, self.state.step,
            )  # fmt: skip

    def _evaluate(self) -> dict[str, float]:
        if not self.evaluation_batches:
            return {}
        self._begin(f"the evaluation after step {self.state.step}")
        started = time.perf_counter()
        world = self.collectives.world
        self.engine.train(False)
        self.latest_evaluation = evaluate_objective(
            self.engine.compute,
            self.engine.objective,
            self.evaluation_batches,
            (world.rank, world.world_size),
            self.collectives.sum_floats,
        )
        self.engine.train()
        self._evaluation_seconds = time.perf_counter() - started
        evaluation = self.latest_evaluation
        self.state.heldout_loss = evaluation.loss
        self.console.say(
            f"step {self.state.step}: held-out loss {evaluation.loss:.4f}, "
            + ", ".join(f"{name} {mean:.1%}" for name, mean in evaluation.means.items())
        )
        return evaluation.to_metrics()

    def _probe(self) -> dict[str, float]:
        """Return the scores of the probes; every process takes part."""
        if self.probe_texts is None:
            return {}
        self._begin(f"encoding the texts of the probes after step {self.state.step}")
        started = time.perf_counter()
        self.engine.train(False)
        features = compute_features(self.engine.encode, self.probe_texts, self.collectives)
        self.engine.train()
        self._begin(f"the probes after step {self.state.step}")
        self.latest_probes = score_features(features, self.probe_texts, self.collectives)
        self._probe_seconds = time.perf_counter() - started
        if self.latest_probes:
            self.console.say(f"step {self.state.step}: {format_scores(self.latest_probes)}")
        return self.latest_probes

    def _save(self) -> None:
        """Collect the whole state and hand it to the writer; every process takes part."""
        if self._saved_step == self.state.step:
            return
        self._begin(f"collecting the state of step {self.state.step}")
        self._saved_step, started = self.state.step, time.perf_counter()
        if self.writer is not None:
            self.writer.join()  # one copy of the state in memory at most
        if self.metrics is not None:
            self.metrics.sync()
        lanes: dict[int, dict[str, Any]] = {}
        for part in self.collectives.gather(self.state.lanes):
            lanes.update({int(lane): state for lane, state in part.items()})
        model = self.engine.read_state(self.state.updates, keep=self.writer is not None)
        if self.writer is not None and model is not None:
            # Training continues while it is written.
            divergence = copy.deepcopy(self.state.divergence)
            state = replace(self.state, lanes=lanes, divergence=divergence)
            self.writer.write(Checkpoint(state, model.weights, model.moments))
        self._collect_seconds = time.perf_counter() - started


def is_complete(trainer: TrainerConfig, state: TrainingState) -> bool:
    """Return whether a run has come to the end of its steps, tokens or seconds."""
    return state.step >= trainer.max_steps or find_early_end(trainer, state) is not None


def find_early_end(trainer: TrainerConfig, state: TrainingState) -> str | None:
    """Return the setting that ends a run before its last step; None where it goes on or took that."""
    if state.step >= trainer.max_steps:
        return None
    if trainer.max_tokens is not None and state.tokens >= trainer.max_tokens:
        return f"trainer.max_tokens={trainer.max_tokens}"
    if trainer.max_seconds is not None and state.seconds >= trainer.max_seconds:
        return f"trainer.max_seconds={trainer.max_seconds:g}"
    return None


def _is_due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0
