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
    held_out = _Collator(tokenizer, evaluation, settings.max_length)
    with tempfile.TemporaryDirectory() as temporary:
        arguments = _build_arguments(temporary, settings, len(train), seed, options.bf16)
        most_frequent = int(np.bincount(train.labels).argmax()) if options.num_classes else 0

        def keep() -> None:
            if options.save_to is not None:
                network.encoder.save_pretrained(options.save_to)
                tokenizer.save_pretrained(options.save_to)

        best = _Best(held_out, score, settings.patience, most_frequent, keep)
        trainer = _Trainer(
            settings, model=network, args=arguments, train_dataset=range(len(train)),
            callbacks=[best], data_collator=_Collator(tokenizer, train, settings.max_length),
        )  # fmt: skip
        trainer.remove_callback(PrinterCallback)
        best.trainer = trainer
        trainer.train()
    if settings.evaluate_every_steps is None:
        best.evaluate()
    assert best.predictions is not None
    return best.predictions


@dataclass(frozen=True)
class RunOptions:
    """What a run needs beside its hyper-parameters.

    Attributes:
        num_classes: None for regression.
        bf16: whether forward passes are in bf16 by autocast, or else in fp32.
        save_to: folder for the encoder of the best evaluation, with its tokenizer; None keeps nothing.
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
        held_out: "_Collator",
        score: Callable[[np.ndarray], float],
        patience: int | None,
        most_frequent: int,
        keep: Callable[[], None],
    ) -> None:
        self.trainer: Trainer | None = None
        self.predictions: np.ndarray | None = None
        self._held_out, self._score = held_out, score
        self._patience, self._best, self._without_gain = patience, -math.inf, 0
        self._most_frequent, self._keep = most_frequent, keep

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
            self._keep()

    def _predict(self) -> np.ndarray:
        assert self.trainer is not None
        network = self.trainer.model
        network.eval()
        examples = self._held_out.examples
        # Like lengths together, for little padding.
        order = np.argsort([len(text) for text in examples.texts], kind="stable")
        # Of a word behind the longest length that a model takes nothing is known.
        predictions = np.full(len(examples.labels), self._most_frequent, examples.labels.dtype)
        device, size = self.trainer.args.device, self.trainer.args.eval_batch_size
        for first in range(0, len(order), size):
            indices = order[first : first + size].tolist()
            inputs, words = self._held_out.encode(indices)
            inputs = {name: value.to(device) for name, value in inputs.items()}
            with torch.no_grad(), self.trainer.compute_loss_context_manager():
                logits = network(**inputs)["logits"].float().cpu()
            if not torch.isfinite(logits).all():
                raise FloatingPointError("the scores of the evaluation examples are not finite")
            if words is not None:
                is_first = words >= 0
                predictions[words[is_first].numpy()] = logits[is_first].argmax(-1).numpy()
            elif examples.labels.dtype.kind == "f":
                predictions[indices] = logits.squeeze(-1).numpy()
            else:
                predictions[indices] = logits.argmax(-1).numpy()
        network.train()
        return predictions


class _Collator:
    """Turns the numbers of examples into a batch of tokens and labels, padded to a multiple of eight.

    Texts become tokens when they are needed: of a large task few cells see all examples.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, examples: Examples, max_length: int
    ) -> None:
        self.examples, self._tokenizer, self._max_length = examples, tokenizer, max_length
        if examples.is_of_words:
            lengths = [len(words) for words in examples.texts]
            self._first_words = np.cumsum(lengths) - lengths

    def __call__(self, indices: Sequence[int]) -> dict[str, Tensor]:
        inputs, words = self.encode(indices)
        if words is None:
            labels = torch.from_numpy(self.examples.labels[list(indices)])
            labels = labels.float() if labels.is_floating_point() else labels
        else:
            labels = torch.full(words.shape, IGNORED)
            known = torch.from_numpy(self.examples.labels)
            labels[words >= 0] = known[words[words >= 0]]
        return {**inputs, "labels": labels}

    def encode(self, indices: Sequence[int]) -> tuple[dict[str, Tensor], Tensor | None]:
        """Return inputs [B, S], and of examples of words the number of the word of every first token.

        Words are numbered over all examples; other tokens have -1.
        """
        part = [self.examples.texts[i] for i in indices]
        pairs = None if self.examples.pairs is None else [self.examples.pairs[i] for i in indices]
        # No padding beyond what a model with an odd longest length takes.
        multiple = None if self._max_length % _MULTIPLE else _MULTIPLE
        encoding = self._tokenizer(
            part, pairs, truncation=True, max_length=self._max_length, padding=True,
            pad_to_multiple_of=multiple, return_tensors="pt",
            is_split_into_words=self.examples.is_of_words,
        )  # fmt: skip
        if not self.examples.is_of_words:
            return dict(encoding), None
        words = torch.full(encoding["input_ids"].shape, -1)
        for row, index in enumerate(indices):
            before = None
            for place, word in enumerate(encoding.word_ids(row)):
                if word is not None and word != before:
                    words[row, place] = int(self._first_words[index]) + word
                before = word
        return dict(encoding), words
