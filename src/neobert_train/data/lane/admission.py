"""Which documents are trained on, kept for evaluation, or left out."""

import hashlib
import itertools
import logging
from dataclasses import dataclass
from enum import IntEnum

from neobert_train.config.data_schema import BadRecordPolicy, DataConfig, SourceConfig
from neobert_train.data.sources import AnyRecord, BadRecord, TokenizedRecord
from neobert_train.errors import InputError

logger = logging.getLogger(__name__)

_skipped = itertools.count()


class Kind(IntEnum):
    """What a record counts as; the first four are counted in this order."""

    document = 0
    empty = 1
    bad = 2
    filtered = 3
    heldout = 4


@dataclass(frozen=True, slots=True)
class Admission:
    """The rule of one source; the bounds of length are inclusive.

    Attributes:
        min_characters, max_characters: of the text.
        min_tokens, max_tokens: without special tokens.
        heldout_fraction: expected share of documents kept for evaluation, in [0, 1).
    """

    min_characters: int = 0
    max_characters: int | None = None
    min_tokens: int = 0
    max_tokens: int | None = None
    heldout_fraction: float = 0.0

    def classify(self, record: AnyRecord) -> Kind:
        """Return what a record counts as before its tokens are known."""
        if isinstance(record, BadRecord):
            return Kind.bad
        if isinstance(record, TokenizedRecord):
            is_blank, num_characters = record.is_blank, record.num_characters
        else:
            is_blank, num_characters = not record.text.strip(), len(record.text)
        if is_blank:
            return Kind.empty
        if not _lies_within(num_characters, self.min_characters, self.max_characters):
            return Kind.filtered
        return Kind.heldout if self._is_heldout(record) else Kind.document

    def classify_tokens(self, num_tokens: int) -> Kind:
        """Return what a document with this many tokens counts as, if it is not held out."""
        if num_tokens == 0:
            return Kind.empty
        admitted = _lies_within(num_tokens, self.min_tokens, self.max_tokens)
        return Kind.document if admitted else Kind.filtered

    def _is_heldout(self, record: AnyRecord) -> bool:
        if self.heldout_fraction == 0.0:
            return False
        if isinstance(record, TokenizedRecord):
            return record.heldout_key < self.heldout_fraction * 2**64
        assert not isinstance(record, BadRecord)
        return is_heldout(record.text, self.heldout_fraction)


def handle_bad_record(record: BadRecord, policy: BadRecordPolicy) -> None:
    """Raise InputError for a record that cannot be read, or warn of the first that this process skips."""
    if policy is BadRecordPolicy.stop:
        raise InputError(
            f"{record.reason}; write data.on_bad_record=skip to leave such records out"
        )
    if next(_skipped) == 0:
        logger.warning(
            "%s: left out, as are all that cannot be read (data.on_bad_record=skip); they are counted",
            record.reason,
        )


def _lies_within(number: int, least: int, most: int | None) -> bool:
    return number >= least and (most is None or number <= most)


def is_heldout(text: str, fraction: float) -> bool:
    """Return whether a document belongs to the held-out share.

    Only the text decides, so a copy of a held-out document is held out as well, on every run,
    rank, epoch and file layout.

    Args:
        text: the document.
        fraction: expected share of held-out documents, in [0, 1).
    """
    return compute_heldout_key(text) < fraction * 2**64


def compute_heldout_key(text: str) -> int:
    """Return a hash of a text in [0, 2^64); the documents with the lowest keys are held out."""
    digest = hashlib.blake2b(text.encode("utf-8"), digest_size=8, person=b"heldout").digest()
    return int.from_bytes(digest, "big")


def build_admission(config: DataConfig, source: SourceConfig) -> Admission:
    """Return the rule of a source of the configuration."""
    return Admission(
        source.min_characters,
        source.max_characters,
        source.min_tokens,
        source.max_tokens,
        config.heldout_fraction,
    )
