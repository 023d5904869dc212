"""Mixtures: shares of tokens follow the weights, and a lane goes on exactly from any state."""

import itertools
import json
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neobert_train.config.data_schema import DataConfig, Draw, MixtureSourceConfig
from neobert_train.config.derived import compute_weights, resolve_sources
from neobert_train.config.schema import BatchConfig, TrainConfig
from neobert_train.config.typed import parse
from neobert_train.data.lane.lane import Lane, LaneState, sum_progress
from neobert_train.data.lane.mixture import Mixture
from neobert_train.data.sources import TokenizedRecord
from neobert_train.errors import InputError

CONTEXT = 128


@dataclass(frozen=True)
class TokenUnit:
    """Tokenised documents in memory, all with the same token, so that a source is known by it."""

    token: int
    lengths: tuple[int, ...]

    def iter_records(self, cursor):
        for index in range(cursor, len(self.lengths)):
            ids = np.full(self.lengths[index], self.token, dtype=np.uint16)
            yield TokenizedRecord(ids, len(ids), False, 2**64 - 1, index + 1)

    def describe(self, next_cursor):
        return f"token {self.token}, document {next_cursor}"


def make_units(mean_lengths, num_documents=60):
    """Sources of documents of very different lengths, four units each."""
    generator = np.random.default_rng(0)
    return {
        f"s{number}": [
            TokenUnit(2000 + number, tuple(1 + generator.poisson(mean, num_documents)))
            for _ in range(4)
        ]
        for number, mean in enumerate(mean_lengths)
    }


def make_lane(tokenizer, units, weights, lane=0, num_lanes=1, micro_batch=1024, **data):
    entries = {
        name: MixtureSourceConfig(**(weight if isinstance(weight, dict) else {"weight": weight}))
        for name, weight in zip(units, weights, strict=True)
    }
    config = TrainConfig(
        batch=BatchConfig(num_lanes * micro_batch, micro_batch, CONTEXT),
        data=DataConfig(mixture=entries, heldout_fraction=0.0, **data),
    )
    return Lane(config, units, tokenizer, lane)


def count_tokens(batches, num_sources):
    """Tokens of every source over batches, the two special ones of each document included."""
    counts = np.zeros(num_sources)
    for packed in batches:
        for chunk in packed.chunks:
            counts[chunk.source] += len(chunk)
    return counts


@pytest.mark.parametrize("draw", Draw)
def test_shares_of_tokens_match_the_weights_whatever_the_lengths(tokenizer, draw):
    weights = [0.2, 0.05, 0.6, 0.15]
    units = make_units([10, 2000, 100, 400])
    counts = np.zeros(4)
    for number in range(8):
        lane = make_lane(tokenizer, units, weights, number, 8, draw=draw)
        packed = list(itertools.islice(lane.iter_packed(LaneState()), 250))
        counts += count_tokens(packed, 4)
    assert counts.sum() > 2_000_000
    assert np.abs(counts / counts.sum() - weights).max() < 0.005


@settings(deadline=None, max_examples=100)
@given(
    st.lists(st.floats(0.01, 1.0), min_size=2, max_size=6),
    st.lists(st.tuples(st.integers(1, 500)), min_size=50, max_size=300),
)
def test_the_share_of_a_source_is_never_off_by_more_than_a_few_documents(weights, lengths):
    mixture = Mixture([0.0] * len(weights), weights)
    exhausted = [False] * len(weights)
    drawn = np.zeros(len(weights))
    for (length,) in lengths:
        source = mixture.choose(exhausted)
        mixture.charge(source, length, exhausted)
        drawn[source] += length
        behind = drawn.sum() * np.array(weights) / sum(weights) - drawn
        assert np.allclose(mixture.credits, behind)
        assert np.abs(behind).max() <= 500 * len(weights)


def test_micro_batches_of_one_source_hold_no_other(tokenizer):
    lane = make_lane(tokenizer, make_units([10, 300]), [0.5, 0.5], draw=Draw.micro_batch)
    seen = set()
    for packed in itertools.islice(lane.iter_packed(LaneState()), 30):
        sources = {chunk.source for chunk in packed.chunks}
        assert len(sources) == 1
        seen |= sources
    assert seen == {0, 1}


def test_documents_of_several_sources_share_a_micro_batch(tokenizer):
    lane = make_lane(tokenizer, make_units([10, 100]), [0.5, 0.5])
    for packed in itertools.islice(lane.iter_packed(LaneState()), 30):
        assert {chunk.source for chunk in packed.chunks} == {0, 1}


@pytest.mark.parametrize("draw", Draw)
def test_weights_change_at_their_steps(tokenizer, draw):
    units = make_units([50, 200])
    weights = [{"weight": 1.0, "weight_from": {101: 0.0, 201: 1.0}}, {"weight_from": {201: 3.0}}]
    lane = make_lane(tokenizer, units, weights, draw=draw)
    packed = list(itertools.islice(lane.iter_packed(LaneState()), 400))
    # What is read ahead of a change still has the weights from before it.
    for first, last, expected in [(0, 100, 0.5), (110, 200, 0.0), (210, 400, 0.25)]:
        counts = count_tokens(packed[first:last], 2)
        assert abs(counts[0] / counts.sum() - expected) < 0.03
    assert compute_weights(lane._config.data, 100) == [1.0, 1.0]
    assert compute_weights(lane._config.data, 101) == [0.0, 1.0]
    assert compute_weights(lane._config.data, 5000) == [1.0, 3.0]


def test_an_exhausted_source_leaves_its_share_to_the_others(tokenizer):
    units = make_units([50, 50, 50], num_documents=20)
    weights = [{"weight": 1.0, "max_epochs": 2}, {"weight": 1.0}, {"weight": 2.0}]
    lane = make_lane(tokenizer, units, weights)
    packed = list(itertools.islice(lane.iter_packed(LaneState()), 120))
    total = sum(sum(length + 2 for length in unit.lengths) for unit in units["s0"])
    counts = count_tokens(packed, 3)
    assert counts[0] == 2 * total
    late = count_tokens(packed[60:], 3)
    assert late[0] == 0
    assert abs(late[1] / late.sum() - 1 / 3) < 0.01
    progress = sum_progress([packed[-1].state.to_dict()], "s0")
    assert (progress.documents, progress.tokens) == (160, 2 * total)


@pytest.mark.parametrize("draw", Draw)
def test_when_all_sources_are_exhausted_the_end_is_told_with_its_step(tokenizer, draw):
    units = make_units([50, 20], num_documents=20)
    lane = make_lane(tokenizer, units, [1.0, 1.0], draw=draw, max_epochs=1)
    batches = []
    with pytest.raises(InputError) as error:
        batches.extend(lane.iter_batches(LaneState()))
    total = sum(length + 2 for source in units.values() for u in source for length in u.lengths)
    assert sum(batch.num_tokens for batch in batches) == total
    assert f"nothing left to read at step {len(batches) + 1}" in str(error.value)
    assert f"trainer.max_steps={len(batches)}" in str(error.value)


@settings(deadline=None, max_examples=40)
@given(
    draw=st.sampled_from(Draw),
    weights=st.lists(
        st.fixed_dictionaries(
            {
                "weight": st.sampled_from([0.1, 1.0, 3.0]),
                "weight_from": st.dictionaries(
                    st.integers(1, 12), st.sampled_from([0.0, 0.5, 2.0])
                ),
                "max_epochs": st.sampled_from([None, None, 1, 2]),
            }
        ),
        min_size=1,
        max_size=4,
    ),
    lane=st.integers(0, 2),
    window=st.sampled_from([1, 5, 40]),
    runs=st.lists(st.integers(1, 6), min_size=1, max_size=4),
)
def test_a_lane_of_a_mixture_goes_on_bit_for_bit_from_any_state(
    tokenizer, draw, weights, lane, window, runs
):
    # One source that never ends keeps the lane going whatever the others do.
    units = make_units([20, 150, 60, 5, 30][: len(weights) + 1], num_documents=9)
    build = lambda: make_lane(  # noqa: E731
        tokenizer, units, [*weights, 1.0], lane, 3, draw=draw, shuffle_window=window
    )
    whole = build().iter_batches(LaneState())
    state = LaneState()
    for run in [*runs, 2]:
        for batch in itertools.islice(build().iter_batches(state), run):
            expected = next(whole)
            for name in ("input_ids", "cu_seqlens", "masked_positions", "labels"):
                assert np.array_equal(getattr(batch, name), getattr(expected, name))
            assert batch.lane_state == expected.lane_state
        state = parse(LaneState, json.loads(json.dumps(batch.lane_state)))


def test_a_rare_source_comes_at_other_times_in_every_lane(tokenizer):
    units = make_units([50, 50])
    first = []
    for number in range(64):
        lane = make_lane(tokenizer, units, [0.99, 0.01], number, 64, lookahead_documents=1)
        for packed in lane.iter_packed(LaneState()):
            if any(chunk.source == 1 for chunk in packed.chunks):
                first.append(packed.step)
                break
    assert np.bincount(first).max() < 20
    assert len(set(first)) > 5


def test_the_state_of_a_lane_with_many_sources_stays_small(tokenizer):
    units = make_units([5, 20, 80, 300, 1000, 10, 40, 100])
    lane = make_lane(tokenizer, units, [1.0] * 8, micro_batch=8192)
    for packed in itertools.islice(lane.iter_packed(LaneState()), 50):
        assert len(json.dumps(packed.state.to_dict())) < 4096


def test_a_source_of_a_mixture_inherits_what_it_leaves_out():
    data = DataConfig(
        column="text",
        min_tokens=5,
        mixture={"a": MixtureSourceConfig(min_tokens=9), "b": MixtureSourceConfig(column="body")},
    )
    sources = resolve_sources(data)
    assert (sources["a"].column, sources["a"].min_tokens) == ("text", 9)
    assert (sources["b"].column, sources["b"].min_tokens) == ("body", 5)


@settings(deadline=None, max_examples=30)
@given(
    st.sampled_from(list(Draw)), st.integers(1, 4), st.sampled_from([None, 1, 3]),
    st.sampled_from([1, 7, 64]), st.integers(0, 5),
)  # fmt: skip
def test_every_state_that_a_lane_comes_to_passes_for_one_in_a_file(
    tokenizer, draw, num_sources, max_epochs, lookahead, lane
):
    units = make_units([3, 400, 1, 90][:num_sources], num_documents=7)
    lanes = make_lane(
        tokenizer, units, [1.0] * num_sources, lane, 6, 256, draw=draw, max_epochs=max_epochs,
        lookahead_documents=lookahead, shuffle_window=5,
    )  # fmt: skip
    tokens = 0
    states = [LaneState()]
    try:
        for packed in itertools.islice(lanes.iter_packed(LaneState()), 60):
            tokens += sum(len(chunk) for chunk in packed.chunks)
            states.append(packed.state)
    except InputError:
        assert max_epochs is not None
    for state in states:
        read = parse(LaneState, json.loads(json.dumps(state.to_dict())))
        assert read == state
        assert read.find_problem() is None
    assert sum(stream.tokens for stream in states[-1].streams.values()) == tokens
