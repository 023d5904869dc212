"""Documents kept from training, chosen by a hash of their text alone.

A copy of a held-out document is held out as well, on every run, rank, epoch and file layout.
"""

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from neobert_train.batch import Batch
from neobert_train.data.collate import collate
from neobert_train.data.masking import Masking
from neobert_train.data.packing import pack_all
from neobert_train.data.randomness import keyed_generator
from neobert_train.data.sources import Record, Unit
from neobert_train.data.tokenization import TextTokenizer, iter_chunks

_GROUP_DOCUMENTS = 64
# Enough text for a stable estimate of how often each token occurs.
_MOST_COUNTED_TOKENS = 2_000_000


def is_heldout(text: str, fraction: float) -> bool:
    """Whether a document belongs to the held-out share.

    Args:
        text: the document.
        fraction: expected share of held-out documents, in [0, 1).
    """
    digest = hashlib.blake2b(text.encode("utf-8"), digest_size=8, person=b"heldout").digest()
    return int.from_bytes(digest, "big") < fraction * 2**64


@dataclass
class CorpusSample:
    """What a look through a source found.

    Attributes:
        heldout: the held-out documents.
        unigram_entropy: of the token frequencies, in nats: the loss of a model that knows only
            how frequent each token is.
        num_documents: documents looked through.
    """

    heldout: list[str] = field(default_factory=list)
    unigram_entropy: float = math.nan
    num_documents: int = 0

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "CorpusSample":
        """The inverse of `to_dict`."""
        return cls(**values)


def sample_corpus(
    units: Sequence[Unit],
    tokenizer: TextTokenizer,
    heldout_fraction: float,
    max_tokens: int,
    scan_documents: int,
) -> CorpusSample:
    """Look through a source for held-out documents, units in a fixed random order.

    Args:
        units: the source.
        tokenizer: counts the tokens.
        heldout_fraction: see `is_heldout`.
        max_tokens: held-out tokens to collect; counting token frequencies may go on beyond.
        scan_documents: documents after which to stop in any case.
    """
    sample = CorpusSample()
    counts = np.zeros(tokenizer.vocab_size, dtype=np.int64)
    num_tokens = 0
    for texts in _iter_text_groups(units):
        kept = [text for text in texts if is_heldout(text, heldout_fraction)]
        counting = counts.sum() < _MOST_COUNTED_TOKENS
        for text, ids in zip(
            (encoded := texts if counting else kept), tokenizer.encode(encoded), strict=True
        ):
            if counting:
                counts += np.bincount(ids, minlength=len(counts))
            if text in kept and num_tokens < max_tokens:
                sample.heldout.append(text)
                num_tokens += len(ids)
        sample.num_documents += len(texts)
        enough = num_tokens >= max_tokens and counts.sum() >= _MOST_COUNTED_TOKENS
        if enough or sample.num_documents >= scan_documents:
            break
    sample.unigram_entropy = compute_entropy(counts)
    return sample


def _iter_text_groups(units: Sequence[Unit]) -> Iterator[list[str]]:
    group: list[str] = []
    for unit in keyed_generator("heldout").permutation(len(units)):
        for record in units[unit].iter_records(0):
            if isinstance(record, Record) and record.text.strip():
                group.append(record.text)
            if len(group) == _GROUP_DOCUMENTS:
                yield group
                group = []
    if group:
        yield group


def compute_entropy(counts: np.ndarray) -> float:
    """Entropy in nats of the distribution with these counts; NaN when there are none."""
    total = counts.sum()
    if total == 0:
        return math.nan
    share = counts[counts > 0] / total
    return float(-(share * np.log(share)).sum())


def build_evaluation_batches(
    documents: Sequence[str],
    tokenizer: TextTokenizer,
    masking: Masking,
    context_length: int,
    micro_batch_tokens: int,
    max_tokens: int,
    seed: int,
) -> list[Batch]:
    """Documents masked and packed, always alike whatever the number of processes.

    Args:
        documents: texts; those without tokens are passed over.
        tokenizer, masking: as in training.
        context_length: most tokens of a chunk.
        micro_batch_tokens: tokens of a batch.
        max_tokens: chunks beyond this many tokens are left out.
        seed: decides which tokens are masked.
    """
    chunks: list[np.ndarray] = []
    num_tokens = 0
    for start in range(0, len(documents), _GROUP_DOCUMENTS):
        for ids in tokenizer.encode(documents[start : start + _GROUP_DOCUMENTS]):
            for chunk in iter_chunks(ids, context_length, tokenizer.special):
                if num_tokens < max_tokens:
                    chunks.append(chunk)
                    num_tokens += len(chunk)
    batches = []
    for number, indices in enumerate(pack_all([len(c) for c in chunks], micro_batch_tokens)):
        packed = [chunks[index] for index in indices]
        generator = keyed_generator(seed, "evaluation mask", number)
        size = sum(len(chunk) for chunk in packed)  # nothing needs a constant shape here
        batches.append(collate(packed, size, tokenizer.special.pad, masking, generator))
    return batches
