"""Tasks on plain texts: the loss of masked tokens, and pseudo-perplexity by length."""

import math
import platform
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from neobert_train.batch import Batch
from neobert_train.config.data_schema import MaskingConfig
from neobert_train.config.derived import override
from neobert_train.config.evaluate_schema import EvaluateConfig
from neobert_train.config.model_schema import ModelConfig
from neobert_train.config.schema import Precision
from neobert_train.data.heldout import build_evaluation_batches
from neobert_train.data.sources.source import Unit
from neobert_train.errors import InputError
from neobert_train.evaluation.candidates import Candidate
from neobert_train.evaluation.cells import Measurement
from neobert_train.evaluation.conditions import Conditions
from neobert_train.evaluation.heldout import Evaluation, evaluate_objective
from neobert_train.evaluation.texts import Subject, list_text_units, load_exported, read_documents
from neobert_train.files import hash_file, hash_json
from neobert_train.models.encoder import DTYPES
from neobert_train.objectives.masked_lm import MaskedLM
from neobert_train.tokenizers.special_tokens import SpecialTokens

# Around each text.
_NUM_SPECIAL = 2


@dataclass(frozen=True)
class Reading:
    """How texts are read for masked-language modelling.

    Attributes:
        masking: which tokens are predicted.
        context_length: most tokens of a document.
        micro_batch_tokens: of a forward pass.
        max_tokens: of all.
        seed: decides which tokens are masked.
    """

    masking: MaskingConfig
    context_length: int
    micro_batch_tokens: int
    max_tokens: int
    seed: int


def prepare(subject: Subject, conditions: Conditions) -> None:
    """Make a model ready for packed batches."""
    dtype = DTYPES[Precision.bf16 if conditions.bf16 else Precision.fp32]
    subject.encoder.network.eval()
    subject.encoder.settle_kernels(ModelConfig(), conditions.device, dtype)
    subject.encoder.network.to(conditions.device, dtype)


def measure_masked_lm(
    subject: Subject, documents: Sequence[np.ndarray], reading: Reading, conditions: Conditions
) -> tuple[Evaluation, int]:
    """Return what a model comes to on documents, and how many of their tokens it read.

    Raises:
        InputError: all documents are empty.
    """
    batches = build_evaluation_batches(
        documents,
        subject.tokenizer,
        reading.masking,
        min(reading.context_length, reading.micro_batch_tokens),
        reading.micro_batch_tokens,
        reading.max_tokens,
        reading.seed,
    )
    if not batches:
        raise InputError("the texts hold nothing to evaluate on: all documents are empty")
    prepare(subject, conditions)
    objective = MaskedLM(subject.encoder)
    result = evaluate_objective(
        lambda batch: objective.compute(batch.to(conditions.device)), objective, batches
    )
    return result, sum(batch.num_tokens for batch in batches)


class MaskedLMTask:
    """The cross-entropy of masked tokens; models with other tokenizers predict other tokens."""

    name = "masked_lm"
    scoring = None
    labels = None

    def __init__(self, config: EvaluateConfig) -> None:
        """Find the texts.

        Raises:
            InputError: there are none.
        """
        self._config, self._units = config, list_text_units(config)
        self.digest = _hash_units(self._units, config)
        self.seeds: Sequence[int] = (config.seed or 0,)

    def list_settings(self) -> list[dict[str, Any]]:
        """Return the one setting of masking and lengths."""
        masking = override(MaskingConfig(), self._config.masking)
        return [
            {
                "context_length": self._config.context_length,
                "micro_batch_tokens": self._config.micro_batch_tokens,
                "max_tokens": self._config.max_tokens,
                "masking": {
                    key: getattr(value, "value", value) for key, value in vars(masking).items()
                },
            }
        ]

    def measure(
        self, candidate: Candidate, settings: dict[str, Any], seed: int, conditions: Conditions
    ) -> Measurement:
        """Return loss, accuracy and perplexity."""
        subject = load_exported(str(candidate.folder), candidate.trust_remote_code)
        documents = read_documents(self._units, subject.tokenizer, settings["max_tokens"])
        length = min(settings["context_length"] or candidate.max_length, candidate.max_length)
        result, _ = measure_masked_lm(
            subject,
            documents,
            Reading(
                override(MaskingConfig(), self._config.masking),
                length,
                settings["micro_batch_tokens"],
                settings["max_tokens"],
                seed,
            ),
            conditions,
        )
        return Measurement({"loss": result.loss, "perplexity": result.perplexity, **result.means})

    def estimate_flops(self, candidate: Candidate, settings: dict[str, Any]) -> float:
        """Return 2 operations a parameter and token."""
        return 2.0 * candidate.num_parameters * float(settings["max_tokens"])


class PseudoPerplexityTask:
    """exp of the mean cross-entropy of tokens that are predicted one at a time from all others.

    Salazar et al. 2020 (arXiv 1910.14659), for texts of several lengths: what a longer context
    adds is seen in what it does to the number. A text is the beginning of a document, so that each
    length has the beginnings of the longer ones too.
    """

    name = "pseudo_perplexity"
    scoring = None
    labels = None
    seeds: Sequence[int] = (0,)

    def __init__(self, config: EvaluateConfig) -> None:
        """Find the texts.

        Raises:
            InputError: there are none.
        """
        self._config, self._units = config, list_text_units(config)
        self.digest = _hash_units(self._units, config)

    def list_settings(self) -> list[dict[str, Any]]:
        """Return one setting for each length."""
        measure = self._config.measure
        return [
            {
                "length": length, "texts": measure.texts_per_length,
                "positions": measure.positions_per_text, "max_tokens": self._config.max_tokens,
            }
            for length in measure.lengths
        ]  # fmt: skip

    def measure(
        self, candidate: Candidate, settings: dict[str, Any], seed: int, conditions: Conditions
    ) -> Measurement:
        """Return pseudo-perplexity, and the cross-entropy of a token in nats."""
        length = settings["length"]
        _check_length(length, candidate)
        subject = load_exported(str(candidate.folder), candidate.trust_remote_code)
        prepare(subject, conditions)
        documents = read_documents(self._units, subject.tokenizer, settings["max_tokens"])
        texts = [
            ids[: length - _NUM_SPECIAL] for ids in documents if len(ids) >= length - _NUM_SPECIAL
        ]
        if not texts:
            raise InputError(
                f"no document of paths=[...] has {length - _NUM_SPECIAL} tokens: give longer ones, or write "
                f"measure.lengths=[...] up to theirs"
            )
        objective, special = MaskedLM(subject.encoder), subject.tokenizer.special
        loss, count = 0.0, 0
        for text in texts[: settings["texts"]]:
            for batch in list_masked_copies(
                text, settings["positions"], special, conditions.batch_tokens
            ):
                with torch.no_grad():
                    outcome = objective.compute(batch.to(conditions.device))
                loss, count = loss + outcome.loss_sum.item(), count + batch.num_targets
        mean = loss / count
        if not math.isfinite(mean):
            raise FloatingPointError("the loss is not finite")
        return Measurement({"pseudo_perplexity": math.exp(min(mean, 700.0)), "loss": mean})

    def estimate_flops(self, candidate: Candidate, settings: dict[str, Any]) -> float:
        """Return 2 operations a parameter and token of every copy of a text."""
        copies = settings["texts"] * min(settings["positions"], settings["length"])
        return 2.0 * candidate.num_parameters * float(copies * settings["length"])


def list_masked_copies(
    text: np.ndarray, positions: int, special: SpecialTokens, batch_tokens: int
) -> list[Batch]:
    """Return copies of a text, each with another token masked, packed into batches.

    Args:
        text: [n] token ids without special tokens.
        positions: how many tokens are predicted, evenly spaced; all where there are fewer.
        special: ids of the tokens around each copy, and of the mask.
        batch_tokens: of a batch at most; one copy at least.
    """
    ids = torch.tensor([special.cls, *text.tolist(), special.sep])
    chosen = np.unique(np.linspace(0, len(text) - 1, min(positions, len(text))).round().astype(int))
    length, batches = len(ids), []
    size = max(1, batch_tokens // length)
    for first in range(0, len(chosen), size):
        places = torch.from_numpy(chosen[first : first + size]) + 1  # behind [CLS]
        copies = ids.repeat(len(places), 1)
        rows = torch.arange(len(places))
        labels = copies[rows, places]
        copies[rows, places] = special.mask
        ends = torch.arange(len(places) + 1, dtype=torch.int32) * length
        batches.append(
            Batch(
                input_ids=copies.flatten(),
                position_ids=torch.arange(length, dtype=torch.int32).repeat(len(places)),
                cu_seqlens=ends,
                max_seqlen=length,
                masked_positions=rows * length + places,
                labels=labels,
                lane=0,
                lane_state={},
            )
        )
    return batches


class ThroughputTask:
    """Tokens a second of forward passes over texts of one length, without a head."""

    name = "throughput"
    digest = "random"
    scoring = None
    labels = None
    seeds: Sequence[int] = (0,)

    def __init__(self, config: EvaluateConfig) -> None:
        """Take lengths and amounts from the settings."""
        self._config = config

    def list_settings(self) -> list[dict[str, Any]]:
        """Return one setting for each length."""
        machine = (
            torch.cuda.get_device_name()
            if torch.cuda.is_available()
            else f"{platform.node()}, {torch.get_num_threads()} threads"
        )
        return [
            {"machine": machine, "length": length, "tokens": self._config.measure.throughput_tokens,
             "batch_tokens": self._config.micro_batch_tokens}
            for length in self._config.measure.lengths
        ]  # fmt: skip

    def measure(
        self, candidate: Candidate, settings: dict[str, Any], seed: int, conditions: Conditions
    ) -> Measurement:
        """Return tokens a second; the first batch does not count."""
        length = settings["length"]
        _check_length(length, candidate)
        network = candidate.load_encoder().eval().to(conditions.device)
        rows = max(1, settings["batch_tokens"] // length)
        generator = torch.Generator().manual_seed(0)
        ids = torch.randint(network.config.vocab_size, (rows, length), generator=generator)
        ids = ids.to(conditions.device)
        mask = torch.ones_like(ids)
        times, batches = [], max(1, settings["tokens"] // (rows * length))
        for _ in range(batches + 1):
            begin = time.perf_counter()
            with (
                torch.no_grad(),
                torch.autocast(conditions.device.type, torch.bfloat16, enabled=conditions.bf16),
            ):
                states = network(input_ids=ids, attention_mask=mask).last_hidden_state
            states[0, 0, 0].item()  # waits for the device
            times.append(time.perf_counter() - begin)
        return Measurement({"tokens_per_second": rows * length / float(np.median(times[1:]))})

    def estimate_flops(self, candidate: Candidate, settings: dict[str, Any]) -> float:
        """Return 2 operations a parameter and token."""
        return 2.0 * candidate.num_parameters * float(settings["tokens"])


def _check_length(length: int, candidate: Candidate) -> None:
    if length > candidate.max_length:
        raise InputError(
            f"the model takes texts of {candidate.max_length} tokens at most: write "
            f"measure.lengths=[...] up to that"
        )


def _hash_units(units: Sequence[Unit], config: EvaluateConfig) -> str:
    """Return a hash of the files with the texts, and of how they are read.

    What is not a file of this machine goes by its address and version.
    """
    files = []
    for unit in units:
        path = Path(unit.name)
        version = hash_file(path) if path.is_file() else [unit.name, str(unit.file.version)]
        files.append([version, unit.part, unit.parts])
    how = [config.column, config.format.value, config.text_documents.value]
    return hash_json([files, how])
