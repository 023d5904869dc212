"""The records of a source as token ids, in chunks that fit the context.

Training, the look for held-out documents and `prepare` share this stage.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from neobert_train.data.lane.admission import Kind
from neobert_train.data.sources import AnyRecord, Record, TokenizedRecord, Unit
from neobert_train.errors import InputError
from neobert_train.tokenizers.text_tokenizer import (
    ENOUGH_CHARACTERS,
    MOST_ENTRIES,
    EncodingError,
    TextTokenizer,
    iter_groups,
)

Document = Record | TokenizedRecord


@dataclass(slots=True)
class Entry:
    """A record on its way to chunks.

    Attributes:
        record: as it was found, one of `AnyRecord`.
        kind: what it counts as.
        unit: that it was read from.
        place: where its reader continues after it.
        ids: [num_tokens] integers without special tokens; None where they are not wanted.
    """

    record: Any
    kind: Kind
    unit: Unit
    place: Any = None
    ids: np.ndarray | None = None


def iter_encoded(
    entries: Iterable[Entry],
    tokenizer: TextTokenizer,
    is_wanted: Callable[[Entry], bool] = lambda entry: entry.kind is Kind.document,
    enough: int = ENOUGH_CHARACTERS,
    first: int = MOST_ENTRIES,
) -> Iterator[list[Entry]]:
    """Yield entries with the ids of those that are wanted, in the groups that `iter_groups` makes.

    Raises:
        InputError: a document cannot be encoded; names it and the tokenizer.
    """
    for group in iter_groups(entries, lambda entry: count_characters(entry.record), enough, first):
        wanted = [entry for entry in group if is_wanted(entry)]
        encoded = encode_documents(tokenizer, [(entry.record, entry.unit) for entry in wanted])
        for entry, ids in zip(wanted, encoded, strict=True):
            entry.ids = ids
        yield group


def encode_documents(
    tokenizer: TextTokenizer, documents: Sequence[tuple[Document, Unit]]
) -> list[np.ndarray]:
    """Return the ids of each document without special tokens, [num_tokens] integers.

    Args:
        tokenizer: of the documents that are not tokenised yet.
        documents: each with the unit that it was read from.

    Raises:
        InputError: a document cannot be encoded; names it and the tokenizer.
    """
    texts = [(r.text, place) for place, (r, _) in enumerate(documents) if isinstance(r, Record)]
    try:
        encoded = iter(tokenizer.encode([text for text, _ in texts]) if texts else ())
    except EncodingError as error:
        place = texts[error.index][1]
        raise InputError(f"{name_document(*documents[place])}: {error}") from error
    return [r.ids if isinstance(r, TokenizedRecord) else next(encoded) for r, _ in documents]


def split_document(ids: np.ndarray, context_length: int) -> list[np.ndarray]:
    """Return a document as parts that fit the context together with [CLS] and [SEP].

    Args:
        ids: [num_tokens] integers, without special tokens.
        context_length: most tokens of a part, the two special ones included.
    """
    length = context_length - 2
    return [ids[start : start + length] for start in range(0, len(ids), length)]


def count_characters(record: AnyRecord) -> int:
    """Return the characters that have to be tokenised of a record."""
    return len(record.text) if isinstance(record, Record) else 0


def name_document(document: Document, unit: Unit) -> str:
    """Return the id of a document, if it has one, and where it lies."""
    place = unit.describe(document.next_cursor)
    return place if document.id is None else f"{document.id} ({place})"
