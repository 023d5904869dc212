"""Measure a run or an exported model on text."""

import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import transformers

from neobert_train.config.command_schema import EvaluateConfig
from neobert_train.config.data_schema import (
    BadRecordPolicy,
    MaskingConfig,
    SourceConfig,
    SourceKind,
)
from neobert_train.config.derived import override
from neobert_train.data.heldout import CorpusSample, build_evaluation_batches
from neobert_train.data.lane.admission import Admission
from neobert_train.data.lane.encoding import Entry, iter_encoded
from neobert_train.data.sources.files import list_units
from neobert_train.data.sources.source import BadRecord, Unit
from neobert_train.distributed import find_device
from neobert_train.errors import InputError
from neobert_train.evaluation.heldout import Evaluation, evaluate_objective
from neobert_train.machine.devices import choose_precision
from neobert_train.models.encoder import DTYPES, Encoder
from neobert_train.models.families import find_family
from neobert_train.models.folder import find_context_length, find_model_folder
from neobert_train.models.loading import load_trained
from neobert_train.objectives.masked_lm import MaskedLM
from neobert_train.run.directory import RunDirectory
from neobert_train.storage.stored_files import Network
from neobert_train.terminal import print_output
from neobert_train.tokenizers.loading import load_tokenizer
from neobert_train.tokenizers.text_tokenizer import TextTokenizer
from neobert_train.world import World

# What messages about data name in the words of training.
_DATA_SETTING = re.compile(r"\bdata\.((?:paths|format|column|text_documents)=)")


def run(config: EvaluateConfig, world: World) -> None:
    """Print held-out loss, accuracy and perplexity.

    Raises:
        InputError: the model or the texts cannot be read, or hold nothing to predict.
    """
    transformers.utils.logging.disable_progress_bar()
    subject = load_subject(config)
    try:
        documents = load_documents(config, subject.tokenizer)
    except InputError as error:
        raise InputError(_DATA_SETTING.sub(r"\1", str(error))) from error
    context_length = min(config.context_length or subject.context_length, config.micro_batch_tokens)
    batches = build_evaluation_batches(
        documents,
        subject.tokenizer,
        override(subject.masking, config.masking),
        context_length,
        config.micro_batch_tokens,
        config.max_tokens,
        subject.seed if config.seed is None else config.seed,
    )
    if not batches:
        raise InputError("the texts hold nothing to evaluate on: all documents are empty")
    device = find_device(world)
    precision = choose_precision(config.precision, device)
    objective = MaskedLM(subject.encoder)
    subject.encoder.network.eval()
    subject.encoder.choose_attention("auto", device, DTYPES[precision])
    subject.encoder.network.to(device, DTYPES[precision])
    result = evaluate_objective(lambda b: objective.compute(b.to(device)), objective, batches)
    num_tokens = sum(batch.num_tokens for batch in batches)
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


@dataclass(frozen=True)
class Subject:
    """What is measured, and how it was trained, as far as that is known.

    Attributes:
        encoder, tokenizer: what is measured.
        context_length: most tokens of a document.
        masking: which tokens were predicted.
        seed: of the run.
    """

    encoder: Encoder
    tokenizer: TextTokenizer
    context_length: int
    masking: MaskingConfig = field(default_factory=MaskingConfig)
    seed: int = 0


def load_subject(config: EvaluateConfig) -> Subject:
    """Load the model to measure, and how it was trained."""
    if config.run_dir is None:
        return _load_exported(str(config.model), config.trust_remote_code)
    trained = load_trained(RunDirectory(config.run_dir), config.step)
    train = trained.config
    return Subject(
        trained.encoder, trained.tokenizer, train.batch.context_length, train.masking, train.seed
    )


def _load_exported(name: str, trust_remote_code: bool = False) -> Subject:
    """Return an exported or published model: its safetensors are read.

    Of a NeoBERT none of its code is run, and of others only where it is trusted.
    """
    label = f"model={name}"
    folder = find_model_folder(name, label)
    family = find_family(folder, label, trust_remote_code)
    encoder = family.load(folder, label, trust_remote_code)
    context_length = find_context_length(folder, encoder.max_length)
    return Subject(encoder, load_tokenizer(name), context_length)


def load_documents(config: EvaluateConfig, tokenizer: TextTokenizer) -> list[np.ndarray]:
    """Return token ids of the given texts, or of the run's own held-out documents.

    Raises:
        InputError: a file or record cannot be read, or the run has no held-out documents.
    """
    if config.paths:
        source = SourceConfig(
            source=SourceKind.files,
            paths=config.paths,
            format=config.format,
            column=config.column,
            text_documents=config.text_documents,
        )
        stop = BadRecordPolicy.stop
        units = list_units(source, config.paths, Network(), stop)
        return _read_documents(units, tokenizer, config.max_tokens)
    heldout = RunDirectory(str(config.run_dir)).heldout_file
    if not heldout.exists():
        raise InputError(
            f"{config.run_dir} was trained without held-out documents: write paths=[my_texts.parquet]"
        )
    sample = CorpusSample.load(heldout, tokenizer.vocab_size)
    return [np.array(ids) for ids in sample.heldout]


def _read_documents(
    units: Sequence[Unit], tokenizer: TextTokenizer, max_tokens: int
) -> list[np.ndarray]:
    documents: list[np.ndarray] = []
    num_tokens = 0
    for entry in itertools.chain.from_iterable(iter_encoded(_iter_entries(units), tokenizer)):
        if entry.ids is not None:
            documents.append(entry.ids)
            num_tokens += len(entry.ids)
        if num_tokens >= max_tokens:
            break
    return documents


def _iter_entries(units: Sequence[Unit]) -> Iterator[Entry]:
    rule = Admission()
    for unit in units:
        for record in unit.iter_records(0):
            if isinstance(record, BadRecord):
                raise InputError(record.reason)
            yield Entry(record, rule.classify(record), unit)
