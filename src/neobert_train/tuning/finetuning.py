"""Fine-tune an encoder on the examples of a task, by transformers' trainer.

Every encoder gets the same new head, the one of NeoBERT's fine-tuning code (arXiv 2502.19587,
appendix C): the first token's state, dropout, dense, tanh, dropout, linear; for words, each
word's first token, dropout, linear.
"""

import math
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)

from neobert_train.tuning.examples import Examples
from neobert_train.tuning.hyperparameters import FineTuning

IGNORED = -100
_STANDARD_DEVIATION = 0.02
_MULTIPLE = 8


class Classifier(nn.Module):
    """An encoder with a new head: scores of classes, or one score for regression."""

    # What the trainer hands to losses of its own would reach the encoder among the inputs.
    accepts_loss_kwargs = False

    def __init__(
        self, encoder: PreTrainedModel, num_outputs: int, dropout: float, on_words: bool
    ) -> None:
        """Put a head on an encoder; its weights are drawn from torch's generator.

        Args:
            encoder: gives `last_hidden_state`.
            num_outputs: classes; 1 for regression.
            dropout: of the head.
            on_words: whether every token is classified, and not the text.
        """
        super().__init__()
        self.encoder, self.on_words = encoder, on_words
        self.dropout = nn.Dropout(dropout)
        width = encoder.config.hidden_size
        self.dense = None if on_words else nn.Linear(width, width)
        self.classifier = nn.Linear(width, num_outputs)
        for layer in filter(None, (self.dense, self.classifier)):
            nn.init.normal_(layer.weight, std=_STANDARD_DEVIATION)
            nn.init.zeros_(layer.bias)

    def forward(self, labels: Tensor | None = None, **inputs: Tensor) -> dict[str, Tensor]:
        """Compute scores, and with labels the mean loss.

        Args:
            labels: [B] int64 classes or float32 scores; on words [B, S] with -100 where there is none.
            inputs: of the encoder, `input_ids` [B, S] and what else its tokenizer gives.

        Returns:
            `logits` [B, num_outputs], on words [B, S, num_outputs]; `loss` where there are labels.
        """
        states = self.encoder(**inputs).last_hidden_state
        if self.dense is None:
            logits = self.classifier(self.dropout(states))
        else:
            pooled = torch.tanh(self.dense(self.dropout(states[:, 0])))
            logits = self.classifier(self.dropout(pooled))
        if labels is None:
            return {"logits": logits}
        scores = logits.float()
        if labels.is_floating_point():
            return {"loss": nn.functional.mse_loss(scores.squeeze(-1), labels), "logits": logits}
        loss = nn.functional.cross_entropy(scores.flatten(0, -2), labels.flatten())
        return {"loss": loss, "logits": logits}


def fine_tune(
    load: Callable[[], PreTrainedModel],
    tokenizer: PreTrainedTokenizerBase,
    train: Examples,
    evaluation: Examples,
    score: Callable[[np.ndarray], float],
    settings: FineTuning,
    seed: int,
    options: "RunOptions",
) -> np.ndarray:
    """Train one run, and return the predictions of its best evaluation.

    Args:
        load: gives the encoder, in fp32.
        tokenizer: of the encoder.
        train, evaluation: examples with labels.
        score: of predictions for the evaluation examples; the larger the better.
        settings: hyper-parameters.
        seed: of the head, dropout and the order of examples.
        options: classes, precision and what is kept.

    Returns:
        [n] int64 classes or float64 scores of the evaluation examples; of a task on words, of all
        their words.

    Raises:
        FloatingPointError: the scores are not finite.
    """
    set_seed(seed)
    num_outputs = options.num_classes or 1
    network = Classifier(load(), num_outputs, settings.dropout, train.is_of_words)
    encoded = _encode(tokenizer, train, settings.max_length)
    held_out = _encode(tokenizer, evaluation, settings.max_length)
    with tempfile.TemporaryDirectory() as temporary:
        arguments = _build_arguments(temporary, settings, len(train), seed, options.bf16)
        most_frequent = int(np.bincount(train.labels).argmax()) if options.num_classes else 0
        best = _Best(held_out, evaluation, score, settings.patience, most_frequent)
        trainer = _Trainer(
            settings, model=network, args=arguments, train_dataset=encoded, callbacks=[best],
            data_collator=_Collator(tokenizer),
        )  # fmt: skip
        trainer.remove_callback(PrinterCallback)
        best.trainer = trainer
        trainer.train()
    if settings.evaluate_every_steps is None:
        best.evaluate()
    if options.save_to is not None:
        network.encoder.save_pretrained(options.save_to)
        tokenizer.save_pretrained(options.save_to)
    assert best.predictions is not None
    return best.predictions


@dataclass(frozen=True)
class RunOptions:
    """What a run needs beside its hyper-parameters.

    Attributes:
        num_classes: None for regression.
        bf16: whether forward passes are in bf16 by autocast, or else in fp32.
        save_to: folder for the encoder at the end, with its tokenizer; None keeps nothing.
    """

    num_classes: int | None
    bf16: bool = False
    save_to: Path | None = None


def _build_arguments(
    folder: str, settings: FineTuning, num_examples: int, seed: int, bf16: bool
) -> TrainingArguments:
    every = settings.evaluate_every_steps
    if every is not None:
        per_epoch = num_examples // settings.batch_size // settings.evaluations_per_epoch
        every = max(1, min(every, per_epoch))
    arguments = TrainingArguments(
        folder,
        per_device_train_batch_size=settings.batch_size,
        per_device_eval_batch_size=max(32, settings.batch_size),
        learning_rate=settings.learning_rate,
        weight_decay=settings.weight_decay,
        adam_beta1=settings.adam_beta1,
        adam_beta2=settings.adam_beta2,
        adam_epsilon=settings.adam_epsilon,
        max_grad_norm=settings.max_grad_norm or 0.0,
        max_steps=settings.count_steps(num_examples),
        logging_strategy="no",
        save_strategy="no",
        eval_strategy="no",
        eval_steps=every,
        report_to="none",
        disable_tqdm=True,
        bf16=bf16,
        use_cpu=not torch.cuda.is_available(),
        seed=seed,
        data_seed=seed,
        dataloader_pin_memory=torch.cuda.is_available(),
        remove_unused_columns=False,
    )
    arguments._n_gpu = min(1, arguments.n_gpu)  # a run is of one device; others take other cells
    return arguments


class _Trainer(Trainer):
    """A trainer with our schedule."""

    def __init__(self, settings: FineTuning, **options: Any) -> None:
        super().__init__(**options)
        self._settings = settings

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """Return the schedule of the settings."""
        self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(
            optimizer or self.optimizer,
            lambda step: self._settings.multiply(step, num_training_steps),
        )
        self._created_lr_scheduler = True
        return self.lr_scheduler


class _Best(TrainerCallback):
    """Keeps the predictions of the best evaluation, and ends a run that no longer gains."""

    def __init__(
        self,
        held_out: list[dict[str, Any]],
        evaluation: Examples,
        score: Callable[[np.ndarray], float],
        patience: int | None,
        most_frequent: int,
    ) -> None:
        self.trainer: Trainer | None = None
        self.predictions: np.ndarray | None = None
        self._held_out, self._evaluation, self._score = held_out, evaluation, score
        self._patience, self._best, self._without_gain = patience, -math.inf, 0
        self._most_frequent = most_frequent

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Evaluate where it is due."""
        if args.eval_steps and (
            state.global_step % args.eval_steps == 0 or state.global_step == state.max_steps
        ):
            self.evaluate()
            if self._patience is not None and self._without_gain >= self._patience:
                control.should_training_stop = True

    def evaluate(self) -> None:
        """Predict the evaluation examples, and keep what is better than before."""
        predictions = self._predict()
        score = self._score(predictions)
        self._without_gain += 1
        if score > self._best:
            self._best, self.predictions, self._without_gain = score, predictions, 0

    def _predict(self) -> np.ndarray:
        assert self.trainer is not None
        network = self.trainer.model
        network.eval()
        # Like lengths together, for little padding.
        order = np.argsort([len(example["input_ids"]) for example in self._held_out], kind="stable")
        found: dict[int, Tensor] = {}
        device, size = self.trainer.args.device, self.trainer.args.eval_batch_size
        for first in range(0, len(order), size):
            indices = order[first : first + size]
            batch = self.trainer.data_collator([self._held_out[i] for i in indices])
            del batch["labels"]
            inputs = {name: value.to(device) for name, value in batch.items()}
            with torch.no_grad(), self.trainer.compute_loss_context_manager():
                logits = network(**inputs)["logits"].float().cpu()
            if not torch.isfinite(logits).all():
                raise FloatingPointError("the scores of the evaluation examples are not finite")
            found.update(zip(indices.tolist(), logits, strict=True))
        network.train()
        return self._decide([found[index] for index in range(len(order))])

    def _decide(self, logits: list[Tensor]) -> np.ndarray:
        """Return the predictions of examples from their scores."""
        if not self._evaluation.is_of_words:
            scores = torch.stack(logits)
            if self._evaluation.labels.dtype.kind == "f":
                return scores.squeeze(-1).double().numpy()
            return scores.argmax(-1).numpy()
        # Of a word behind the longest length that a model takes nothing is known.
        classes = [np.full(len(words), self._most_frequent) for words in self._evaluation.texts]
        for found, row, scores in zip(classes, self._held_out, logits, strict=True):
            tokens = [i for i, label in enumerate(row["labels"]) if label != IGNORED]
            found[[row["words"][i] for i in tokens]] = scores[tokens].argmax(-1).numpy()
        return np.concatenate(classes)


def _encode(
    tokenizer: PreTrainedTokenizerBase, examples: Examples, max_length: int
) -> list[dict[str, Any]]:
    """Return the inputs of every example, with its `labels`."""
    if not examples.is_of_words:
        encoding = tokenizer(
            list(examples.texts), None if examples.pairs is None else list(examples.pairs),
            truncation=True, max_length=max_length,
        )  # fmt: skip
        labels: Sequence[Any] = examples.labels.tolist()
        names = list(encoding.keys())
    else:
        encoding = tokenizer(
            [list(words) for words in examples.texts], truncation=True, max_length=max_length,
            is_split_into_words=True,
        )  # fmt: skip
        labels = _align(encoding, examples)
        names = [*encoding.keys(), "words"]
        encoding["words"] = [encoding.word_ids(i) for i in range(len(examples))]
    rows = zip(*(encoding[name] for name in names), labels, strict=True)
    return [dict(zip([*names, "labels"], row, strict=True)) for row in rows]


def _align(encoding: Any, examples: Examples) -> list[list[int]]:
    """Return a label for the first token of every word, and -100 for the others."""
    aligned, first = [], 0
    for number, words in enumerate(examples.texts):
        row, before = [], None
        for word in encoding.word_ids(number):
            is_first = word is not None and word != before
            row.append(int(examples.labels[first + word]) if is_first else IGNORED)
            before = word
        aligned.append(row)
        first += len(words)
    return aligned


class _Collator:
    """Pads examples to the longest of a batch, and to a multiple of eight."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
        inputs = [{k: v for k, v in row.items() if k not in ("labels", "words")} for row in rows]
        batch = dict(self._tokenizer.pad(inputs, pad_to_multiple_of=_MULTIPLE, return_tensors="pt"))
        labels = [row["labels"] for row in rows]
        if isinstance(labels[0], list):
            width = batch["input_ids"].shape[1]
            labels = [row + [IGNORED] * (width - len(row)) for row in labels]
        kind = torch.float32 if isinstance(labels[0], float) else torch.int64
        batch["labels"] = torch.tensor(labels, dtype=kind)
        return batch
