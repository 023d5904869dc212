"""The trainer of sentence-transformers, with checkpoints without pickles, and that stops when asked to."""

import math
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from datasets import DatasetDict
from safetensors import SafetensorError
from sentence_transformers import (
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
)
from sentence_transformers.sentence_transformer.losses import CachedMultipleNegativesRankingLoss
from transformers import PrinterCallback, TrainerCallback

from neobert_train.config.embed_schema import Decay, EmbedConfig
from neobert_train.config.schema import Precision
from neobert_train.files import remove, sync_folder, sync_tree
from neobert_train.tuning.embedder_folder import EmbedderFolder
from neobert_train.tuning.embedding_data import Pairs
from neobert_train.tuning.embedding_model import write_model
from neobert_train.tuning.embedding_sampler import WeightedSetSampler, build_rows_sampler
from neobert_train.tuning.pair_rows import ANCHOR
from neobert_train.tuning.trainer_state import (
    load_optimizer,
    load_random_states,
    save_optimizer,
    save_random_states,
)

_STATE_FILE = "trainer_state.json"  # the name by which transformers looks for it
_SCHEDULES = {
    Decay.linear: "linear", Decay.cosine: "cosine", Decay.constant: "constant_with_warmup",
}  # fmt: skip


class DivergedError(RuntimeError):
    """The loss is no number any more."""


def count_steps(config: EmbedConfig, sets: dict[str, Pairs]) -> int:
    """Return the optimiser steps of a training."""
    batches = sum(len(pairs.rows) // config.batch_size for pairs in sets.values())
    return config.max_steps or config.epochs * batches


def list_prompts(config: EmbedConfig, sets: dict[str, Pairs]) -> dict[str, dict[str, str]] | None:
    """Return the text before each column of each set; None where there is none at all."""
    prompts: dict[str, dict[str, str]] = {}
    for name, pairs in config.list_sets().items():
        before = {True: pairs.anchor_prompt, False: pairs.positive_prompt}
        usual = {True: config.query_prompt, False: config.document_prompt}
        for column in sets[name].rows.column_names:
            own = before[column == ANCHOR]
            prompts.setdefault(name, {})[column] = usual[column == ANCHOR] if own is None else own
    return prompts if any(any(columns.values()) for columns in prompts.values()) else None


class EmbeddingTrainer(SentenceTransformerTrainer):
    """Trains with InfoNCE over the batch, whose gradients are cached for each mini-batch.

    Args:
        model: to train.
        config: of the training.
        sets: the data, by name.
        folder: where checkpoints are written.
        precision: bf16 or fp32.
        device: that the model is moved to.
    """

    def __init__(
        self,
        model: SentenceTransformer,
        config: EmbedConfig,
        sets: dict[str, Pairs],
        folder: EmbedderFolder,
        precision: Precision,
        device: torch.device,
    ) -> None:
        self._config, self._folder = config, folder
        steps = count_steps(config, sets)
        model.to(device)
        loss = CachedMultipleNegativesRankingLoss(
            model, scale=1.0 / config.temperature, mini_batch_size=config.mini_batch_size
        )
        sampler = partial(
            WeightedSetSampler,
            find_step=lambda: self.state.global_step,
            exponent=config.sampling_exponent,
            names=list(sets),
        )
        arguments = SentenceTransformerTrainingArguments(
            output_dir=str(folder.steps.checkpoints),
            max_steps=steps,
            per_device_train_batch_size=config.batch_size,
            learning_rate=config.lr,
            lr_scheduler_type=_SCHEDULES[config.decay],
            warmup_steps=round(config.warmup_fraction * steps),
            weight_decay=config.weight_decay,
            adam_beta1=config.betas[0],
            adam_beta2=config.betas[1],
            max_grad_norm=config.max_grad_norm,
            optim="adamw_torch_fused" if device.type == "cuda" else "adamw_torch",
            bf16=precision is Precision.bf16,
            use_cpu=device.type == "cpu",
            seed=config.seed,
            prompts=list_prompts(config, sets),
            batch_sampler=build_rows_sampler,
            multi_dataset_batch_sampler=sampler,
            dataloader_drop_last=True,
            dataloader_pin_memory=device.type == "cuda",
            logging_steps=config.log_every_steps,
            logging_first_step=True,
            logging_nan_inf_filter=False,
            save_steps=config.save_every_steps,
            report_to="none",
            disable_tqdm=True,
        )
        arguments._n_gpu = min(1, arguments.n_gpu)  # on all GPUs DataParallel would be slower
        rows = DatasetDict({name: pairs.rows for name, pairs in sets.items()})
        super().__init__(model, arguments, train_dataset=rows, loss=loss)
        self.remove_callback(PrinterCallback)

    def add_model_card_callback(self, default_args_dict: dict[str, Any]) -> None:
        """Leave out what collects examples for the library's own model card; ours needs none."""

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Write a checkpoint whole or not at all, and remove those before it."""
        step, steps = self.state.global_step, self._folder.steps
        draft = steps.temporary_checkpoint(step)
        try:
            remove(draft)
            draft.mkdir(parents=True)
            write_model(self.model, draft, self._config)
            save_optimizer(draft, self._bare_optimizer, self.lr_scheduler, self._names)
            save_random_states(draft)
            self.state.save_to_json(str(draft / _STATE_FILE))
            sync_tree(draft)
            remove(steps.checkpoint(step))
            draft.rename(steps.checkpoint(step))
            sync_folder(steps.checkpoints)
            for other, _ in steps.list_checkpoints():
                if other != step:
                    steps.remove_checkpoint(other)
        except (OSError, SafetensorError) as error:
            raise self._folder.explain(error) from error

    def _load_from_checkpoint(self, checkpoint: str, model: Any = None) -> None:
        """Do nothing: the model that the trainer was given has the weights of the checkpoint."""

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            load_optimizer(Path(checkpoint), self._bare_optimizer, self.lr_scheduler, self._names)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            load_random_states(Path(checkpoint))

    @property
    def _bare_optimizer(self) -> Any:
        return getattr(self.optimizer, "optimizer", self.optimizer)

    @property
    def _names(self) -> dict[Any, str]:
        return {parameter: name for name, parameter in self.model.named_parameters()}


class Progress(TrainerCallback):
    """Notes metrics, and ends the training with a checkpoint when that is asked for.

    Args:
        config: of the training.
        folder: for the metrics.
        find_stop: says what asks to stop; None while nothing does.
        show: told the metrics of a step, the steps of all, and the seconds that are left.
    """

    def __init__(
        self,
        config: EmbedConfig,
        folder: EmbedderFolder,
        find_stop: Callable[[], str | None],
        show: Callable[[dict[str, Any], int, float], None],
    ) -> None:
        self._config, self._folder = config, folder
        self._find_stop, self._show = find_stop, show
        self._since = (0, 0.0)  # step and time of the latest record
        self._first = (0, 0.0)  # those after the first step, which sets kernels up

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Start the clock."""
        self._since = (state.global_step, time.monotonic())
        self._first = (-1, 0.0)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Ask for a checkpoint where the training is to stop."""
        if self._first[0] < 0:
            self._first = (state.global_step, time.monotonic())
        if self._find_stop() is not None:
            control.should_save = control.should_training_stop = True
        # The loss is summed up from one record to the next, and that sum is in no checkpoint.
        control.should_log = control.should_log or control.should_save

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Write down the metrics of a step.

        Raises:
            DivergedError: the loss is not finite.
            InputError: they cannot be written.
        """
        if "loss" not in (logs or {}):
            return
        step, now = state.global_step, time.monotonic()
        if not math.isfinite(logs["loss"]):
            raise DivergedError(
                f"the loss of step {step} is {logs['loss']}: lower lr (it is {self._config.lr:g}), and "
                f"begin again in another output"
            )
        rows = (step - self._since[0]) * self._config.batch_size
        record = {
            "step": step,
            "loss": logs["loss"],
            "learning_rate": logs["learning_rate"],
            "grad_norm": logs["grad_norm"] if math.isfinite(logs["grad_norm"]) else None,
            "rows_per_second": rows / max(now - self._since[1], 1e-9),
        }
        self._since = (step, now)
        self._folder.add_metrics(record)
        done = step - self._first[0]
        per_step = (
            (now - self._first[1]) / done
            if done
            else self._config.batch_size / record["rows_per_second"]
        )
        self._show(record, state.max_steps, (state.max_steps - step) * per_step)
