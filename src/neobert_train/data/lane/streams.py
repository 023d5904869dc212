"""One source in one lane: records to tokenised chunks, from any of its states on."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

import numpy as np
from pydantic import PlainValidator

from neobert_train.config.data_schema import BadRecordPolicy
from neobert_train.config.typed import Count
from neobert_train.data.lane.admission import Admission, Kind, handle_bad_record
from neobert_train.data.lane.encoding import Entry, iter_encoded, split_document
from neobert_train.data.lane.order import LaneOrder, Position, iter_lane_records
from neobert_train.data.sources import Record, TokenizedRecord
from neobert_train.errors import InputError
from neobert_train.tokenizers.text_tokenizer import TextTokenizer

# Epochs with records in a row that may have nothing to train on for a lane.
_MOST_BARREN_EPOCHS = 100

# Of documents, empty, bad and filtered records.
Counts = tuple[int, int, int, int]
_NOTHING: Counts = (0, 0, 0, 0)
_ONE_DOCUMENT: Counts = (1, 0, 0, 0)


@dataclass(slots=True)
class Chunk:
    """A document, or a part of one that fits the context.

    Attributes:
        ids: [length - 2] integers, without [CLS] and [SEP], which collation adds.
        source: number of the source.
        unit: index of the unit the document was read from.
        record: the document.
        position: of the document in its lane.
        index: which chunk of the document.
        ordinal: which chunk of those that the stream gave.
        counts: what reading on to this chunk added.
    """

    ids: np.ndarray
    source: int
    unit: int
    record: Record | TokenizedRecord
    position: Position
    index: int
    ordinal: int
    counts: Counts

    def __len__(self) -> int:
        return len(self.ids) + 2


@dataclass(frozen=True, slots=True)
class StreamState:
    """Where the stream of a source continues: at its oldest chunk that is not packed yet.

    Attributes:
        position: of the document with that chunk; of the last document read, where none is pending.
        chunk: which chunk of that document; the one after the last, where none is pending.
        num_read: chunks read since, that one included.
        pending: ordinals (ascending, the first is 0) of those that are not packed yet.
        counts: records read since the run began.
        tokens: of the chunks packed since the run began, special tokens included.
        exhausted: whether `max_epochs` is reached and everything is read.
    """

    position: Annotated[Position, PlainValidator(Position.from_list)] = field(
        default_factory=Position
    )
    chunk: Count = 0
    num_read: Count = 0
    pending: tuple[Count, ...] = ()
    counts: tuple[Count, Count, Count, Count] = _NOTHING
    tokens: Count = 0
    exhausted: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Return as JSON, from which `parse` makes it again."""
        return {
            "position": self.position.to_list(),
            "chunk": self.chunk,
            "num_read": self.num_read,
            "pending": list(self.pending),
            "counts": list(self.counts),
            "tokens": self.tokens,
            "exhausted": self.exhausted,
        }

    def find_problem(self) -> str | None:
        """Find what contradicts itself in a state that was read from a file; None if nothing does."""
        pending = self.pending
        if list(pending) != sorted(set(pending)) or pending[:1] not in ((), (0,)):
            return "pending is not ascending from 0"
        # What is read again is pending or packed, and every chunk packed has two special tokens.
        most = len(pending) + self.tokens // 2 if pending else 0
        least = pending[-1] + 1 if pending else 0
        if not least <= self.num_read <= most:
            return f"num_read is {self.num_read}, and must be from {least} to {most}"
        return None


class SourceStream:
    """Gives the chunks of one source, one by one.

    Attributes:
        pending: the chunks that `state` holds as pending, read again.
        tokens: of the chunks that went into batches; counted by whoever packs them.
        exhausted: whether `max_epochs` is reached and everything is read.

    Args:
        order: which records in which order.
        admission: which documents.
        on_bad_record: whether an unreadable record is an error.
        tokenizer: of the texts.
        context_length: most tokens of a chunk, [CLS] and [SEP] included.
        source: number of the source.
        state: from which to continue.
    """

    def __init__(
        self,
        order: LaneOrder,
        admission: Admission,
        on_bad_record: BadRecordPolicy,
        tokenizer: TextTokenizer,
        context_length: int,
        source: int,
        state: StreamState,
    ) -> None:
        self._order, self._admission, self._tokenizer = order, admission, tokenizer
        self._on_bad_record = on_bad_record
        self._context_length, self._source = context_length, source
        self._counts, self.tokens = state.counts, state.tokens
        self._last = (state.position, state.chunk)
        self._num_read = 0
        self._chunks = self._iter_chunks(state.position, state.chunk)
        self.exhausted = state.exhausted
        self.pending: list[Chunk] = []
        wanted = set(state.pending)
        for ordinal in range(state.num_read):
            chunk = next(self._chunks, None)
            if chunk is None:
                raise InputError("a lane has read more than its source has: the data are others")
            if ordinal in wanted:
                self.pending.append(chunk)
            self._last = (chunk.position, chunk.index + 1)
        self._num_read = state.num_read

    def read(self) -> Chunk | None:
        """Return the next chunk; None once the source is exhausted.

        Raises:
            InputError: a bad record under the policy `stop`, or a source without documents.
        """
        chunk = next(self._chunks, None)
        if chunk is None:
            self.exhausted = True
            return None
        if chunk.counts is _ONE_DOCUMENT:
            documents, *others = self._counts
            self._counts = (documents + 1, *others)  # type: ignore[assignment]
        else:
            self._counts = _add(self._counts, chunk.counts)
        self._num_read += 1
        self._last = (chunk.position, chunk.index + 1)
        return chunk

    def find_state(self, pending: Sequence[Chunk]) -> StreamState:
        """Return the resume state, given the chunks read but not yet packed (ascending)."""
        (position, chunk), origin = self._last, self._num_read
        if pending:
            oldest = pending[0]
            position, chunk, origin = oldest.position, oldest.index, oldest.ordinal
        ordinals = tuple(chunk.ordinal - origin for chunk in pending)
        num_read = self._num_read - origin
        return StreamState(
            position, chunk, num_read, ordinals, self._counts, self.tokens, self.exhausted
        )

    def _iter_chunks(self, start: Position, first_chunk: int) -> Iterator[Chunk]:
        ordinal, counts = 0, _NOTHING
        epoch, barren_epochs = start.window.epoch, 0
        for entry in self._iter_entries(start):
            unit, position = entry.place
            if position.window.epoch != epoch:
                epoch, barren_epochs = position.window.epoch, barren_epochs + 1
                if barren_epochs > _MOST_BARREN_EPOCHS:
                    raise InputError(
                        "the source has no document to train on: all are empty, held out or "
                        "filtered; add documents, lower data.heldout_fraction or widen the bounds "
                        "of length"
                    )
            if entry.ids is None or entry.kind is not Kind.document:
                if entry.kind is not Kind.heldout:
                    counts = _add(counts, _ONE_OF[entry.kind])
                continue
            counts = _ONE_DOCUMENT if counts is _NOTHING else _add(counts, _ONE_DOCUMENT)
            barren_epochs = 0
            for index, part in enumerate(split_document(entry.ids, self._context_length)):
                if index >= first_chunk or position != start:
                    yield Chunk(
                        part, self._source, unit, entry.record, position, index, ordinal, counts
                    )
                    ordinal += 1
                counts = _NOTHING

    def _iter_entries(self, start: Position) -> Iterator[Entry]:
        """Yield every record with what it counts as; its place is its unit and position."""
        admission, units = self._admission, self._order.units
        entries = (
            Entry(record, admission.classify(record), units[unit], (unit, position))
            for record, unit, position in iter_lane_records(self._order, start)
        )
        # The first groups are small, so that a lane starts quickly.
        for group in iter_encoded(entries, self._tokenizer, first=1):
            for entry in group:
                if entry.ids is not None:
                    entry.kind = admission.classify_tokens(len(entry.ids))
                elif entry.kind is Kind.bad:
                    handle_bad_record(entry.record, self._on_bad_record)
                yield entry


_ONE_OF: dict[Kind, Counts] = {
    Kind.empty: (0, 1, 0, 0),
    Kind.bad: (0, 0, 1, 0),
    Kind.filtered: (0, 0, 0, 1),
}


def _add(one: Sequence[int], other: Sequence[int]) -> Counts:
    documents, empty, bad, filtered = (a + b for a, b in zip(one, other, strict=True))
    return documents, empty, bad, filtered
