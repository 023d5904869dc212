"""The order of documents: each once an epoch, the same from any position on, keyed by everything."""

import itertools
import json
from collections import Counter
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neobert_train.config.data_schema import DataConfig, SourceKind, TextDocuments
from neobert_train.data.lane.order import (
    LaneOrder,
    Position,
    WindowStart,
    iter_lane_records,
    iter_windows,
)
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
            yield Record(self.texts[index], index * 10, (index + 1) * 10)
        if self.is_damaged:
            yield BadRecord(f"damage after {self.texts}", 0, END_OF_UNIT)


def make_units(*sizes: int) -> list[ListUnit]:
    return [ListUnit(tuple(f"{u}.{n}" for n in range(size))) for u, size in enumerate(sizes)]


def describe(record) -> str:
    return record.text if isinstance(record, Record) else record.reason


def list_all(units) -> list[str]:
    return [describe(record) for unit in units for record in unit.iter_records(0)]


def take(order: LaneOrder, count: int, start: Position | None = None):
    return list(itertools.islice(iter_lane_records(order, start or Position()), count))


def read_epoch(order: LaneOrder, epoch: int) -> list[str]:
    """What a lane reads in one epoch."""
    order = replace(order, max_epochs=epoch + 1)
    start = Position(WindowStart(epoch))
    return [describe(record) for record, _, _ in iter_lane_records(order, start)]


@st.composite
def sources(draw) -> list[ListUnit]:
    sizes = draw(st.lists(st.integers(0, 9), min_size=1, max_size=8))
    units = make_units(*sizes)
    damaged = [replace(unit, is_damaged=draw(st.booleans())) for unit in units]
    return damaged if list_all(damaged) else make_units(*sizes, 1)


lane_counts = st.integers(1, 12)
open_counts = st.sampled_from([1, 2, 3, 5])
windows = st.sampled_from([1, 2, 3, 7, 1000])
seeds = st.integers(0, 2**40)


@settings(deadline=None, max_examples=80)
@given(sources(), lane_counts, windows, open_counts, seeds, st.integers(0, 50))
def test_the_lanes_of_an_epoch_together_give_each_record_once(
    units, num_lanes, window, num_open, seed, epoch
):
    found = []
    for lane in range(num_lanes):
        found += read_epoch(LaneOrder(units, lane, num_lanes, seed, window, num_open), epoch)
    assert sorted(found) == sorted(list_all(units))


@settings(deadline=None, max_examples=80)
@given(sources(), lane_counts, windows, open_counts, seeds, st.data())
def test_the_stream_from_any_position_equals_the_one_from_the_beginning(
    units, num_lanes, window, num_open, seed, data
):
    lane = data.draw(st.integers(0, num_lanes - 1))
    order = LaneOrder(units, lane, num_lanes, seed, window, num_open)
    stream = take(order, 60)
    positions = [position for _, _, position in stream]
    assert len(set(positions)) == len(positions)
    in_order = sorted(positions, key=lambda p: (p.window.epoch, p.window.number, p.offset))
    assert positions == in_order
    for index in data.draw(st.lists(st.integers(0, 59), min_size=8, max_size=8)):
        position = Position.from_list(json.loads(json.dumps(positions[index].to_list())))
        assert position == positions[index]
        assert take(order, 60 - index, position) == stream[index:]


def test_a_stream_goes_on_after_a_unit_that_ended_in_damage():
    order = LaneOrder([replace(unit, is_damaged=True) for unit in make_units(0, 0)], 0, 1, 0, 1)
    stream = take(order, 6)
    for index, (_, _, position) in enumerate(stream):
        position = Position.from_list(json.loads(json.dumps(position.to_list())))
        assert take(order, 6 - index, position) == stream[index:]


@settings(deadline=None, max_examples=60)
@given(sources(), lane_counts, windows, open_counts, seeds)
def test_every_record_comes_with_the_unit_it_was_read_from(
    units, num_lanes, window, num_open, seed
):
    order = LaneOrder(units, 0, num_lanes, seed, window, num_open, max_epochs=2)
    for record, unit, _ in iter_lane_records(order, Position()):
        assert describe(record) in map(describe, units[unit].iter_records(0))


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


@settings(deadline=None, max_examples=60)
@given(sources(), windows, st.integers(2, 6), seeds)
def test_a_window_is_read_evenly_from_several_units(units, window, num_open, seed):
    """Written anew: take a share of every open unit in turn, and a new unit where one ends."""
    order = LaneOrder(units, 0, 1, seed, window, num_open, max_epochs=1)
    waiting = [list(map(describe, units[unit].iter_records(0))) for unit in order.deal(0)]
    width = min(num_open, window)
    share = -(-window // width)
    opened = []
    for found in iter_windows(order, WindowStart()):
        expected, turn = [], 0
        while len(expected) < window:
            while waiting and len(opened) < width:
                opened.append(waiting.pop(0))
            if not opened:
                break
            turn %= len(opened)
            wanted = min(share, window - len(expected))
            expected += opened[turn][:wanted]
            if len(opened[turn]) < wanted:
                opened.pop(turn)
            else:
                opened[turn] = opened[turn][wanted:]
                turn += 1
        assert list(map(describe, found.records)) == expected
    assert not any(waiting)
    assert not any(opened)


def test_order_differs_between_epochs_seeds_lanes_sources_and_windows():
    units = make_units(*[40] * 12)
    base = LaneOrder(units, 0, 3, seed=1, shuffle_window=40)
    assert read_epoch(base, 0) == read_epoch(base, 0)
    others = [
        replace(base, seed=2),
        replace(base, lane=1),
        replace(base, num_lanes=4),
        replace(base, name="other"),
    ]
    assert read_epoch(base, 0) != read_epoch(base, 1)
    assert all(read_epoch(base, 0) != read_epoch(other, 0) for other in others)
    in_window = {
        tuple(order.shuffle(WindowStart(epoch, number), 40))
        for order in (base, *others[:2], others[3])
        for epoch in range(2)
        for number in range(3)
    }
    assert len(in_window) == 24
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
        epochs = [position.window.epoch for _, _, position in stream]
        assert epochs == sorted(epochs)
        assert epochs[-1] >= 16


def test_a_lane_goes_on_for_thousands_of_epochs():
    assert take(LaneOrder(make_units(1), 0, 1, 0, 4), 2500)[-1][2].window.epoch == 2499


@pytest.mark.parametrize("window", [1, 2, 3, 100])
def test_damage_that_ends_a_unit_comes_once_an_epoch_and_the_next_unit_follows(window):
    units = [replace(unit, is_damaged=True) for unit in make_units(2, 0, 3)]
    order = LaneOrder(units, 0, 1, 5, window)
    for epoch in range(3):
        assert sorted(read_epoch(order, epoch)) == sorted(list_all(units))
    stream = take(order, 24)
    bad = [index for index, (record, *_) in enumerate(stream) if isinstance(record, BadRecord)]
    assert len(bad) == 9
    for index in bad:
        position = stream[index][2]
        assert take(order, 24 - index, position) == stream[index:]


def test_a_position_at_the_end_of_a_damaged_unit_goes_on_with_the_next_unit():
    units = [ListUnit(("a",), is_damaged=True), ListUnit(("b",))]
    order = LaneOrder(units, 0, 1, 0, 2)
    epoch = next(epoch for epoch in range(20) if list(order.deal(epoch)) == [0, 1])
    start = Position(WindowStart(epoch, 1, 1, ((0, END_OF_UNIT),)))
    assert describe(take(order, 1, start)[0][0]) == "b"


@pytest.mark.parametrize("num_open", [1, 3])
def test_a_resume_reads_its_window_again_and_nothing_before_it(num_open):
    units = make_units(50, 50, 50)
    order = LaneOrder(units, 0, 1, 0, shuffle_window=9, shuffle_units=num_open)
    last = take(order, 101)[-1]
    for unit in units:
        unit.reads.clear()
    assert take(order, 1, last[2]) == [last]
    assert sum(len(unit.reads) for unit in units) <= 9


def test_passes_over_a_source_are_limited():
    units = make_units(5, 0, 7)
    for lane in range(3):
        order = LaneOrder(units, lane, 3, 0, 4, max_epochs=2)
        both = read_epoch(order, 0) + read_epoch(order, 1)
        found = [describe(record) for record, _, _ in iter_lane_records(order, Position())]
        assert found == both


def test_neighbours_come_from_different_places_as_in_a_uniform_shuffle():
    """Spearman's rank correlation of place and source order, and neighbours from one unit."""
    units = make_units(*[250] * 16)
    texts = list_all(units)
    rank = {text: index for index, text in enumerate(texts)}
    order = LaneOrder(units, 0, 1, seed=3, shuffle_window=1000, shuffle_units=4)
    shuffled = read_epoch(order, 0)
    ranks = np.array([rank[text] for text in shuffled])
    correlation = abs(np.corrcoef(ranks, np.arange(len(ranks)))[0, 1])
    # 16 units in a random order: the standard deviation is 1 / sqrt(15) = 0.26.
    assert correlation < 0.6
    within = np.concatenate([np.arange(1000)] * 4)
    windows = [ranks[start : start + 1000] for start in range(0, 4000, 1000)]
    inside = np.corrcoef(np.concatenate([w.argsort().argsort() for w in windows]), within)[0, 1]
    assert abs(inside) < 0.06  # of 4,000 pairs, uniform within a window: 0.016
    files = [text.split(".")[0] for text in shuffled]
    same = np.mean([a == b for a, b in itertools.pairwise(files)])
    assert same < 0.30  # four units at a time: a quarter
    one_by_one = [t.split(".")[0] for t in read_epoch(replace(order, shuffle_units=1), 0)]
    assert same <= np.mean([a == b for a, b in itertools.pairwise(one_by_one)]) + 0.05
    few = replace(order, shuffle_window=100)
    narrow = [text.split(".")[0] for text in read_epoch(few, 0)]
    alone = [text.split(".")[0] for text in read_epoch(replace(few, shuffle_units=1), 0)]
    assert np.mean([a == b for a, b in itertools.pairwise(narrow)]) < 0.3
    assert np.mean([a == b for a, b in itertools.pairwise(alone)]) > 0.8


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
    units = build_units(config, num_lanes)["corpus"]
    for epoch in range(2):
        orders = [LaneOrder(units, lane, num_lanes, 0, window, 3) for lane in range(num_lanes)]
        found = [text for order in orders for text in read_epoch(order, epoch)]
        assert sorted(found) == sorted(expected)
