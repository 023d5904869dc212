"""Compare models on tasks, or measure a run or an exported model on text."""

import os
import sys
from pathlib import Path

import numpy as np
import torch
import transformers
from tqdm import tqdm

from neobert_train.config.derived import override
from neobert_train.config.evaluate_schema import EvaluateConfig
from neobert_train.config.schema import Precision
from neobert_train.data.heldout import CorpusSample
from neobert_train.distributed import find_device
from neobert_train.errors import EXIT_FAILED, InputError
from neobert_train.evaluation.candidates import load_candidates
from neobert_train.evaluation.catalogue import build_tasks
from neobert_train.evaluation.cells import Cell, CellStore, Measurement
from neobert_train.evaluation.comparison import Comparison, run_comparison
from neobert_train.evaluation.conditions import Conditions
from neobert_train.evaluation.heldout import Evaluation
from neobert_train.evaluation.language import Reading, measure_masked_lm
from neobert_train.evaluation.planning import format_plan, warn_of_few_steps
from neobert_train.evaluation.results import Results, collect_results, replaces_others
from neobert_train.evaluation.texts import (
    Subject,
    list_text_units,
    load_exported,
    read_documents,
)
from neobert_train.extras import require_packages
from neobert_train.machine.devices import choose_precision, has_native_bf16
from neobert_train.models.loading import load_trained
from neobert_train.report.evaluation_page import write_results
from neobert_train.report.evaluation_tables import render_markdown
from neobert_train.run.directory import RunDirectory
from neobert_train.run.folders import refuse_others
from neobert_train.terminal import print_message, print_output
from neobert_train.tokenizers.text_tokenizer import TextTokenizer
from neobert_train.world import World

# What launchers set; trainers of libraries would take it for one training on several devices.
_LAUNCHER_VARIABLES = (
    "RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "LOCAL_SIZE", "MASTER_ADDR", "MASTER_PORT",
)  # fmt: skip


def run(config: EvaluateConfig, world: World) -> None:
    """Compare models on tasks, or print what one model comes to on text.

    Raises:
        InputError: a model, a task's data or the texts cannot be read, or hold nothing to predict.
    """
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    if config.models:
        compare(config, world)
    else:
        measure_on_text(config, world)


def compare(config: EvaluateConfig, world: World) -> None:
    """Compute the cells that are missing, beside other processes, and write the tables.

    Raises:
        InputError: a model or the data of a task cannot be read, or the output cannot be written.
        SystemExit: with code 1 where cells failed, the tables being written.
    """
    comparison = build_comparison(config, world)
    if config.plan:
        print_output(format_plan(comparison))
        return
    if world.is_main:
        for warning in warn_of_few_steps(comparison):
            print_message(f"neobert_train: {warning}")
    compute_cells(comparison, config.retry_failed, world)
    if world.is_main:
        write_tables(collect_results(comparison), Path(str(config.output)).expanduser())


def build_comparison(config: EvaluateConfig, world: World) -> Comparison:
    """Return the models by the tasks, with their data.

    Raises:
        InputError: a model or the data of a task cannot be read, or `output` is of another command.
    """
    require_packages("evaluation", ["accelerate", "sentence_transformers"], "models=[...]")
    output, device = Path(str(config.output)).expanduser(), take_device(world)
    refuse_others(output, "cells")
    tasks = build_tasks(config)
    candidates = load_candidates(config.models, output / "models", config.trust_remote_code)
    conditions = Conditions(device, decide_bf16(config, device), config.micro_batch_tokens)
    return Comparison(candidates, tasks, conditions, CellStore(output / "cells"), output / "starts")


def compute_cells(comparison: Comparison, retry_failed: bool, world: World) -> None:
    """Compute the cells that are missing, with a bar that tells the time left.

    Raises:
        InputError: a cell cannot be written.
    """
    models = len(comparison.candidates)
    count = sum(len(t.list_settings()) * len(t.seeds) * models for t in comparison.tasks)
    with tqdm(total=count, unit="cell", disable=not world.is_main, file=sys.stderr) as bar:

        def tell(cell: Cell, measurement: Measurement, is_new: bool) -> None:
            bar.update()
            if not is_new and world.is_main:  # what was there says nothing of the time that is left
                bar.initial += 1
            if measurement.error and is_new:
                bar.clear()
                print_message(f"{cell.label} on {cell.task} failed: {measurement.error}")

        run_comparison(comparison, retry_failed, tell)


def write_tables(results: Results, output: Path) -> None:
    """Write and print the tables.

    Raises:
        InputError: they cannot be written.
        SystemExit: with code 1 where cells failed.
    """
    replaces = replaces_others(results, output)
    try:
        files = write_results(results, output)
    except OSError as error:
        raise InputError(f"{output} cannot be written: {error.strerror}") from error
    print_output(render_markdown(results))
    print_output(f"wrote {', '.join(map(str, files))}")
    if replaces:
        print_output(
            "they replace those of a call with other models, tasks or settings; its cells are kept, and "
            "the same call writes its tables again"
        )
    if any(row.errors for row in results.rows):
        print_message("neobert_train: some cells failed; the same command tries them again")
        sys.exit(EXIT_FAILED)


def decide_bf16(config: EvaluateConfig, device: torch.device) -> bool:
    """Return whether to compute in bf16; on GPUs packed kernels and fast products need it."""
    if config.precision is None:
        return device.type == "cuda" and has_native_bf16(device)
    return choose_precision(config.precision, device) is Precision.bf16


def take_device(world: World) -> torch.device:
    """Return the device of this process, which computes cells of its own beside others."""
    for name in _LAUNCHER_VARIABLES:
        os.environ.pop(name, None)
    # accelerate imports DeepSpeed, which guesses, and says so.
    os.environ.setdefault("DS_ACCELERATOR", "cuda" if torch.cuda.is_available() else "cpu")
    if torch.cuda.is_available():
        # Trainers take all that they see.
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        names = visible.split(",") if visible else list(map(str, range(torch.cuda.device_count())))
        os.environ["CUDA_VISIBLE_DEVICES"] = names[world.local_rank % len(names)]
        return torch.device("cuda", 0)
    return find_device(world)


def measure_on_text(config: EvaluateConfig, world: World) -> None:
    """Print held-out loss, accuracy and perplexity.

    Raises:
        InputError: the model or the texts cannot be read, or hold nothing to predict.
    """
    subject = load_subject(config)
    documents = load_documents(config, subject.tokenizer)
    device = find_device(world)
    bf16 = decide_bf16(config, device)
    reading = Reading(
        override(subject.masking, config.masking),
        config.context_length or subject.context_length,
        config.micro_batch_tokens,
        config.max_tokens,
        subject.seed if config.seed is None else config.seed,
    )
    conditions = Conditions(device, bf16, config.micro_batch_tokens)
    result, num_tokens = measure_masked_lm(subject, documents, reading, conditions)
    print_output(
        format_result(result, config.run_dir or str(config.model), len(documents), num_tokens)
    )


def format_result(result: Evaluation, subject: str, num_documents: int, num_tokens: int) -> str:
    """Return the result as text."""
    return (
        f"{subject}: {result.num_targets:,} masked of {num_tokens:,} tokens in {num_documents:,} "
        f"documents\n"
        f"  masked_lm loss        {result.loss:.4f} nats\n"
        f"  masked_lm accuracy    {result.means['accuracy']:.2%}\n"
        f"  perplexity            {result.perplexity:,.2f}"
    )


def load_subject(config: EvaluateConfig) -> Subject:
    """Load the model to measure, and how it was trained."""
    if config.run_dir is None:
        return load_exported(str(config.model), config.trust_remote_code)
    trained = load_trained(RunDirectory(config.run_dir), config.step)
    train = trained.config
    return Subject(
        trained.encoder, trained.tokenizer, train.batch.context_length, train.masking, train.seed
    )


def load_documents(config: EvaluateConfig, tokenizer: TextTokenizer) -> list[np.ndarray]:
    """Return token ids of the given texts, or of the run's own held-out documents.

    Raises:
        InputError: a file or record cannot be read, or the run has no held-out documents.
    """
    if config.paths:
        return read_documents(list_text_units(config), tokenizer, config.max_tokens)
    heldout = RunDirectory(str(config.run_dir)).heldout_file
    if not heldout.exists():
        raise InputError(
            f"{config.run_dir} was trained without held-out documents: write paths=[my_texts.parquet]"
        )
    sample = CorpusSample.load(heldout, tokenizer.vocab_size)
    return [np.array(ids) for ids in sample.heldout]
