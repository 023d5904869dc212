"""What can be wrong with the settings of `evaluate`."""

from collections.abc import Iterator

from neobert_train.config.evaluate_schema import EvaluateConfig, GridConfig, Method
from neobert_train.config.tasks import GLUE, ON_TEXTS, OWN, describe_unknown, expand_tasks


def iter_evaluate_problems(config: EvaluateConfig) -> Iterator[str]:
    """Yield what is wrong with settings that are all in range."""
    if not config.tasks:
        yield "tasks=[] names nothing to measure: write tasks=[masked_lm] or tasks=[glue]"
    yield from filter(None, map(describe_unknown, config.tasks))
    yield from _iter_comparison_problems(config) if config.models else _iter_single_problems(config)
    if config.context_length and config.context_length > config.micro_batch_tokens:
        yield (
            f"context_length={config.context_length} does not fit in micro_batch_tokens="
            f"{config.micro_batch_tokens}: write micro_batch_tokens={config.context_length} or more"
        )


def _iter_single_problems(config: EvaluateConfig) -> Iterator[str]:
    if bool(config.run_dir) == bool(config.model):
        yield "give models=[...] to compare, or either run_dir=runs/NAME or model=FOLDER, and not both"
    if config.model and not config.paths:
        yield "model=... has no held-out documents of its own: write paths=[my_texts.parquet]"
    if config.model and config.step is not None:
        yield "step=... belongs to run_dir=...: an exported model has no steps"
    others = [
        task for task in config.tasks if task != "masked_lm" and describe_unknown(task) is None
    ]
    if others:
        name = config.run_dir or config.model or "FOLDER"
        yield (
            f"run_dir= and model= are measured by masked_lm only: for {', '.join(others)} write "
            f"'models=[{name}]' output=FOLDER"
        )


def _iter_comparison_problems(config: EvaluateConfig) -> Iterator[str]:
    single = [f"{key}=" for key in ("run_dir", "model", "step") if getattr(config, key) is not None]
    if single:
        yield f"models=[...] does not go with {' and '.join(single)}: write all models into models=[...]"
    if len(set(config.models)) < len(config.models):
        yield "models=[...] names a model twice: name it once"
    if not config.output:
        yield "models=[...] needs a folder for its cells and tables: write output=evaluations/NAME"
    tasks = expand_tasks(config.tasks)
    if any(task in ON_TEXTS for task in tasks) and not config.paths:
        yield "masked_lm and pseudo_perplexity of models=[...] need texts: write paths=[my_texts.parquet]"
    if config.data_dir is None:
        own = [task for task in tasks if task.partition("/")[0] in OWN]
        if own:
            yield (
                f"data_dir is missing, with your own files for {', '.join(own)}: write data_dir=FOLDER "
                f"(see docs/evaluation.md)"
            )
    if any(task in GLUE or task.partition("/")[0] in OWN[:2] for task in tasks):
        yield from _iter_grid_problems(config.grid, tasks)


def _iter_grid_problems(grid: GridConfig, tasks: list[str]) -> Iterator[str]:
    if grid.method is Method.probe:
        if any(task.partition("/")[0] == "token_classification" for task in tasks):
            yield "token_classification is not probed: write preset=quick, or leave it out"
        return
    for key in ("learning_rates", "batch_sizes", "weight_decays", "epochs", "seeds"):
        if not getattr(grid, key):
            yield f"grid.{key}=[] leaves nothing to train: write at least one value"
    if "mnli" in grid.start_from_mnli:
        yield "grid.start_from_mnli names mnli itself: leave it out"
    starts = [task for task in tasks if task in grid.start_from_mnli]
    if starts and "mnli" not in tasks:
        yield (
            f"{', '.join(starts)} start from the best cell of mnli: add mnli to tasks=[...], or write "
            f"grid.start_from_mnli=[]"
        )
    for task, epochs in grid.task_epochs.items():
        if not epochs or min(epochs) < 1:
            yield f"grid.task_epochs={{{task}:{epochs}}} leaves nothing to train: write whole numbers from 1"
    for task in [*grid.start_from_mnli, *grid.task_epochs]:
        problem = describe_unknown(task)
        if problem:
            yield problem
