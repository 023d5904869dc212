"""The tasks by their names: the only place that knows which class is which task."""

from collections.abc import Callable
from pathlib import Path

from neobert_train.config.evaluate_schema import EvaluateConfig
from neobert_train.config.tasks import GLUE, expand_tasks
from neobert_train.evaluation.labelled import load_glue, load_own
from neobert_train.evaluation.language import MaskedLMTask, PseudoPerplexityTask, ThroughputTask
from neobert_train.evaluation.similarity import RetrievalTask, SimilarityTask
from neobert_train.evaluation.tasks import LabelledTask, Task


def _find_data(config: EvaluateConfig) -> Path:
    assert config.data_dir is not None  # checked before anything starts
    return Path(config.data_dir).expanduser()


def _build_glue(name: str, config: EvaluateConfig) -> Task:
    data = load_glue(name, None if config.data_dir is None else _find_data(config))
    return LabelledTask(name, data, config.grid)


def _build_own(name: str, config: EvaluateConfig) -> Task:
    return LabelledTask(name, load_own(name, _find_data(config)), config.grid)


TASKS: dict[str, Callable[[str, EvaluateConfig], Task]] = {
    **dict.fromkeys(GLUE, _build_glue),
    "classification": _build_own,
    "token_classification": _build_own,
    "sts": lambda name, config: SimilarityTask(name, _find_data(config), config.grid.max_length),
    "retrieval": lambda name, config: RetrievalTask(
        name, _find_data(config), config.grid.max_length, config.prompts
    ),
    "masked_lm": lambda _, config: MaskedLMTask(config),
    "pseudo_perplexity": lambda _, config: PseudoPerplexityTask(config),
    "throughput": lambda _, config: ThroughputTask(config),
}


def build_tasks(config: EvaluateConfig) -> list[Task]:
    """Return the tasks that are asked for, with their data.

    Raises:
        InputError: data cannot be read.
    """
    return [TASKS[name.partition("/")[0]](name, config) for name in expand_tasks(config.tasks)]
