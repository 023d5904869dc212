"""What models are measured on: a task says which cells it has, and computes one."""

import dataclasses
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from neobert_train.config.evaluate_schema import GridConfig, Method
from neobert_train.evaluation.candidates import Candidate
from neobert_train.evaluation.cells import Measurement
from neobert_train.evaluation.conditions import Conditions
from neobert_train.evaluation.embedder import embed_texts, load_embedder
from neobert_train.evaluation.labelled import LabelledData, draw
from neobert_train.evaluation.metrics import Scoring, compute_metrics, compute_score
from neobert_train.evaluation.probes import fit_classifier, fit_regressor, join_pairs
from neobert_train.tuning.examples import Examples
from neobert_train.tuning.hyperparameters import FineTuning

SCORE = "score"
# Examples whose tokens are counted for a plan.
_COUNTED_EXAMPLES = 200


class Task(Protocol):
    """Something that every model is measured on."""

    @property
    def name(self) -> str:
        """Return what `tasks=[...]` calls it."""

    @property
    def digest(self) -> str:
        """Return the hash of its examples or texts."""

    @property
    def seeds(self) -> Sequence[int]:
        """Return the seeds of its cells."""

    @property
    def scoring(self) -> Scoring | None:
        """Return how predictions are scored; None for a task without predictions."""

    @property
    def labels(self) -> np.ndarray | None:
        """Return the labels of the examples that are predicted; None likewise."""

    def list_settings(self) -> list[dict[str, Any]]:
        """Return the settings of its cells, each with every seed."""

    def measure(
        self, candidate: Candidate, settings: dict[str, Any], seed: int, conditions: Conditions
    ) -> Measurement:
        """Compute a cell; what it raises is why the cell has failed."""

    def estimate_flops(self, candidate: Candidate, settings: dict[str, Any]) -> float:
        """Return about how many floating-point operations a cell takes."""


class LabelledTask:
    """A task that is learned from labels: by fine-tuning, or by a probe on frozen features."""

    def __init__(self, name: str, data: LabelledData, grid: GridConfig) -> None:
        """Draw the examples that the grid asks for.

        Args:
            name: of the task.
            data: all its examples.
            grid: how it is learned.
        """
        self.name, self.digest, self._grid, self._classes = name, data.digest, grid, data.classes
        self.train, _ = draw(data.train, grid.max_train_examples, Scoring(()))
        self.evaluation, self.scoring = draw(
            data.evaluation, grid.max_evaluation_examples, data.scoring
        )
        self.labels = self.evaluation.labels
        self.seeds: Sequence[int] = grid.seeds if grid.method is Method.finetune else (0,)
        self.starts_from_mnli = grid.method is Method.finetune and name in grid.start_from_mnli

    def list_settings(self) -> list[dict[str, Any]]:
        """Return the hyper-parameters of the grid, or those of the probe."""
        grid = self._grid
        drawn = {
            "max_train_examples": grid.max_train_examples,
            "max_evaluation_examples": grid.max_evaluation_examples,
        }
        if grid.method is Method.probe:
            return [{"method": "probe", "max_length": grid.max_length, **drawn}]
        constant = {
            field.name: getattr(grid, field.name)
            for field in dataclasses.fields(FineTuning)
            if hasattr(grid, field.name) and field.name != "epochs"
        }
        return [
            {
                "method": "finetune", "learning_rate": learning_rate, "batch_size": batch_size,
                "weight_decay": weight_decay, "epochs": epochs, **constant, **drawn,
            }
            for learning_rate, batch_size, weight_decay, epochs in itertools.product(
                grid.learning_rates, grid.batch_sizes, grid.weight_decays,
                grid.task_epochs.get(self.name, grid.epochs),
            )
        ]  # fmt: skip

    def suggest_epochs(self, epochs: int) -> str:
        """Return the override by which this task is trained for so many epochs."""
        if self.name in self._grid.task_epochs:
            return f"'grid.task_epochs={{{self.name}:[{epochs}]}}'"
        return f"grid.epochs=[{epochs}]"

    def count_examples(self) -> dict[str, Any]:
        """Return what follows from the number of examples; of fine-tuning also the steps of each setting."""
        counts: dict[str, Any] = {
            "training_examples": len(self.train), "evaluation_examples": len(self.evaluation),
        }  # fmt: skip
        if self._grid.method is Method.finetune:
            steps = {
                _pick_tuning(each).count_steps(len(self.train)) for each in self.list_settings()
            }
            counts["steps"] = sorted(steps)
        return counts

    def measure(
        self, candidate: Candidate, settings: dict[str, Any], seed: int, conditions: Conditions
    ) -> Measurement:
        """Learn the task, and score the predictions of the evaluation examples."""
        if settings["method"] == "probe":
            predictions = self._probe(candidate, settings, conditions)
        else:
            predictions = self.fine_tune(candidate, settings, seed, conditions)
        values = compute_metrics(self.scoring, predictions, self.labels)
        values[SCORE] = compute_score(self.scoring, predictions, self.labels)
        return Measurement(values, predictions.tolist())

    def fine_tune(
        self,
        candidate: Candidate,
        settings: dict[str, Any],
        seed: int,
        conditions: Conditions,
        save_to: Path | None = None,
    ) -> np.ndarray:
        """Train a cell; returns predictions, and writes the encoder to a folder where one is given."""
        # Trainers need packages of an extra.
        from neobert_train.tuning.finetuning import RunOptions, fine_tune

        tuning = _pick_tuning(settings)
        length = min(tuning.max_length, candidate.max_length)
        start = Path(settings["start_folder"]) if "start_folder" in settings else None
        num_classes = None if self._classes is None else len(self._classes)
        return fine_tune(
            lambda: candidate.load_encoder(start),
            candidate.load_tokenizer(self.train.is_of_words),
            self.train,
            self.evaluation,
            lambda predictions: compute_score(self.scoring, predictions, self.labels),
            dataclasses.replace(tuning, max_length=length),
            seed,
            RunOptions(num_classes, conditions.bf16, save_to),
        )

    def _probe(
        self, candidate: Candidate, settings: dict[str, Any], conditions: Conditions
    ) -> np.ndarray:
        model = load_embedder(candidate, settings["max_length"], conditions)

        def embed(examples: Examples) -> np.ndarray:
            texts = [examples.texts, *([] if examples.pairs is None else [examples.pairs])]
            vectors = [embed_texts(model, part, conditions.batch_tokens) for part in texts]
            return vectors[0] if len(vectors) == 1 else join_pairs(*vectors)

        train, evaluation = embed(self.train), embed(self.evaluation)
        fit = fit_regressor if self._classes is None else fit_classifier
        return fit(train, self.train.labels, evaluation)

    def estimate_flops(self, candidate: Candidate, settings: dict[str, Any]) -> float:
        """Return 6 operations a parameter and training token, and 2 in a forward pass."""
        tokenizer = candidate.load_tokenizer(self.train.is_of_words)
        length = min(settings["max_length"], candidate.max_length)
        train = _count_tokens(tokenizer, self.train, length)
        evaluation = _count_tokens(tokenizer, self.evaluation, length) * len(self.evaluation)
        if settings["method"] == "probe":
            return 2.0 * candidate.num_parameters * (train * len(self.train) + evaluation)
        tuning = _pick_tuning(settings)
        steps, every = tuning.count_steps(len(self.train)), tuning.evaluate_every_steps
        times = 1 if every is None else max(1, steps // every)
        return candidate.num_parameters * (
            6.0 * steps * tuning.batch_size * train + 2.0 * times * evaluation
        )


def _pick_tuning(settings: dict[str, Any]) -> FineTuning:
    """Return the hyper-parameters among the settings of a cell."""
    names = {field.name for field in dataclasses.fields(FineTuning)}
    return FineTuning(**{key: value for key, value in settings.items() if key in names})


def _count_tokens(tokenizer: Any, examples: Examples, length: int) -> float:
    """Return the mean number of tokens of an example."""
    part = examples.take(np.arange(min(len(examples), _COUNTED_EXAMPLES)))
    pairs = None if part.pairs is None else list(part.pairs)
    encoded = tokenizer(
        list(part.texts), pairs, truncation=True, max_length=length,
        is_split_into_words=part.is_of_words,
    )  # fmt: skip
    return float(np.mean([len(ids) for ids in encoded["input_ids"]]))
