"""Tasks of MTEB (Muennighoff et al. 2023, arXiv 2210.07316), measured by its own library."""

import logging
import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import mteb
import numpy as np
from mteb.models.model_meta import ModelMeta
from mteb.models.sentence_transformer_wrapper import SentenceTransformerEncoderWrapper

from neobert_train.config.suggestion import suggest
from neobert_train.errors import InputError
from neobert_train.evaluation.candidates import Candidate
from neobert_train.evaluation.cells import Measurement
from neobert_train.evaluation.conditions import Conditions
from neobert_train.evaluation.embedder import load_embedder
from neobert_train.evaluation.metrics import Scoring
from neobert_train.files import hash_file, hash_json

NANOBEIR = "NanoBEIR"
_REPOSITORY = re.compile(r"[^/\s]+/[^/\s]+")


class MTEBTask:
    """The main score of a task of MTEB."""

    scoring: Scoring | None = None
    labels: np.ndarray | None = None
    seeds: Sequence[int] = (0,)

    def __init__(
        self, task: Any, max_length: int, prompts: Mapping[str, str], records: Path
    ) -> None:
        """Take a task of the library.

        Args:
            task: an `AbsTask`.
            max_length: tokens after which texts are cut.
            prompts: what is written before texts, by `query` and `document`; a model's own where there
                are none.
            records: folder for the library's own records, as its leaderboard takes them.
        """
        self._task, self._max_length, self._records = task, max_length, records
        self._prompts = dict(prompts)
        self.name = f"mteb/{task.metadata.name}"
        self.digest = str(task.metadata.dataset.get("revision"))

    def list_settings(self) -> list[dict[str, Any]]:
        """Return the one setting of vectors; another version of the library is another cell."""
        return [
            {"max_length": self._max_length, "prompts": self._prompts, "mteb": mteb.__version__}
        ]

    def measure(
        self, candidate: Candidate, settings: dict[str, Any], seed: int, conditions: Conditions
    ) -> Measurement:
        """Return the main score, and keep the library's own record."""
        model = load_embedder(candidate, settings["max_length"], conditions)
        logging.getLogger("mteb").setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            encoder = SentenceTransformerEncoderWrapper(model, model_prompts=self._prompts or None)
            encoder.mteb_model_meta = _describe(candidate, model.max_seq_length)
            results = mteb.evaluate(
                encoder,
                self._task,
                co2_tracker=False,
                cache=mteb.ResultCache(self._records),
                overwrite_strategy="always",  # what is there is known by its cell
                encode_kwargs={
                    "batch_size": max(1, conditions.batch_tokens // model.max_seq_length),
                    "show_progress_bar": False,
                },
                show_progress_bar=False,
            )
        (result,) = results.task_results
        return Measurement({"main_score": float(result.get_score())})

    def estimate_flops(self, candidate: Candidate, settings: dict[str, Any]) -> float:
        """Return 2 operations a parameter and token, a fifth of the longest length a text.

        The library knows the number of texts of most tasks; without it the estimate is 0.
        """
        statistics = self._task.metadata.descriptive_stats or {}
        texts = sum(int(split.get("num_samples", 0)) for split in statistics.values())
        return 2.0 * candidate.num_parameters * texts * self._max_length / 5


def list_mteb_tasks(benchmark: str, names: Sequence[str], data_dir: Path | None) -> list[Any]:
    """Return tasks of the library.

    Args:
        benchmark: whose tasks are taken, such as `MTEB(eng, v2)`.
        names: of single tasks; all of the benchmark where there are none.
        data_dir: whose folder `mteb/NAME` holds the files of a task, where it is there.

    Raises:
        InputError: there is no such benchmark or task.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about tasks that nobody has asked for
        known = sorted(each.name for each in mteb.get_benchmarks())
    if benchmark not in known:
        raise InputError(f"MTEB has no benchmark {benchmark}: {suggest(benchmark, known)}")
    tasks = {task.metadata.name: task for task in mteb.get_benchmark(benchmark).tasks}
    for name in names:
        if name not in tasks:
            raise InputError(
                f"the benchmark {benchmark} has no task {name}: {suggest(name, tasks)}"
            )
    chosen = [tasks[name] for name in names or tasks]
    for task in chosen:
        folder = None if data_dir is None else data_dir / "mteb" / task.metadata.name
        if folder is not None and folder.is_dir():
            # A folder has no revision, and its files tell whether it is another task.
            task.metadata.dataset = {"path": str(folder), "revision": _hash_folder(folder)}
    return chosen


def _hash_folder(folder: Path) -> str:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return hash_json([[str(path.relative_to(folder)), hash_file(path)] for path in files])


def _describe(candidate: Candidate, max_length: int) -> ModelMeta:
    """Return what the library's records say of a model."""
    name, _, revision = candidate.label.partition("@")
    if not _REPOSITORY.fullmatch(name) or Path(name).exists():
        name = f"local/{re.sub(r'[^A-Za-z0-9_.-]+', '-', name).strip('-')}"
    return ModelMeta.create_empty(
        overwrites={
            "name": name,
            "revision": revision or candidate.digest[:12],
            "n_parameters": candidate.num_parameters,
            "max_tokens": max_length,
        }
    )
