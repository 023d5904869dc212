"""The records of a source as token ids."""

from collections.abc import Sequence

import numpy as np

from neobert_train.data.sources import AnyRecord, Record, TokenizedRecord, Unit
from neobert_train.errors import InputError
from neobert_train.tokenizers.text_tokenizer import EncodingError, TextTokenizer

Document = Record | TokenizedRecord


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


def count_characters(record: AnyRecord) -> int:
    """Return the characters that have to be tokenised of a record."""
    return len(record.text) if isinstance(record, Record) else 0


def name_document(document: Document, unit: Unit) -> str:
    """Return the id of a document, if it has one, and where it lies."""
    place = unit.describe(document.next_cursor)
    return place if document.id is None else f"{document.id} ({place})"
