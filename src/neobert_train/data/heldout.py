"""The documents that a run is evaluated on: looked for once, and the same at every evaluation."""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import Field

from neobert_train.batch import Batch
from neobert_train.config.data_schema import MaskingConfig
from neobert_train.config.derived import compute_weights, resolve_sources
from neobert_train.config.schema import TrainConfig
from neobert_train.config.typed import Count, Finite, read_run_json
from neobert_train.data.lane.admission import Admission, Kind, build_admission
from neobert_train.data.lane.collate import collate
from neobert_train.data.lane.encoding import Entry, iter_encoded, split_document
from neobert_train.data.lane.masking import build_masking
from neobert_train.data.lane.packing import pack_all
from neobert_train.data.lane.randomness import keyed_generator
from neobert_train.data.lane.targets import describe_no_targets
from neobert_train.data.sources import Unit
from neobert_train.errors import InputError
from neobert_train.files import write_checked_json
from neobert_train.tokenizers.text_tokenizer import TextTokenizer

# What was looked at is looked at by whole groups: so large that texts of books end none.
_GROUP_CHARACTERS = 1 << 26
# Enough text for a stable estimate of how often each token occurs.
_MOST_COUNTED_TOKENS = 2_000_000
# Of one document, which may be a file of many megabytes; `evaluate` takes a million in all.
_MOST_KEPT_TOKENS = 2_000_000


Share = Annotated[Finite, Field(ge=0.0, le=1.0)]


@dataclass
class CorpusSample:
    """What a look through the sources found.

    Attributes:
        heldout: token ids of the held-out documents, without special tokens.
        unigram_entropy: of the token frequencies, in nats: the loss of a model that knows only
            how frequent each token is.
        num_documents: documents looked through.
        unknown_shares: by source, the share of their tokens that are [UNK].
    """

    heldout: list[list[Count]] = field(default_factory=list)
    unigram_entropy: float = math.nan
    num_documents: Count = 0
    unknown_shares: dict[str, Share] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON."""
        return asdict(self)

    def save(self, file: Path) -> None:
        """Write what `load` reads.

        Raises:
            OSError: the file cannot be written.
        """
        write_checked_json(file, self.to_dict(), indent=None)

    @classmethod
    def load(cls, file: Path, vocab_size: int) -> "CorpusSample":
        """Read what a run has kept, token ids below `vocab_size`.

        Raises:
            InputError: the file is damaged.
        """
        fix = "remove it, and the run looks for held-out documents again when it continues"
        # Earlier versions did not write all fields, but always the documents.
        sample: CorpusSample = read_run_json(file, cls, fix)
        if not sample.heldout or not all(sample.heldout):
            raise InputError(f"{file} cannot be read (it holds no documents, or empty ones): {fix}")
        largest = max(max(ids, default=0) for ids in sample.heldout)
        if largest >= vocab_size:
            raise InputError(
                f"{file} cannot be read (it has the token {largest}, and the tokenizer {vocab_size} "
                f"tokens): {fix}"
            )
        return sample


def sample_corpus(
    config: TrainConfig, units: Mapping[str, Sequence[Unit]], tokenizer: TextTokenizer
) -> CorpusSample:
    """Look through the sources for held-out documents, each for its share of them by weight.

    Args:
        config: `evaluation` says how many tokens to collect, and how long to look.
        units: of each source, by name.
        tokenizer: turns texts into ids.
    """
    weights = np.array(compute_weights(config.data, 1))
    shares = weights / weights.sum()
    sample = CorpusSample()
    frequencies = np.zeros(tokenizer.vocab_size)
    known: set[bytes] = set()  # sources may be views of the same documents
    for share, (name, source) in zip(shares, resolve_sources(config.data).items(), strict=True):
        if share == 0.0:
            continue
        found = sample_source(
            units[name],
            build_admission(config.data, source),
            tokenizer,
            math.ceil(share * config.evaluation.max_tokens),
            math.ceil(share * config.evaluation.scan_documents),
        )
        most_tokens = max(
            _MOST_KEPT_TOKENS, config.evaluation.max_tokens + config.batch.context_length
        )
        heads = [ids[:most_tokens] for ids in found.heldout]
        new = [ids for ids in heads if ids.tobytes() not in known]
        known.update(ids.tobytes() for ids in new)
        sample.heldout += [ids.tolist() for ids in new]
        sample.num_documents += found.num_documents
        frequencies += share * found.counts / max(1, found.counts.sum())
        sample.unknown_shares[name] = found.compute_unknown_share(tokenizer)
    sample.unigram_entropy = compute_entropy(frequencies)
    return sample


@dataclass
class SourceSample:
    """What a look through one source found.

    Attributes:
        heldout: [num_tokens] integers each, the held-out documents.
        counts: [vocab_size] int64, how often each token occurred.
        num_documents: documents looked through.
    """

    heldout: list[np.ndarray]
    counts: np.ndarray
    num_documents: int = 0

    def compute_unknown_share(self, tokenizer: TextTokenizer) -> float:
        """Return the share of the tokens that are [UNK]; 0 where there are none."""
        unk = tokenizer.special.unk
        return 0.0 if unk is None else float(self.counts[unk] / max(1, self.counts.sum()))


def sample_source(
    units: Sequence[Unit],
    admission: Admission,
    tokenizer: TextTokenizer,
    max_tokens: int,
    scan_documents: int,
) -> SourceSample:
    """Look through a source for held-out documents, units in a fixed random order.

    Args:
        units: the source.
        admission: which documents are held out, and which belong to the source at all.
        tokenizer: turns texts into ids.
        max_tokens: held-out tokens to collect; counting token frequencies may continue beyond.
        scan_documents: documents after which to stop in any case.
    """
    sample = SourceSample([], np.zeros(tokenizer.vocab_size, dtype=np.int64))
    num_tokens = num_counted = 0

    def is_counting() -> bool:
        return num_counted < _MOST_COUNTED_TOKENS

    def is_wanted(entry: Entry) -> bool:
        return is_counting() or entry.kind is Kind.heldout

    entries = itertools.islice(_iter_entries(units, admission), scan_documents)
    for group in iter_encoded(entries, tokenizer, is_wanted, _GROUP_CHARACTERS):
        counting = is_counting()
        for entry in group:
            ids = entry.ids
            if ids is None or admission.classify_tokens(len(ids)) is not Kind.document:
                continue
            if counting:
                sample.counts += np.bincount(ids, minlength=len(sample.counts))
                num_counted += len(ids)
            if entry.kind is Kind.heldout and num_tokens < max_tokens:
                sample.heldout.append(ids)
                num_tokens += len(ids)
        sample.num_documents += len(group)
        if num_tokens >= max_tokens and num_counted >= _MOST_COUNTED_TOKENS:
            break
    return sample


def _iter_entries(units: Sequence[Unit], admission: Admission) -> Iterator[Entry]:
    """Yield the documents to train on or to hold out."""
    for index in keyed_generator("heldout").permutation(len(units)):
        for record in units[index].iter_records(0):
            kind = admission.classify(record)
            if kind in (Kind.document, Kind.heldout):
                yield Entry(record, kind, units[index])


def compute_entropy(frequencies: np.ndarray) -> float:
    """Return the entropy in nats of the distribution with these frequencies; NaN when there are none."""
    total = frequencies.sum()
    if total == 0:
        return math.nan
    share = frequencies[frequencies > 0] / total
    return float(-(share * np.log(share)).sum())


def build_evaluation_batches(
    documents: Sequence[Sequence[int] | np.ndarray],
    tokenizer: TextTokenizer,
    masking: MaskingConfig,
    context_length: int,
    micro_batch_tokens: int,
    max_tokens: int,
    seed: int,
    pads: bool = False,
) -> list[Batch]:
    """Return documents masked and packed, always alike whatever the number of processes.

    Args:
        documents: token ids of each, without special tokens; empty ones are passed over.
        tokenizer: of the ids.
        masking: the masking rule, at its initial rate, so that evaluations compare.
        context_length: most tokens of a chunk.
        micro_batch_tokens: tokens of a batch.
        max_tokens: chunks beyond this many tokens are left out.
        seed: decides which tokens are masked.
        pads: whether every batch is to have `micro_batch_tokens` tokens, so that compiled code fits all.

    Raises:
        InputError: there are documents, and nothing to predict in them.
    """
    rule = build_masking(masking, tokenizer)
    chunks: list[np.ndarray] = []
    num_tokens = 0
    for ids in documents:
        for chunk in split_document(np.asarray(ids), context_length):
            if num_tokens < max_tokens:
                chunks.append(chunk)
                num_tokens += len(chunk) + 2
    batches = []
    for number, indices in enumerate(pack_all([len(c) + 2 for c in chunks], micro_batch_tokens)):
        packed = [chunks[index] for index in indices]
        generator = keyed_generator(seed, "evaluation mask", number)
        size = micro_batch_tokens if pads else sum(len(chunk) + 2 for chunk in packed)
        batches.append(collate(packed, size, tokenizer.special, rule, masking.rate, generator))
    if batches and not any(batch.num_targets for batch in batches):
        num_text = sum(batch.num_text for batch in batches)
        num_unknown = sum(batch.num_unknown for batch in batches)
        raise InputError(
            describe_no_targets(num_text, num_unknown, "the held-out text", tokenizer.name)
        )
    return list(map(Batch.from_arrays, batches))
