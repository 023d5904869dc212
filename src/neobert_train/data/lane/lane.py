"""One lane: the endless stream of batches that fills one slot of every step.

    records --> chunks (a stream for each source) --> mixture --> packer --> mask --> MicroBatch

A lane state holds for every source where its oldest chunk lies that is not in a batch yet, so that
reading on from there gives the same batches again.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from neobert_train.batch import MicroBatch
from neobert_train.config.data_schema import Draw
from neobert_train.config.derived import (
    compute_masking_rate,
    compute_num_lanes,
    compute_weights,
    resolve_sources,
)
from neobert_train.config.schema import TrainConfig
from neobert_train.config.typed import Count, Finite, parse
from neobert_train.data.lane.admission import build_admission
from neobert_train.data.lane.collate import collate
from neobert_train.data.lane.masking import build_masking
from neobert_train.data.lane.mixture import Mixture, draw_initial_credits
from neobert_train.data.lane.order import LaneOrder
from neobert_train.data.lane.packing import Packer
from neobert_train.data.lane.randomness import keyed_generator
from neobert_train.data.lane.streams import Chunk, SourceStream, StreamState
from neobert_train.data.sources import Unit
from neobert_train.errors import InputError
from neobert_train.tokenizers.text_tokenizer import TextTokenizer


@dataclass(frozen=True, slots=True)
class LaneState:
    """Where a lane continues.

    Attributes:
        num_batches: batches given so far; the steps that the run has taken.
        credits: of the mixture, one for each source; empty for a lane that has not begun.
        pending_sources: the source of every pending chunk, in the order in which they were read,
            where the documents of several sources are packed together.
        streams: of each source, by name.
    """

    num_batches: Count = 0
    credits: tuple[Finite, ...] = ()
    pending_sources: tuple[Count, ...] = ()
    streams: dict[str, StreamState] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return as JSON, from which `parse` makes it again; some hundred bytes for each source."""
        return {
            "num_batches": self.num_batches,
            "credits": list(self.credits),
            "pending_sources": list(self.pending_sources),
            "streams": {name: stream.to_dict() for name, stream in self.streams.items()},
        }

    def find_problem(self) -> str | None:
        """Find what contradicts itself in a state that was read from a file; None if nothing does."""
        problems = (stream.find_problem() for stream in self.streams.values())
        problem = next(filter(None, problems), None)
        pending = [len(stream.pending) for stream in self.streams.values()]
        if problem is None and len(self.credits) not in (0, len(self.streams)):
            problem = f"{len(self.credits)} credits for {len(self.streams)} sources"
        if problem is None and self.pending_sources:
            named = [self.pending_sources.count(number) for number in range(len(pending))]
            if named != pending or len(self.pending_sources) != sum(pending):
                problem = "pending_sources and the pending chunks of the sources differ"
        return problem


@dataclass(frozen=True, slots=True)
class PackedChunks:
    """The chunks of one micro-batch before they are masked.

    Attributes:
        step: the step it belongs to, counted from 1.
        chunks: at most a micro-batch of tokens.
        state: of the lane after it.
    """

    step: int
    chunks: list[Chunk]
    state: LaneState


class Lane:
    """Reads, tokenises, mixes, packs and masks what one lane gives.

    Args:
        config: of the run.
        units: of each source, by name.
        tokenizer: text to ids.
        lane: which one.
    """

    def __init__(
        self,
        config: TrainConfig,
        units: Mapping[str, Sequence[Unit]],
        tokenizer: TextTokenizer,
        lane: int,
    ) -> None:
        self._config, self._tokenizer, self._lane = config, tokenizer, lane
        self._units = units
        self._masking = build_masking(config.masking, tokenizer)

    def iter_batches(self, state: LaneState) -> Iterator[MicroBatch[np.ndarray]]:
        """Yield the micro-batches from `state` on; each carries the state after it.

        Raises:
            InputError: a bad record under the policy `stop`, a source without documents, or the end
                of all sources by their `max_epochs`.
        """
        for packed in self.iter_packed(state):
            yield self.mask(packed)

    def mask(self, packed: PackedChunks) -> MicroBatch[np.ndarray]:
        """Return packed chunks masked; which tokens are masked is a function of lane and step."""
        config = self._config
        return collate(
            [chunk.ids for chunk in packed.chunks],
            config.batch.micro_batch_tokens,
            self._tokenizer.special,
            self._masking,
            compute_masking_rate(config, packed.step),
            keyed_generator(config.seed, "mask", self._lane, packed.step - 1),
            self._lane,
            packed.state.to_dict(),
        )

    def iter_packed(self, state: LaneState) -> Iterator[PackedChunks]:
        """Yield the micro-batches from `state` on, not masked; errors as those of `iter_batches`."""
        config = self._config
        streams = self._open_streams(state)
        # A single source needs no mixing, and its packer is that of drawing micro-batches.
        mixes_documents = config.data.draw is Draw.document and len(streams) > 1
        scale = config.batch.context_length if mixes_documents else config.batch.micro_batch_tokens
        weights = compute_weights(config.data, 1)
        initial = draw_initial_credits(config.seed, self._lane, weights, scale)
        mixture = Mixture(state.credits or initial, ())
        if mixes_documents:
            source: _DocumentMixer | _MicroBatchMixer = _DocumentMixer(
                config, streams, mixture, state.pending_sources
            )
        else:
            source = _MicroBatchMixer(config, streams, mixture)
        step = state.num_batches
        while True:
            step += 1
            mixture.weights = compute_weights(config.data, step)
            chunks = source.pack()
            if not chunks:
                raise InputError(
                    f"lane {self._lane} has nothing left to read at step {step}: every source has "
                    f"been read max_epochs times; raise data.max_epochs, or write "
                    f"trainer.max_steps={step - 1} to end there"
                )
            for chunk in chunks:
                streams[chunk.source].tokens += len(chunk)
            pending = source.list_pending()
            after = LaneState(
                step,
                tuple(mixture.credits),
                tuple(chunk.source for chunk in pending) if mixes_documents else (),
                {
                    name: stream.find_state([c for c in pending if c.source == number])
                    for number, (name, stream) in enumerate(zip(self._units, streams, strict=True))
                },
            )
            yield PackedChunks(step, chunks, after)

    def _open_streams(self, state: LaneState) -> list[SourceStream]:
        config = self._config
        num_lanes = compute_num_lanes(config)
        return [
            SourceStream(
                LaneOrder(
                    self._units[name],
                    self._lane,
                    num_lanes,
                    config.seed,
                    config.data.shuffle_window,
                    config.data.shuffle_units,
                    name,
                    source.max_epochs,
                ),
                build_admission(config.data, source),
                config.data.on_bad_record,
                self._tokenizer,
                config.batch.context_length,
                number,
                state.streams.get(name, StreamState()),
            )
            for number, (name, source) in enumerate(resolve_sources(config.data).items())
        ]


class _DocumentMixer:
    """Packs the documents of all sources together, each drawn by the mixture."""

    def __init__(
        self,
        config: TrainConfig,
        streams: Sequence[SourceStream],
        mixture: Mixture,
        pending_sources: Sequence[int],
    ) -> None:
        self._streams, self._mixture = streams, mixture
        queues = [iter(stream.pending) for stream in streams]
        self._packer = Packer(
            self._draw,
            config.batch.micro_batch_tokens,
            config.data.lookahead_documents,
            [next(queues[source]) for source in pending_sources],
        )

    def pack(self) -> list[Chunk]:
        return self._packer.pack()

    def list_pending(self) -> Sequence[Chunk]:
        return self._packer.pending

    def _draw(self) -> Chunk | None:
        while True:
            exhausted = [stream.exhausted for stream in self._streams]
            source = self._mixture.choose(exhausted)
            if source is None:
                return None
            chunk = self._streams[source].read()
            if chunk is not None:
                self._mixture.charge(source, len(chunk), exhausted)
                return chunk


class _MicroBatchMixer:
    """Packs the documents of each source by themselves; the mixture draws whole micro-batches."""

    def __init__(
        self, config: TrainConfig, streams: Sequence[SourceStream], mixture: Mixture
    ) -> None:
        self._streams, self._mixture = streams, mixture
        self._packers = [
            Packer(
                stream.read,
                config.batch.micro_batch_tokens,
                config.data.lookahead_documents,
                stream.pending,
            )
            for stream in streams
        ]

    def pack(self) -> list[Chunk]:
        while True:
            exhausted = [
                stream.exhausted and not packer.pending
                for stream, packer in zip(self._streams, self._packers, strict=True)
            ]
            source = self._mixture.choose(exhausted)
            if source is None:
                return []
            chunks = self._packers[source].pack()
            if chunks:
                self._mixture.charge(source, sum(len(chunk) for chunk in chunks), exhausted)
                return chunks

    def list_pending(self) -> Sequence[Chunk]:
        return [chunk for packer in self._packers for chunk in packer.pending]


def initial_states(lanes: Sequence[int]) -> dict[int, dict[str, Any]]:
    """Return the states of lanes that have given nothing yet."""
    return {lane: LaneState().to_dict() for lane in lanes}


@dataclass(frozen=True, slots=True)
class SourceProgress:
    """What lanes have read of a source and given of it, in all.

    Attributes:
        documents, empty, bad, filtered: records read.
        tokens: of the chunks that went into batches.
        epochs: of all lanes together.
    """

    documents: int
    empty: int
    bad: int
    filtered: int
    tokens: int
    epochs: int


def sum_progress(states: Iterable[dict[str, Any]], name: str) -> SourceProgress:
    """Return the progress of a source over the states of several lanes."""
    totals = [0] * 6
    for state in states:
        if name in state["streams"]:
            stream = parse(StreamState, state["streams"][name], name)
            row = (*stream.counts, stream.tokens, stream.position.window.epoch)
            totals = [total + number for total, number in zip(totals, row, strict=True)]
    return SourceProgress(*totals)
