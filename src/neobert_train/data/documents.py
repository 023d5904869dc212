"""The documents of one lane: units dealt and shuffled by keyed randomness, from any position on.

In every epoch the units of the source are permuted and dealt to the lanes in turn, so that the
lanes of one epoch together read every document once. A lane reads its units one after the other,
in windows of `shuffle_window` records that are permuted as a whole. When a lane comes to the end of
its units it goes on with the next epoch by itself; no lane waits for another.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from neobert_train.data.randomness import keyed_generator
from neobert_train.data.sources import END_OF_UNIT, BadRecord, Record, Unit
from neobert_train.errors import InputError

# An epoch leaves a lane without documents when a source has fewer of them than lanes, in the worst
# case all but one in `num_lanes`. This often in a row that chance is nil (e^-100).
_MOST_EMPTY_EPOCHS_PER_LANE = 100


@dataclass(frozen=True, slots=True)
class Position:
    """Where in its lane a record lies; five integers.

    Attributes:
        epoch: pass over the source.
        window: number of the shuffle window within the epoch.
        unit: index, among the lane's units of this epoch, where the window begins.
        cursor: where in that unit the window begins.
        offset: place of the record in the shuffled window.
    """

    epoch: int = 0
    window: int = 0
    unit: int = 0
    cursor: int = 0
    offset: int = 0


@dataclass(frozen=True, slots=True)
class LaneOrder:
    """Decides what a lane reads in which order.

    Attributes:
        units: the source.
        lane, num_lanes: which of how many.
        seed: of the run.
        shuffle_window: records shuffled together; 1 keeps their order.
    """

    units: Sequence[Unit]
    lane: int
    num_lanes: int
    seed: int
    shuffle_window: int

    def deal(self, epoch: int) -> Sequence[int]:
        """The units of this lane in an epoch, in reading order."""
        # With fewer units than lanes the empty slots are dealt as well, so that every lane gets its
        # turn in some epoch.
        num_slots = max(len(self.units), self.num_lanes)
        order = keyed_generator(self.seed, "units", epoch).permutation(num_slots)
        return [int(unit) for unit in order[self.lane :: self.num_lanes] if unit < len(self.units)]

    def shuffle(self, epoch: int, window: int, length: int) -> Sequence[int]:
        """The order in which the records of a window are given out."""
        generator = keyed_generator(self.seed, "window", self.lane, epoch, window)
        return [int(index) for index in generator.permutation(length)]


def iter_lane_records(
    order: LaneOrder, start: Position
) -> Iterator[tuple[Record | BadRecord, Position]]:
    """The endless stream of a lane's records, each with its own position.

    `iter_lane_records(order, position)` gives the very records that a stream from the beginning
    gives from that position on. It reads one window again, and nothing else.

    Raises:
        InputError: the lane finds no record at all.
    """
    position, empty_epochs = start, 0
    while empty_epochs < _MOST_EMPTY_EPOCHS_PER_LANE * order.num_lanes:
        empty_epochs += 1
        for records, first in _iter_windows(order, position):
            for offset in order.shuffle(first.epoch, first.window, len(records))[first.offset :]:
                yield records[offset], first
                first = replace(first, offset=first.offset + 1)
                empty_epochs = 0
        position = Position(epoch=position.epoch + 1)
    raise InputError(
        f"lane {order.lane} of {order.num_lanes} finds no documents in the source: it is empty"
    )


def _iter_windows(
    order: LaneOrder, start: Position
) -> Iterator[tuple[list[Record | BadRecord], Position]]:
    """The windows of one epoch from `start` on; the first keeps the offset of `start`."""
    stream = _iter_epoch(order, start)
    position = start
    while True:
        window = list(itertools.islice(stream, order.shuffle_window))
        if not window:
            return
        yield [record for record, _, _ in window], position
        _, unit, cursor = window[-1]
        position = Position(position.epoch, position.window + 1, unit, cursor)


def _iter_epoch(order: LaneOrder, start: Position) -> Iterator[tuple[Record | BadRecord, int, int]]:
    """Records in file order, each with the unit and cursor that follow it."""
    cursor = start.cursor
    for index, unit in enumerate(order.deal(start.epoch)[start.unit :], start.unit):
        if cursor != END_OF_UNIT:
            for record in order.units[unit].iter_records(cursor):
                yield record, index, record.next_cursor
        cursor = 0
