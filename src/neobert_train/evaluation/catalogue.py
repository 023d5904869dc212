"""The tasks by their names: the only place that knows which class is which task."""

from collections.abc import Callable, Sequence
from pathlib import Path

from neobert_train.config.evaluate_schema import EvaluateConfig
from neobert_train.config.tasks import GLUE, PROBES, expand_tasks
from neobert_train.evaluation.labelled import load_glue, load_own
from neobert_train.evaluation.language import MaskedLMTask, PseudoPerplexityTask, ThroughputTask
from neobert_train.evaluation.probe_tasks import ProbeTask
from neobert_train.evaluation.similarity import RetrievalTask, SimilarityTask
from neobert_train.evaluation.tasks import LabelledTask, Task
from neobert_train.extras import require_packages


def _find_data(config: EvaluateConfig) -> Path:
    assert config.data_dir is not None  # checked before anything starts
    return Path(config.data_dir).expanduser()


def _build_glue(name: str, config: EvaluateConfig) -> list[Task]:
    data = load_glue(name, None if config.data_dir is None else _find_data(config))
    return [LabelledTask(name, data, config.grid)]


def _build_own(name: str, config: EvaluateConfig) -> list[Task]:
    return [LabelledTask(name, load_own(name, _find_data(config)), config.grid)]


def _build_sts(name: str, config: EvaluateConfig) -> list[Task]:
    return [SimilarityTask(name, _find_data(config), config.grid.max_length)]


def _list_prompts(config: EvaluateConfig) -> dict[str, str | None]:
    return {"query": config.query_prompt, "document": config.document_prompt}


def _build_retrieval(name: str, config: EvaluateConfig) -> list[Task]:
    return [RetrievalTask(name, _find_data(config), config.grid.max_length, _list_prompts(config))]


def _build_mteb(name: str, config: EvaluateConfig) -> list[Task]:
    require_packages("evaluation", ["mteb"], f"tasks=[{name}]")
    from neobert_train.evaluation.mteb_tasks import NANOBEIR, MTEBTask, list_mteb_tasks

    is_nano = name == "nanobeir"
    benchmark = NANOBEIR if is_nano else config.mteb.benchmark
    data_dir = None if config.data_dir is None else _find_data(config)
    tasks = list_mteb_tasks(benchmark, [] if is_nano else config.mteb.tasks, data_dir)
    records = Path(str(config.output)).expanduser() / "mteb"
    prompts = {kind: text for kind, text in _list_prompts(config).items() if text is not None}
    return [MTEBTask(task, config.grid.max_length, prompts, records) for task in tasks]


TASKS: dict[str, Callable[[str, EvaluateConfig], Sequence[Task]]] = {
    **dict.fromkeys(GLUE, _build_glue),
    **dict.fromkeys(PROBES, lambda name, config: [ProbeTask(name, config.grid.max_length)]),
    "classification": _build_own,
    "token_classification": _build_own,
    "sts": _build_sts,
    "retrieval": _build_retrieval,
    "nanobeir": _build_mteb,
    "mteb": _build_mteb,
    "masked_lm": lambda _, config: [MaskedLMTask(config)],
    "pseudo_perplexity": lambda _, config: [PseudoPerplexityTask(config)],
    "throughput": lambda _, config: [ThroughputTask(config)],
}


def build_tasks(config: EvaluateConfig) -> list[Task]:
    """Return the tasks that are asked for, with their data.

    Raises:
        InputError: data cannot be read, or a package is missing.
    """
    return [
        task
        for name in expand_tasks(config.tasks)
        for task in TASKS[name.partition("/")[0]](name, config)
    ]
