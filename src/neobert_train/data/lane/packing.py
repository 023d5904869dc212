"""Whole chunks of a stream packed into micro-batches of constant length, exactly filled.

A micro-batch takes the chunks in the order of the stream until the next one does not fit. Then its
last few and the next `lookahead` chunks are considered together, and the subset that fills the rest
of the micro-batch best is taken (a subset sum over token counts). The oldest chunk is always
taken, so nothing waits long and nothing is lost.
"""

import bisect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

_LAST_RECONSIDERED = 16


class Sized(Protocol):
    """What can be packed: something with a length in tokens."""

    def __len__(self) -> int: ...


Item = TypeVar("Item", bound=Sized)


@dataclass
class Packer(Generic[Item]):
    """Packs a stream of chunks; see the module's text.

    Attributes:
        read: gives the next chunk; None at the end of the stream.
        capacity: tokens of a micro-batch; at least the length of any chunk.
        lookahead: chunks beyond a full micro-batch that may fill its end.
        pending: chunks that are read and not packed yet, in the order of the stream.
    """

    read: Callable[[], Item | None]
    capacity: int
    lookahead: int
    pending: list[Item] = field(default_factory=list)

    def pack(self) -> list[Item]:
        """Return the chunks of the next micro-batch, in the order of the stream; none at its end."""
        num_prefix = self._fill()
        if not self.pending:
            return []
        num_fixed = max(1, num_prefix - _LAST_RECONSIDERED)
        lengths = [len(chunk) for chunk in self.pending]
        target = self.capacity - sum(lengths[:num_fixed])
        chosen = {num_fixed + index for index in choose_subset(lengths[num_fixed:], target)}
        packed = self.pending[:num_fixed]
        left: list[Item] = []
        for index in range(num_fixed, len(lengths)):
            (packed if index in chosen else left).append(self.pending[index])
        self.pending = left
        return packed

    def _fill(self) -> int:
        """Read ahead; returns how many of the oldest chunks fit together."""
        total, num_prefix = 0, 0
        while num_prefix < len(self.pending) or self._read():
            total += len(self.pending[num_prefix])
            if total > self.capacity:
                break
            num_prefix += 1
        while len(self.pending) < num_prefix + self.lookahead and self._read():
            pass
        return num_prefix

    def _read(self) -> bool:
        chunk = self.read()
        if chunk is None:
            return False
        self.pending.append(chunk)
        return True


def choose_subset(lengths: list[int], target: int) -> list[int]:
    """Return indices whose lengths sum to the largest possible total of at most `target`.

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
    """Return a finite list packed by best fit of decreasing lengths.

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
