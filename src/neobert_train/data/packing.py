"""Whole chunks of a stream packed into micro-batches of constant length, exactly filled.

A micro-batch takes the chunks in the order of the stream until the next one does not fit. Then its
last few and the next `lookahead` chunks are considered together, and the subset that fills the rest
of the micro-batch best is taken (a subset sum over token counts). The oldest chunk is always
taken, so nothing waits long and nothing is lost.
"""

import bisect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

_LAST_RECONSIDERED = 16


class Sized(Protocol):
    """What can be packed: something with a length in tokens."""

    def __len__(self) -> int: ...


Item = TypeVar("Item", bound=Sized)


@dataclass(frozen=True, slots=True)
class PackingState:
    """Which chunks are read but not yet packed, counted from the oldest of them.

    Attributes:
        num_read: chunks read since the oldest pending one, itself included.
        pending: ordinals (ascending, the first is 0) of those that are not packed yet.
    """

    num_read: int = 0
    pending: tuple[int, ...] = ()


@dataclass
class Packer(Generic[Item]):
    """Packs a stream of chunks; see the module's text.

    Attributes:
        chunks: the stream, from the oldest pending chunk of `state` on.
        capacity: tokens of a micro-batch; at least the length of any chunk.
        lookahead: chunks beyond a full micro-batch that may fill its end.
        state: what was already taken from the stream when this packer starts.
    """

    chunks: Iterator[Item]
    capacity: int
    lookahead: int
    state: PackingState = field(default_factory=PackingState)

    def __post_init__(self) -> None:
        self._pending: list[tuple[int, Item]] = []
        wanted = set(self.state.pending)
        for ordinal in range(self.state.num_read):
            chunk = next(self.chunks)
            if ordinal in wanted:
                self._pending.append((ordinal, chunk))
        self._num_read = self.state.num_read

    def pack(self) -> list[Item]:
        """The chunks of the next micro-batch, in the order of the stream."""
        num_prefix = self._fill()
        num_fixed = max(1, num_prefix - _LAST_RECONSIDERED)
        target = self.capacity - sum(len(chunk) for _, chunk in self._pending[:num_fixed])
        lengths = [len(chunk) for _, chunk in self._pending[num_fixed:]]
        chosen = set(range(num_fixed))
        chosen.update(num_fixed + index for index in choose_subset(lengths, target))
        packed = [chunk for index, (_, chunk) in enumerate(self._pending) if index in chosen]
        self._pending = [item for index, item in enumerate(self._pending) if index not in chosen]
        if not self._pending:
            self._read()
        self._rebase()
        return packed

    @property
    def oldest(self) -> Item:
        """The chunk from which a stream has to go on with the present `state`."""
        return self._pending[0][1]

    def _fill(self) -> int:
        """Read ahead; returns how many of the oldest chunks fit together."""
        total, num_prefix = 0, 0
        while True:
            while num_prefix < len(self._pending):
                length = len(self._pending[num_prefix][1])
                if total + length > self.capacity:
                    while len(self._pending) < num_prefix + self.lookahead:
                        self._read()
                    return num_prefix
                total += length
                num_prefix += 1
            self._read()

    def _read(self) -> None:
        self._pending.append((self._num_read, next(self.chunks)))
        self._num_read += 1

    def _rebase(self) -> None:
        origin = self._pending[0][0]
        self._pending = [(ordinal - origin, chunk) for ordinal, chunk in self._pending]
        self._num_read -= origin
        self.state = PackingState(self._num_read, tuple(ordinal for ordinal, _ in self._pending))


def choose_subset(lengths: list[int], target: int) -> list[int]:
    """Indices whose lengths sum to the largest possible total of at most `target`.

    Among the subsets with that total the one with the earliest indices is taken. Sets of reachable
    sums are bits of Python integers, so a length costs one shift and one or.
    """
    mask = (1 << (target + 1)) - 1
    reachable = [1]  # reachable[k]: sums of subsets of the last k lengths
    for length in reversed(lengths):
        sums = reachable[-1]
        reachable.append((sums | (sums << length)) & mask)
    total = reachable[-1].bit_length() - 1
    chosen = []
    for index, length in enumerate(lengths):
        rest = reachable[len(lengths) - index - 1]
        if length <= total and rest >> (total - length) & 1:
            chosen.append(index)
            total -= length
    return chosen


def pack_all(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """A finite list packed by best fit of decreasing lengths.

    Args:
        lengths: tokens of each item, at most `capacity`.
        capacity: tokens of a micro-batch.

    Returns:
        Indices of the items of each micro-batch, ascending.
    """
    bins: list[list[int]] = []
    rooms: list[tuple[int, int]] = []  # (tokens free, bin), sorted
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        place = bisect.bisect_left(rooms, (lengths[index], 0))
        if place == len(rooms):
            bins.append([])
            free, number = capacity, len(bins) - 1
        else:
            free, number = rooms.pop(place)
        bins[number].append(index)
        bisect.insort(rooms, (free - lengths[index], number))
    return [sorted(indices) for indices in bins]
