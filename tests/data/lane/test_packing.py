"""Packing of a stream and of a finite list."""

import dataclasses
import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neobert_train.data.lane.packing import Packer, choose_subset, pack_all


@dataclasses.dataclass(frozen=True)
class Piece:
    """A chunk that knows its place in the stream."""

    number: int
    length: int

    def __len__(self) -> int:
        return self.length


def iter_pieces(lengths, start=0):
    """The lengths over and over, as an endless stream from piece `start` on."""
    for number in itertools.count(start):
        yield Piece(number, lengths[number % len(lengths)])


def make_packer(stream, capacity, lookahead, pending=()):
    """A packer of an iterator, which may end."""
    return Packer(lambda: next(stream, None), capacity, lookahead, list(pending))


def draw_lognormal_chunks(num_documents: int, context_length: int, seed: int) -> list[int]:
    """Chunk lengths of documents with median 300 and mean 620 tokens, split at the context."""
    sigma = math.sqrt(2 * math.log(620 / 300))
    documents = np.random.default_rng(seed).lognormal(math.log(300), sigma, num_documents)
    chunks = []
    for tokens in np.maximum(1, documents.round()).astype(int):
        while tokens > 0:
            text = min(int(tokens), context_length - 2)
            chunks.append(text + 2)
            tokens -= text
    return chunks


lengths_and_capacity = st.integers(4, 64).flatmap(
    lambda capacity: st.tuples(
        st.lists(st.integers(1, capacity), min_size=1, max_size=40), st.just(capacity)
    )
)


@settings(deadline=None, max_examples=150)
@given(lengths_and_capacity, st.integers(1, 24), st.integers(1, 30))
def test_every_chunk_is_packed_once_and_no_batch_overflows(case, lookahead, num_batches):
    lengths, capacity = case
    packer = make_packer(iter_pieces(lengths), capacity, lookahead)
    packed = []
    for _ in range(num_batches):
        batch = packer.pack()
        assert 0 < sum(map(len, batch)) <= capacity
        numbers = [piece.number for piece in batch]
        assert numbers == sorted(numbers), "the order of the stream is kept"
        packed += numbers
    pending = [piece.number for piece in packer.pending]
    assert pending == sorted(pending)
    assert sorted(packed + pending) == list(range(len(packed) + len(pending)))


@settings(deadline=None, max_examples=100)
@given(lengths_and_capacity, st.integers(1, 24), st.integers(1, 30))
def test_the_oldest_chunk_goes_into_the_next_batch(case, lookahead, num_batches):
    lengths, capacity = case
    packer = make_packer(iter_pieces(lengths), capacity, lookahead)
    expected = 0
    for _ in range(num_batches):
        packed = packer.pack()
        assert packed[0].number == expected
        unpacked = {piece.number for piece in packer.pending}
        expected = min(unpacked, default=packed[-1].number + 1)


@settings(deadline=None, max_examples=100)
@given(lengths_and_capacity, st.integers(1, 24), st.lists(st.integers(1, 6), max_size=5))
def test_a_packer_with_the_same_pending_chunks_continues_identically(case, lookahead, runs):
    lengths, capacity = case
    whole = make_packer(iter_pieces(lengths), capacity, lookahead)
    pending, num_read = [], 0
    for run in [*runs, 3]:
        rebuilt = make_packer(iter_pieces(lengths, num_read), capacity, lookahead, pending)
        for _ in range(run):
            batch = rebuilt.pack()
            assert batch == whole.pack()
            assert rebuilt.pending == whole.pending
            num_read = max(num_read, *(p.number + 1 for p in [*batch, *rebuilt.pending]))
        pending = rebuilt.pending


@settings(deadline=None, max_examples=100)
@given(lengths_and_capacity, st.integers(1, 24))
def test_a_stream_that_ends_is_packed_to_its_last_chunk(case, lookahead):
    lengths, capacity = case
    packer = make_packer(itertools.islice(iter_pieces(lengths), len(lengths)), capacity, lookahead)
    packed = []
    while batch := packer.pack():
        assert sum(map(len, batch)) <= capacity
        packed += [piece.number for piece in batch]
    assert sorted(packed) == list(range(len(lengths)))
    assert packer.pack() == []


def test_what_is_pending_stays_little():
    lengths = [3] * 997 + [128, 5, 77]
    packer = make_packer(iter_pieces(lengths), 65_536, 64)
    for _ in range(10):
        packer.pack()
        assert len(packer.pending) <= 16 + 64


@settings(deadline=None, max_examples=300)
@given(st.lists(st.integers(1, 30), max_size=9), st.integers(0, 90))
def test_chosen_subset_is_the_fullest_and_then_the_earliest(lengths, target):
    subsets = [
        subset
        for size in range(len(lengths) + 1)
        for subset in itertools.combinations(range(len(lengths)), size)
        if sum(lengths[i] for i in subset) <= target
    ]
    fullest = max(sum(lengths[i] for i in subset) for subset in subsets)
    chosen = choose_subset(lengths, target)
    assert sum(lengths[i] for i in chosen) == fullest
    ties = [subset for subset in subsets if sum(lengths[i] for i in subset) == fullest]
    taken = [[i in subset for i in range(len(lengths))] for subset in ties]
    assert [i in chosen for i in range(len(lengths))] == max(taken)


@pytest.mark.parametrize("context_length", [1024, 4096])
@pytest.mark.parametrize(
    ("capacity", "num_batches", "least_fill"), [(65_536, 60, 0.999), (8192, 300, 0.995)]
)
def test_documents_of_the_web_fill_micro_batches(context_length, capacity, num_batches, least_fill):
    chunks = draw_lognormal_chunks(20_000, context_length, seed=context_length)
    packer = make_packer(iter_pieces(chunks), capacity, 64)
    tokens = sum(len(piece) for _ in range(num_batches) for piece in packer.pack())
    assert tokens / (num_batches * capacity) >= least_fill


def test_chunks_as_long_as_the_capacity_come_one_by_one_in_order():
    packer = make_packer(iter_pieces([8, 8, 8]), 8, 4)
    assert [[p.number for p in packer.pack()] for _ in range(5)] == [[0], [1], [2], [3], [4]]


def test_an_error_of_the_stream_passes_through_and_what_was_read_stays_pending():
    def iter_failing():
        yield from itertools.islice(iter_pieces([5]), 12)
        raise OSError("unreadable")

    packer = make_packer(iter_failing(), 10, 2)
    packed = [number.number for _ in range(5) for number in packer.pack()]
    assert packed == list(range(10))
    with pytest.raises(OSError, match="unreadable"):
        packer.pack()
    assert [piece.number for piece in packer.pending] == [10, 11]


@settings(deadline=None, max_examples=200)
@given(
    st.integers(1, 60).flatmap(
        lambda c: st.tuples(st.lists(st.integers(1, c), max_size=60), st.just(c))
    )
)
def test_a_finite_list_is_covered_once_within_capacity(case):
    lengths, capacity = case
    bins = pack_all(lengths, capacity)
    assert sorted(index for indices in bins for index in indices) == list(range(len(lengths)))
    for indices in bins:
        assert indices == sorted(indices)
        assert 0 < sum(lengths[i] for i in indices) <= capacity
    totals = sorted(sum(lengths[i] for i in indices) for indices in bins)
    assert len(totals) < 2 or totals[0] + totals[1] > capacity, "two micro-batches could be one"


def test_a_finite_list_takes_the_tightest_place_that_fits():
    # By hand: 7 opens a bin (3 free), 6 opens one (4 free), 4 and 3 close them exactly.
    assert sorted(pack_all([3, 6, 4, 7], 10)) == [[0, 3], [1, 2]]
