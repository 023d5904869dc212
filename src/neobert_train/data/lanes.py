"""One lane: the endless stream of batches that fills one slot of every step."""

from collections.abc import Iterator, Sequence
from dataclasses import astuple, dataclass, field
from typing import Any

import numpy as np

from neobert_train.batch import Batch
from neobert_train.config.data_schema import BadRecordPolicy
from neobert_train.config.derived import compute_num_lanes
from neobert_train.config.schema import TrainConfig
from neobert_train.data.collate import collate
from neobert_train.data.documents import LaneOrder, Position, iter_lane_records
from neobert_train.data.heldout import is_heldout
from neobert_train.data.masking import Masking, build_masking
from neobert_train.data.packing import Packer, PackingState
from neobert_train.data.randomness import keyed_generator
from neobert_train.data.sources import BadRecord, Unit
from neobert_train.data.tokenization import TextTokenizer, iter_chunks
from neobert_train.errors import InputError

# Documents tokenised in one call, which amortises its overhead, within bounded memory.
_GROUP_DOCUMENTS = 64
_GROUP_CHARACTERS = 1 << 20
# Epochs with records in a row that may have nothing but empty and held-out ones for a lane.
_MOST_BARREN_EPOCHS = 100


@dataclass(frozen=True, slots=True)
class Counts:
    """Records a lane has read since the run began."""

    documents: int = 0
    empty: int = 0
    bad: int = 0

    def __add__(self, other: "Counts") -> "Counts":
        return Counts(
            self.documents + other.documents, self.empty + other.empty, self.bad + other.bad
        )


@dataclass(frozen=True, slots=True)
class LaneState:
    """Where a lane continues: the oldest chunk that is not packed yet, and what lies beyond it.

    Attributes:
        num_batches: batches given so far; keys the masks of the next.
        position: of the document with the oldest pending chunk.
        chunk: which chunk of that document.
        packing: which of the chunks from there on are packed already.
        counts: records read.
    """

    num_batches: int = 0
    position: Position = field(default_factory=Position)
    chunk: int = 0
    packing: PackingState = field(default_factory=PackingState)
    counts: Counts = field(default_factory=Counts)

    def to_dict(self) -> dict[str, Any]:
        """As JSON; some hundred bytes."""
        return {
            "num_batches": self.num_batches,
            "position": list(astuple(self.position)),
            "chunk": self.chunk,
            "num_read": self.packing.num_read,
            "pending": list(self.packing.pending),
            "counts": list(astuple(self.counts)),
        }

    @classmethod
    def from_dict(cls, state: dict[str, Any]) -> "LaneState":
        """The inverse of `to_dict`."""
        return cls(
            state["num_batches"],
            Position(*state["position"]),
            state["chunk"],
            PackingState(state["num_read"], tuple(state["pending"])),
            Counts(*state["counts"]),
        )


@dataclass(frozen=True, slots=True)
class Chunk:
    """A tokenised document, or a part of one that fits the context.

    Attributes:
        ids: [length] int64, [CLS] and [SEP] included.
        position: of its document.
        index: which chunk of the document.
        counts: what reading on to this chunk added.
    """

    ids: np.ndarray
    position: Position
    index: int
    counts: Counts

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True)
class Lane:
    """Reads, tokenises, packs and masks what one lane gives.

    Attributes:
        order: which documents in which order.
        tokenizer: text to ids.
        masking: the masking rule.
        context_length: most tokens of a chunk.
        micro_batch_tokens: tokens of a batch.
        lookahead: chunks kept ready to fill the end of a batch.
        heldout_fraction: share of documents that are not trained on.
        on_bad_record: whether an unreadable record stops the lane.
    """

    order: LaneOrder
    tokenizer: TextTokenizer
    masking: Masking
    context_length: int
    micro_batch_tokens: int
    lookahead: int
    heldout_fraction: float
    on_bad_record: BadRecordPolicy

    def iter_batches(self, state: LaneState) -> Iterator[Batch]:
        """The batches from `state` on, endlessly; each carries the state after it.

        Raises:
            InputError: a bad record under the policy `stop`, or a source without documents.
        """
        counts, num_read = state.counts, state.packing.num_read
        stream = self.iter_chunks(state.position, state.chunk)

        def iter_counted() -> Iterator[Chunk]:
            nonlocal counts
            for ordinal, chunk in enumerate(stream):
                if ordinal >= num_read:  # what was read before the resume is counted already
                    counts += chunk.counts
                yield chunk

        packer = Packer(iter_counted(), self.micro_batch_tokens, self.lookahead, state.packing)
        num_batches = state.num_batches
        while True:
            chunks = packer.pack()
            generator = keyed_generator(self.order.seed, "mask", self.order.lane, num_batches)
            num_batches += 1
            oldest = packer.oldest
            after = LaneState(num_batches, oldest.position, oldest.index, packer.state, counts)
            yield collate(
                [chunk.ids for chunk in chunks],
                self.micro_batch_tokens,
                self.tokenizer.special.pad,
                self.masking,
                generator,
                self.order.lane,
                after.to_dict(),
            )

    def iter_chunks(self, position: Position, first_chunk: int = 0) -> Iterator[Chunk]:
        """The tokenised chunks from chunk `first_chunk` of the document at `position` on.

        Raises:
            InputError: a bad record under the policy `stop`, or a source without documents.
        """
        counts, epoch, barren_epochs = Counts(), position.epoch, 0
        for group in _iter_groups(self._iter_texts(position)):
            encoded = self.tokenizer.encode([text for text, _, _ in group])
            for ids, (text, place, seen) in zip(encoded, group, strict=True):
                barren_epochs += place.epoch != epoch
                epoch = place.epoch
                if barren_epochs > _MOST_BARREN_EPOCHS:
                    raise InputError(
                        "the source has no document to train on: all are empty or held out; add "
                        "documents or lower data.heldout_fraction"
                    )
                counts += Counts(empty=1) if text and not len(ids) else seen
                for index, chunk in enumerate(
                    iter_chunks(ids, self.context_length, self.tokenizer.special)
                ):
                    if place != position or index >= first_chunk:
                        yield Chunk(chunk, place, index, counts)
                    counts, barren_epochs = Counts(), 0

    def _iter_texts(self, start: Position) -> Iterator[tuple[str, Position, Counts]]:
        """Records with what they count as; the text is empty where there is nothing to train on."""
        for record, position in iter_lane_records(self.order, start):
            if isinstance(record, BadRecord):
                if self.on_bad_record is BadRecordPolicy.stop:
                    raise InputError(
                        f"{record.reason}; write data.on_bad_record=skip to leave such records out"
                    )
                yield "", position, Counts(bad=1)
            elif not record.text.strip():
                yield "", position, Counts(empty=1)
            elif is_heldout(record.text, self.heldout_fraction):
                yield "", position, Counts()
            else:
                yield record.text, position, Counts(documents=1)


def _iter_groups(
    texts: Iterator[tuple[str, Position, Counts]],
) -> Iterator[list[tuple[str, Position, Counts]]]:
    """Texts in groups that grow, so that a lane starts quickly; an error comes after the texts
    before it.
    """
    group: list[tuple[str, Position, Counts]] = []
    characters, size = 0, 1
    try:
        for text in texts:
            group.append(text)
            characters += len(text[0])
            if len(group) >= size or characters >= _GROUP_CHARACTERS:
                yield group
                group, characters = [], 0
                size = min(2 * size, _GROUP_DOCUMENTS)
    except InputError:
        yield group
        raise


def build_lane(
    config: TrainConfig, units: Sequence[Unit], tokenizer: TextTokenizer, lane: int
) -> Lane:
    """The lane number `lane` of a run."""
    order = LaneOrder(
        units, lane, compute_num_lanes(config), config.seed, config.data.shuffle_window
    )
    return Lane(
        order,
        tokenizer,
        build_masking(config.masking, tokenizer),
        config.batch.context_length,
        config.batch.micro_batch_tokens,
        config.data.lookahead_documents,
        config.data.heldout_fraction,
        config.data.on_bad_record,
    )
