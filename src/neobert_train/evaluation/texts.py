"""Documents that models are measured on, and a masked-language model that reads them."""

import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from neobert_train.config.data_schema import (
    BadRecordPolicy,
    MaskingConfig,
    SourceConfig,
    SourceKind,
)
from neobert_train.config.evaluate_schema import EvaluateConfig
from neobert_train.data.lane.admission import Admission
from neobert_train.data.lane.encoding import Entry, iter_encoded
from neobert_train.data.sources.files import list_units
from neobert_train.data.sources.source import BadRecord, Unit
from neobert_train.errors import InputError
from neobert_train.models.encoder import Encoder
from neobert_train.models.families import find_family
from neobert_train.models.folder import find_context_length, find_model_folder
from neobert_train.run.directory import RunDirectory
from neobert_train.storage.stored_files import Network
from neobert_train.tokenizers.loading import load_tokenizer
from neobert_train.tokenizers.text_tokenizer import TextTokenizer

# What messages about data name in the words of training.
_DATA_SETTING = re.compile(r"\bdata\.((?:paths|format|column|text_documents)=)")


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


def load_exported(name: str, trust_remote_code: bool = False) -> Subject:
    """Load an exported or published model: its safetensors are read.

    Of a NeoBERT none of its code is run, and of others only where it is trusted.

    Raises:
        InputError: there is no such model, or it cannot be loaded.
    """
    label = f"model={name}"
    folder = find_model_folder(name, label)
    if RunDirectory(folder).list_checkpoints():
        raise InputError(f"{label} is a training run: write run_dir={name}")
    family = find_family(folder, label, trust_remote_code)
    encoder = family.load(folder, label, trust_remote_code)
    context_length = find_context_length(folder, encoder.max_length)
    return Subject(encoder, load_tokenizer(name), context_length)


def list_text_units(config: EvaluateConfig) -> list[Unit]:
    """Return the files of `paths=`.

    Raises:
        InputError: there are none, or one cannot be read.
    """
    source = SourceConfig(
        source=SourceKind.files,
        paths=config.paths,
        format=config.format,
        column=config.column,
        text_documents=config.text_documents,
    )
    try:
        return list(list_units(source, config.paths, Network(), BadRecordPolicy.stop))
    except InputError as error:
        raise InputError(_name_own_settings(str(error))) from error


def read_documents(
    units: Sequence[Unit], tokenizer: TextTokenizer, max_tokens: int
) -> list[np.ndarray]:
    """Return token ids of documents, until they hold so many tokens.

    Raises:
        InputError: a record cannot be read.
    """
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
                fix = "" if record.is_setting else "; correct the file, or leave it out"
                raise InputError(_name_own_settings(record.reason) + fix)
            yield Entry(record, rule.classify(record), unit)


def _name_own_settings(message: str) -> str:
    return _DATA_SETTING.sub(r"\1", message)
