"""The order of documents: each once an epoch, the same from any position on, keyed by everything."""

import itertools
from collections import Counter
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neobert_train.config.data_schema import DataConfig, SourceKind, TextDocuments
from neobert_train.data.documents import LaneOrder, Position, iter_lane_records
from neobert_train.data.sources import END_OF_UNIT, BadRecord, Record, build_units
from neobert_train.errors import InputError


@dataclass(frozen=True)
class ListUnit:
    """Texts in memory; a cursor counts in steps of 10; some end in damage. Notes what it reads."""

    texts: tuple[str, ...]
    is_damaged: bool = False
    reads: list[str] = field(default_factory=list, compare=False)

    def iter_records(self, cursor):
        for index in range(cursor // 10, len(self.texts)):
            self.reads.append(self.texts[index])
            yield Record(self.texts[index], (index + 1) * 10)
        if self.is_damaged:
            yield BadRecord(f"damage after {self.texts}", END_OF_UNIT)


def make_units(*sizes: int) -> list[ListUnit]:
    return [ListUnit(tuple(f"{u}.{n}" for n in range(size))) for u, size in enumerate(sizes)]


def describe(record) -> str:
    return record.text if isinstance(record, Record) else record.reason


def list_all(units) -> list[str]:
    return [describe(record) for unit in units for record in unit.iter_records(0)]


def take(order: LaneOrder, count: int, start: Position | None = None):
    return list(itertools.islice(iter_lane_records(order, start or Position()), count))


def read_epoch(order: LaneOrder, epoch: int) -> list[str]:
    """What a lane reads in one epoch, with an end put after it so that a lane can be empty."""
    stream = iter_lane_records(order, Position(epoch=epoch))
    return [
        describe(record)
        for record, _ in itertools.takewhile(lambda item: item[1].epoch == epoch, stream)
    ]


@st.composite
def sources(draw) -> list[ListUnit]:
    sizes = draw(st.lists(st.integers(0, 9), min_size=1, max_size=8))
    units = make_units(*sizes)
    damaged = [replace(unit, is_damaged=draw(st.booleans())) for unit in units]
    return damaged if list_all(damaged) else make_units(*sizes, 1)


lane_counts = st.integers(1, 12)
windows = st.sampled_from([1, 2, 3, 7, 1000])
seeds = st.integers(0, 2**40)


@settings(deadline=None, max_examples=80)
@given(sources(), lane_counts, windows, seeds, st.integers(0, 50))
def test_the_lanes_of_an_epoch_together_give_each_record_once(
    units, num_lanes, window, seed, epoch
):
    found = []
    for lane in range(num_lanes):
        found += read_epoch(LaneOrder(units, lane, num_lanes, seed, window), epoch)
    assert sorted(found) == sorted(list_all(units))


@settings(deadline=None, max_examples=80)
@given(sources(), lane_counts, windows, seeds, st.data())
def test_the_stream_from_any_position_equals_the_one_from_the_beginning(
    units, num_lanes, window, seed, data
):
    order = LaneOrder(units, data.draw(st.integers(0, num_lanes - 1)), num_lanes, seed, window)
    stream = take(order, 60)
    positions = [position for _, position in stream]
    assert len(set(positions)) == len(positions)
    assert positions == sorted(positions, key=lambda p: (p.epoch, p.window, p.offset))
    for index in data.draw(st.lists(st.integers(0, 59), min_size=8, max_size=8)):
        assert take(order, 60 - index, positions[index]) == stream[index:]


@settings(deadline=None, max_examples=60)
@given(sources(), lane_counts, windows, seeds)
def test_a_window_is_shuffled_within_itself_and_units_are_read_one_after_the_other(
    units, num_lanes, window, seed
):
    for lane in range(num_lanes):
        order = LaneOrder(units, lane, num_lanes, seed, window)
        in_order = [
            describe(record) for unit in order.deal(3) for record in units[unit].iter_records(0)
        ]
        assert read_epoch(replace(order, shuffle_window=1), 3) == in_order
        shuffled = read_epoch(order, 3)
        for start in range(0, len(in_order), window):
            stop = start + window
            assert sorted(shuffled[start:stop]) == sorted(in_order[start:stop])


def test_order_differs_between_epochs_seeds_lanes_and_windows():
    units = make_units(*[40] * 12)
    base = LaneOrder(units, 0, 3, seed=1, shuffle_window=40)
    assert read_epoch(base, 0) == read_epoch(base, 0)
    others = [replace(base, seed=2), replace(base, lane=1), replace(base, num_lanes=4)]
    assert read_epoch(base, 0) != read_epoch(base, 1)
    assert all(read_epoch(base, 0) != read_epoch(other, 0) for other in others)
    lengths = (40, 40, 40)
    in_window = {
        tuple(order.shuffle(epoch, window, length))
        for order in (base, *others[:2])
        for epoch in range(2)
        for window, length in enumerate(lengths)
    }
    assert len(in_window) == 18
    deals = {tuple(replace(base, seed=s).deal(e)) for s in range(4) for e in range(4)}
    assert len(deals) == 16


def test_the_first_record_of_an_epoch_is_any_record_equally_often():
    """Shuffling is uniform over units and within windows: no fixed first, last or neighbour."""
    order = LaneOrder(make_units(2, 2, 2), 0, 1, seed=11, shuffle_window=2)
    epochs = 3000
    first = Counter(read_epoch(order, epoch)[0] for epoch in range(epochs))
    chi_square = sum(
        (first[text] - epochs / 6) ** 2 / (epochs / 6) for text in list_all(order.units)
    )
    assert len(first) == 6
    assert chi_square < 20.5  # 5 degrees of freedom, p = 0.001


def test_every_lane_meets_every_unit_equally_often_also_with_fewer_units_than_lanes():
    units, num_lanes, epochs = make_units(1, 1, 1), 5, 4000
    seen = Counter(
        (lane, unit)
        for epoch in range(epochs)
        for lane in range(num_lanes)
        for unit in LaneOrder(units, lane, num_lanes, 0, 1).deal(epoch)
    )
    assert sum(seen.values()) == 3 * epochs
    expected = epochs / num_lanes
    assert all(
        abs(seen[lane, unit] - expected) < 5 * expected**0.5
        for lane in range(5)
        for unit in range(3)
    )


@pytest.mark.parametrize("num_lanes", [1, 4, 16])
def test_a_lane_never_ends_and_comes_through_the_epochs_in_turn(num_lanes):
    units = make_units(1, 0, 2)
    for lane in range(num_lanes):
        stream = take(LaneOrder(units, lane, num_lanes, 0, 4), 50)
        epochs = [position.epoch for _, position in stream]
        assert epochs == sorted(epochs)
        assert epochs[-1] >= 16


def test_a_lane_goes_on_for_thousands_of_epochs():
    assert take(LaneOrder(make_units(1), 0, 1, 0, 4), 2500)[-1][1].epoch == 2499


@pytest.mark.parametrize("window", [1, 2, 3, 100])
def test_damage_that_ends_a_unit_comes_once_an_epoch_and_the_next_unit_follows(window):
    units = [replace(unit, is_damaged=True) for unit in make_units(2, 0, 3)]
    order = LaneOrder(units, 0, 1, 5, window)
    for epoch in range(3):
        assert sorted(read_epoch(order, epoch)) == sorted(list_all(units))
    stream = take(order, 24)
    bad = [index for index, (record, _) in enumerate(stream) if isinstance(record, BadRecord)]
    assert len(bad) == 9
    for index in bad:
        position = stream[index][1]
        assert take(order, 24 - index, position) == stream[index:]


def test_a_position_at_the_end_of_a_damaged_unit_goes_on_with_the_next_unit():
    units = [ListUnit(("a",), is_damaged=True), ListUnit(("b",))]
    order = LaneOrder(units, 0, 1, 0, 2)
    epoch = next(epoch for epoch in range(20) if list(order.deal(epoch)) == [0, 1])
    start = Position(epoch, window=1, unit=0, cursor=END_OF_UNIT)
    assert describe(take(order, 1, start)[0][0]) == "b"


def test_a_resume_reads_its_window_again_and_nothing_before_it():
    units = make_units(50, 50, 50)
    order = LaneOrder(units, 0, 1, 0, shuffle_window=8)
    record, position = take(order, 101)[-1]
    for unit in units:
        unit.reads.clear()
    assert take(order, 1, position) == [(record, position)]
    assert sum(len(unit.reads) for unit in units) <= 8


@pytest.mark.parametrize("units", [[], make_units(0), make_units(0, 0, 0)], ids=len)
def test_a_source_without_records_is_an_error_that_says_so(units):
    order = LaneOrder(units, 1, 2, 0, 4)
    with pytest.raises(
        InputError, match="lane 1 of 2 finds no documents in the source: it is empty"
    ):
        take(order, 1)


def test_one_document_reaches_every_one_of_many_lanes():
    """A thousand lanes and one document: each lane gets it in one epoch of a thousand."""
    for lane in range(8):
        assert describe(take(LaneOrder(make_units(1), lane, 1000, 0, 1), 1)[0][0]) == "0.0"


@settings(deadline=None, max_examples=15)
@given(
    sizes=st.lists(st.integers(1, 40), min_size=1, max_size=3),
    num_lanes=st.integers(1, 9),
    kind=st.sampled_from(TextDocuments),
    window=windows,
)
def test_real_files_are_read_once_an_epoch_over_all_lanes(
    tmp_path_factory, sizes, num_lanes, kind, window
):
    folder = tmp_path_factory.mktemp("texts")
    expected, end = [], "\n\n" if kind is TextDocuments.blank_line else "\n"
    for file, size in enumerate(sizes):
        texts = [f"{file} text é{number}" for number in range(size)]
        (folder / f"{file}.txt").write_text(end.join(texts), encoding="utf-8")
        expected += [end.join(texts)] if kind is TextDocuments.file else texts
    config = DataConfig(source=SourceKind.files, paths=[str(folder)], text_documents=kind)
    units = build_units(config, num_lanes)
    for epoch in range(2):
        orders = [LaneOrder(units, lane, num_lanes, 0, window) for lane in range(num_lanes)]
        found = [text for order in orders for text in read_epoch(order, epoch)]
        assert sorted(found) == sorted(expected)
