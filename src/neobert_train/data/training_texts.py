"""The documents that a tokenizer learns from, and those that it is measured on."""

import itertools
from collections import deque
from collections.abc import Iterator, Sequence

from neobert_train.config.command_schema import TrainTokenizerConfig
from neobert_train.config.derived import compute_num_lanes, resolve_sources
from neobert_train.data.lane.admission import handle_bad_record, is_heldout
from neobert_train.data.lane.randomness import keyed_generator
from neobert_train.data.shards.prepared import fingerprint_source
from neobert_train.data.sources import (
    AnyRecord,
    BadRecord,
    Record,
    Unit,
    divide_source,
)

_SAMPLE_CHARACTERS = 500_000


class TrainingTexts:
    """The documents that a tokenizer may learn from, once through, in a keyed random order.

    Held-out documents are left out, as in training.

    Attributes:
        num_documents, num_characters: of the texts given out so far.
        num_bad_records: passed over under the policy `skip`.
        num_heldout: held-out documents passed over.
    """

    def __init__(self, config: TrainTokenizerConfig) -> None:
        """Raise InputError when the source cannot be read."""
        self._config = config
        self._units = _build_source_units(config)
        self.num_documents = self.num_characters = self.num_bad_records = self.num_heldout = 0
        self._heldout, self._first = _Sample(), _Sample()

    def __iter__(self) -> Iterator[str]:
        """Yield up to `max_documents` texts.

        Raises:
            InputError: a bad record under the policy `stop`.
        """
        for text in self._iter_texts():
            if is_heldout(text, self._config.data.heldout_fraction):
                self.num_heldout += 1
                self._heldout.add(text)
                continue
            self.num_documents += 1
            self.num_characters += len(text)
            self._first.add(text)
            yield text
            if self.num_documents >= self._config.max_documents:
                return

    @property
    def sample(self) -> tuple[list[str], str]:
        """Texts to measure the tokenizer on, and what they are: held-out ones where there are."""
        if self._heldout.texts:
            return self._heldout.texts, "held-out"
        return self._first.texts, "training"

    def _iter_texts(self) -> Iterator[str]:
        data = self._config.data
        for record in _iter_records(self._units, self._config.seed, data.shuffle_units):
            if isinstance(record, Record):
                if record.text.strip():
                    yield record.text
                continue
            if isinstance(record, BadRecord):
                handle_bad_record(record, data.on_bad_record)
            self.num_bad_records += 1


def _build_source_units(config: TrainTokenizerConfig) -> list[Unit]:
    """Return the units of all sources of a mixture together, whatever their weights.

    Sources that differ in the lengths of the documents they take are read once, without a limit.
    """
    sources = resolve_sources(config.data).values()
    distinct = {fingerprint_source(source): source for source in sources}
    num_lanes = compute_num_lanes(config)
    return [
        unit
        for source in distinct.values()
        for unit in divide_source(config.data, source, num_lanes)
    ]


def _iter_records(units: Sequence[Unit], seed: int, num_open: int) -> Iterator[AnyRecord]:
    """Yield all records, round-robin over `num_open` units, so a truncated read is not biased to few."""
    order = keyed_generator(seed, "tokenizer").permutation(len(units))
    waiting = (units[unit].iter_records(0) for unit in order)
    turn = deque(itertools.islice(waiting, num_open))
    while turn:
        records = turn.popleft()
        record = next(records, None)
        if record is None:
            turn.extend(itertools.islice(waiting, 1))
        else:
            yield record
            turn.append(records)


class _Sample:
    """The first texts up to some characters."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self._room = _SAMPLE_CHARACTERS

    def add(self, text: str) -> None:
        if self._room > 0:
            self.texts.append(text[: self._room])
            self._room -= len(text)
