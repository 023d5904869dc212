"""The records of one lane: units dealt and shuffled by keyed randomness, from any position on.

In every epoch the units of the source are permuted and dealt to the lanes in turn, so that the
lanes of one epoch together read every record once. A lane reads a few of its units at a time, and
a new one whenever one ends. What it reads from them in turn makes up a *window*, which is permuted
as a whole: neighbours in the stream come from different places of the source. When a lane comes to
the end of its units it continues with the next epoch by itself; no lane waits for another.

    unit 17  |####......|  --.
    unit  3  |##########|  ----> window of `shuffle_window` records --> permuted --> stream
    unit 42  |#.........|  --'
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

from pydantic import Field

from neobert_train.config.typed import Count, parse
from neobert_train.data.lane.randomness import keyed_generator
from neobert_train.data.sources import END_OF_UNIT, AnyRecord, Unit
from neobert_train.errors import InputError

# An epoch leaves a lane without records when a source has fewer of them than lanes, in the worst
# case all but one in `num_lanes`. After this many in a row chance is ruled out (p < e^-100).
_MOST_EMPTY_EPOCHS_PER_LANE = 100


@dataclass(frozen=True, slots=True)
class WindowStart:
    """Where a shuffle window begins; a few integers.

    Attributes:
        epoch: pass over the source.
        number: windows of the epoch before this one.
        num_begun: units of the lane's deal that were begun before it.
        open_units: of those, the ones that are not read to their end: place in the deal and cursor.
    """

    epoch: int = 0
    number: int = 0
    num_begun: int = 0
    open_units: tuple[tuple[int, int], ...] = ()


_Cursor = Annotated[int, Field(strict=True, ge=0, le=END_OF_UNIT)]
_POSITION = tuple[Count, Count, Count, list[tuple[Count, _Cursor]], Count]


@dataclass(frozen=True, slots=True)
class Position:
    """Where in its lane a record lies: in which window, and at which place after the shuffle."""

    window: WindowStart = field(default_factory=WindowStart)
    offset: int = 0

    def to_list(self) -> list[Any]:
        """Return as JSON."""
        window = self.window
        open_units = [list(unit) for unit in window.open_units]
        return [window.epoch, window.number, window.num_begun, open_units, self.offset]

    @classmethod
    def from_list(cls, values: Any) -> "Position":
        """Return the inverse of `to_list`.

        Raises:
            ValueError: it is not what `to_list` gives.
        """
        epoch, number, num_begun, open_units, offset = parse(_POSITION, values, "position")
        places = [place for place, _ in open_units]
        if len(set(places)) < len(places) or any(place >= num_begun for place in places):
            raise ValueError("it has units open that were not begun")
        return cls(WindowStart(epoch, number, num_begun, tuple(open_units)), offset)


@dataclass(frozen=True, slots=True)
class Window:
    """Records that are shuffled together, in the order in which they were read.

    Attributes:
        start: where the window begins.
        records: what was read.
        units: for each record the index of its unit in the source.
    """

    start: WindowStart
    records: list[AnyRecord]
    units: list[int]


@dataclass(frozen=True, slots=True)
class LaneOrder:
    """Decides what a lane reads in which order.

    Attributes:
        units: the source.
        lane, num_lanes: which of how many.
        seed: of the run.
        shuffle_window: records shuffled together; 1 keeps their order.
        shuffle_units: units read at a time.
        name: of the source, so that sources of one mixture are shuffled differently.
        max_epochs: passes over the source; None for endless ones.
    """

    units: Sequence[Unit]
    lane: int
    num_lanes: int
    seed: int
    shuffle_window: int
    shuffle_units: int = 1
    name: str = ""
    max_epochs: int | None = None

    def deal(self, epoch: int) -> Sequence[int]:
        """Return the units of this lane in an epoch, in reading order."""
        # With fewer units than lanes the empty slots are dealt as well, so that every lane gets its
        # turn in some epoch.
        num_slots = max(len(self.units), self.num_lanes)
        order = keyed_generator(self.seed, self.name, "units", epoch).permutation(num_slots)
        dealt: list[int] = order[self.lane :: self.num_lanes].tolist()
        return [unit for unit in dealt if unit < len(self.units)]

    def shuffle(self, start: WindowStart, length: int) -> list[int]:
        """Return the order in which the records of a window are given out."""
        key = (self.seed, self.name, "window", self.lane, start.epoch, start.number)
        order: list[int] = keyed_generator(*key).permutation(length).tolist()
        return order


def iter_lane_records(
    order: LaneOrder, start: Position
) -> Iterator[tuple[AnyRecord, int, Position]]:
    """Yield the stream of a lane's records, each with its unit and its own position.

    `iter_lane_records(order, position)` gives the very records that a stream from the beginning
    gives from that position on. It reads one window again, and nothing else. The stream is endless
    but for `max_epochs`.

    Raises:
        InputError: the lane finds no record at all.
    """
    first = start.offset
    for window in iter_windows(order, start.window):
        for offset in range(first, len(window.records)):
            # Shuffled only at the first record, so that a window costs one generator.
            if offset == first:
                shuffled = order.shuffle(window.start, len(window.records))
            index = shuffled[offset]
            yield window.records[index], window.units[index], Position(window.start, offset)
        first = 0


def iter_windows(order: LaneOrder, start: WindowStart) -> Iterator[Window]:
    """Yield the windows of a lane from `start` on, epoch after epoch; none is empty.

    Raises:
        InputError: the lane finds no record at all.
    """
    empty_epochs = 0
    while order.max_epochs is None or start.epoch < order.max_epochs:
        for window in _iter_epoch(order, start):
            yield window
            empty_epochs = -1
        empty_epochs += 1
        if empty_epochs >= _MOST_EMPTY_EPOCHS_PER_LANE * order.num_lanes:
            raise InputError(
                f"lane {order.lane} of {order.num_lanes} finds no documents in the source: it is "
                f"empty"
            )
        start = WindowStart(start.epoch + 1)


class _UnitReader:
    """A unit that is being read, and how far."""

    def __init__(self, order: LaneOrder, place: int, unit: int, cursor: int) -> None:
        self.place, self.unit, self.cursor = place, unit, cursor
        self._records: Iterator[AnyRecord] = iter(())
        if cursor != END_OF_UNIT:
            self._records = order.units[unit].iter_records(cursor)

    def take(self, count: int) -> list[AnyRecord]:
        """Return the next `count` records; fewer only at the end of the unit."""
        records = list(itertools.islice(self._records, count))
        if records:
            self.cursor = records[-1].next_cursor
        return records


def _iter_epoch(order: LaneOrder, start: WindowStart) -> Iterator[Window]:
    """Yield the windows of one epoch from `start` on."""
    deal = order.deal(start.epoch)
    num_open = min(order.shuffle_units, order.shuffle_window)
    share = -(-order.shuffle_window // num_open)
    if any(place >= len(deal) for place, _ in start.open_units):
        raise InputError(
            f"the state of lane {order.lane} is not one of this data: it is in its unit "
            f"{max(start.open_units)[0] + 1} of {len(deal)}"
        )
    readers = [_UnitReader(order, place, deal[place], cursor) for place, cursor in start.open_units]
    num_begun = start.num_begun
    while True:
        records: list[AnyRecord] = []
        units: list[int] = []
        turn = 0
        while len(records) < order.shuffle_window:
            while len(readers) < num_open and num_begun < len(deal):
                readers.append(_UnitReader(order, num_begun, deal[num_begun], 0))
                num_begun += 1
            if not readers:
                break
            turn %= len(readers)
            wanted = min(share, order.shuffle_window - len(records))
            taken = readers[turn].take(wanted)
            records += taken
            units += [readers[turn].unit] * len(taken)
            if len(taken) < wanted:
                del readers[turn]  # a new unit takes its turn after the others
            else:
                turn += 1
        if not records:
            return
        yield Window(start, records, units)
        open_units = tuple((reader.place, reader.cursor) for reader in readers)
        start = WindowStart(start.epoch, start.number + 1, num_begun, open_units)
