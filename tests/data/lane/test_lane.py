"""One lane: what it gives, what it leaves out, and that it continues from any of its states."""

import collections
import functools
import itertools
import json
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import BertTokenizer

from neobert_train.batch import Batch
from neobert_train.config.data_schema import (
    BadRecordPolicy,
    DataConfig,
    MaskingConfig,
    MaskingStrategy,
    SourceKind,
)
from neobert_train.config.schema import BatchConfig, TrainConfig
from neobert_train.config.typed import parse
from neobert_train.data.lane.admission import is_heldout
from neobert_train.data.lane.lane import Lane, LaneState
from neobert_train.data.lane.order import Position, WindowStart
from neobert_train.data.lane.streams import SourceStream, StreamState
from neobert_train.data.sources import Record, Unit, build_units
from neobert_train.data.sources.text import LineRanges, TextLayout
from neobert_train.errors import InputError
from neobert_train.storage.stored_files import StoredFile
from neobert_train.tokenizers.loading import SHIPPED_TOKENIZER

CONTEXT, MICRO_BATCH = 32, 96
HELDOUT = 0.2
TENSORS = ["input_ids", "position_ids", "cu_seqlens", "masked_positions", "labels"]
DIGITS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]


@dataclass(frozen=True)
class ListUnit:
    """Texts in memory, for sources that no file can be."""

    texts: tuple[str, ...]

    def iter_records(self, cursor):
        for index in range(cursor, len(self.texts)):
            yield Record(self.texts[index], index, index + 1)


def make_text(number: int, num_words: int) -> str:
    digits = [DIGITS[int(digit)] for digit in f"{number:03d}"]
    return " ".join([*digits, *["word"] * (num_words - 3)])


def make_lines() -> list[bytes]:
    """JSON Lines with long, short, empty, null, invisible, malformed and surrogate documents."""
    lines = []
    for number in range(70):
        text = make_text(number, 3 + (number * 37) % 90 // (1 if number % 5 == 0 else 4))
        lines.append(json.dumps({"text": text}).encode())
    for place, line in [
        (3, b'{"text": ""}'), (9, b'{"text": null}'), (9, b'{"text": "\\u200b"}'),
        (20, b"{broken"), (21, b'{"text": "  \\n "}'), (33, b'{"text": "lone \\ud800 half"}'),
        (33, b'{"other": "x"}'), (50, b'{"text": 7}'), (60, b'{"text": "\xff"}'), (75, b"[]"),
    ]:  # fmt: skip
        lines.insert(place, line)
    return lines


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """A file of sound and bad records, and its path."""
    path = tmp_path_factory.mktemp("lanes") / "corpus.jsonl"
    path.write_bytes(b"".join(line + b"\n" for line in make_lines()))
    return str(path)


@pytest.fixture(scope="module")
def reference() -> BertTokenizer:
    content = json.loads((SHIPPED_TOKENIZER / "tokenizer.json").read_text(encoding="utf-8"))
    return BertTokenizer(vocab=content["model"]["vocab"])


@pytest.fixture(scope="module")
def make_lane(tokenizer):
    def make(units, lane=0, num_lanes=1, seed=0, micro_batch=MICRO_BATCH, context=CONTEXT, **data):
        data = {"on_bad_record": BadRecordPolicy.skip, "heldout_fraction": HELDOUT} | data
        config = TrainConfig(
            seed=seed,
            batch=BatchConfig(num_lanes * micro_batch, micro_batch, context),
            data=DataConfig(**data),
            masking=MaskingConfig(rate=0.2, strategy=MaskingStrategy.bert_80_10_10),
        )
        return Lane(config, {"corpus": units}, tokenizer, lane)

    return make


def divide(path: str, parts: int) -> list[Unit]:
    """The parts of a file of JSON Lines."""
    return Unit(StoredFile(path), LineRanges(TextLayout("jsonl", "text"))).divide(parts)


def open_stream(lane: Lane, state: StreamState | None = None) -> SourceStream:
    """The chunks of the only source of a lane, before they are packed."""
    streams = {} if state is None else {"corpus": state}
    (stream,) = lane._open_streams(LaneState(streams=streams))
    return stream


def iter_stream(lane: Lane, position: Position | None = None):
    stream = open_stream(lane, StreamState(position or Position()))
    while (chunk := stream.read()) is not None:
        yield chunk


def read_to_the_end(lane: Lane) -> list[Batch]:
    """The batches of a lane whose source is limited by max_epochs."""
    batches: list[Batch] = []
    with pytest.raises(InputError, match="has nothing left to read at step"):
        batches.extend(lane.iter_batches(LaneState()))
    return batches


def frame(ids) -> tuple[int, ...]:
    return (101, *ids.tolist(), 102)


def assert_equal(one, other):
    for name in TENSORS:
        assert np.array_equal(getattr(one, name), getattr(other, name)), name
    assert (one.max_seqlen, one.lane) == (other.max_seqlen, other.lane)
    assert one.lane_state == other.lane_state


def restore_chunks(batch) -> list[tuple[int, ...]]:
    """The documents of a batch with the masked tokens put back."""
    ids = batch.input_ids.copy()
    ids[batch.masked_positions] = batch.labels
    return [tuple(ids[a:b].tolist()) for a, b in itertools.pairwise(batch.cu_seqlens.tolist())]


def read_records(reference) -> list[tuple[str, list[tuple[int, ...]]]]:
    """Every line of the corpus in order: what it counts as, and its chunks; in plain Python."""
    records = []
    for line in make_lines():
        try:
            text = json.loads(line)["text"] or ""
            text.encode()
        except (ValueError, KeyError, TypeError, AttributeError):
            records.append(("bad", []))
            continue
        if not text.strip():
            records.append(("empty", []))
        elif not is_heldout(text, HELDOUT):
            ids = reference(text, add_special_tokens=False)["input_ids"]
            width = CONTEXT - 2
            parts = [ids[start : start + width] for start in range(0, len(ids), width)]
            kind = "documents" if ids else "empty"
            records.append((kind, [(101, *part, 102) for part in parts]))
    return records


@settings(deadline=None, max_examples=30)
@given(
    lane=st.integers(0, 2),
    seed=st.integers(0, 5),
    window=st.sampled_from([1, 4, 16, 1000]),
    lookahead=st.sampled_from([1, 5, 64]),
    parts=st.sampled_from([3, 8, 20]),
    runs=st.lists(st.integers(1, 9), min_size=1, max_size=4),
)
def test_a_lane_resumed_from_any_of_its_states_continues_bit_for_bit(
    make_lane, corpus, lane, seed, window, lookahead, parts, runs
):
    units = divide(corpus, parts)
    build = functools.partial(
        make_lane, units, lane, 3, seed, shuffle_window=window, lookahead_documents=lookahead
    )
    whole = build().iter_batches(LaneState())
    state = LaneState()
    for run in [*runs, 2]:
        for batch in itertools.islice(build().iter_batches(state), run):
            assert_equal(batch, next(whole))
        state = parse(LaneState, json.loads(json.dumps(batch.lane_state)))
        assert state.to_dict() == batch.lane_state


@pytest.mark.parametrize("window", [1, 8, 1000])
@pytest.mark.parametrize("num_lanes", [1, 4])
def test_the_lanes_of_an_epoch_together_give_every_token_once(
    make_lane, corpus, reference, num_lanes, window
):
    units = divide(corpus, 4 * num_lanes)
    found = collections.Counter()
    for number in range(num_lanes):
        lane = make_lane(units, number, num_lanes, shuffle_window=window, max_epochs=1)
        for batch in read_to_the_end(lane):
            found.update(restore_chunks(batch))
    expected = collections.Counter(c for _, chunks in read_records(reference) for c in chunks)
    assert found == expected


def test_batches_count_what_was_read_up_to_them(make_lane, corpus, reference):
    records = read_records(reference)
    lane = make_lane(divide(corpus, 1), shuffle_window=1, lookahead_documents=5)
    num_packed = num_tokens = 0
    for batch in itertools.islice(lane.iter_batches(LaneState()), 60):
        stream = batch.lane_state["streams"]["corpus"]
        num_packed += len(batch.cu_seqlens) - 1
        num_tokens += batch.num_tokens
        num_read = num_packed + len(stream["pending"])
        counts = collections.Counter()
        for kind, chunks in itertools.cycle(records):
            if num_read <= 0:
                break
            counts[kind] += 1
            num_read -= len(chunks)
        assert stream["counts"] == [counts[k] for k in ("documents", "empty", "bad", "filtered")]
        assert stream["tokens"] == num_tokens
    assert counts["documents"] > 2 * sum(kind == "documents" for kind, _ in records)


@pytest.mark.parametrize(
    ("bounds", "admits"),
    [
        ({"min_tokens": 20, "max_tokens": 60}, lambda text, ids: 20 <= len(ids) <= 60),
        ({"min_characters": 60}, lambda text, ids: len(text) >= 60),
        ({"max_characters": 60}, lambda text, ids: len(text) <= 60),
    ],
)
def test_documents_outside_the_bounds_are_left_out_and_counted(
    make_lane, reference, bounds, admits
):
    texts = tuple(make_text(number, 3 + number % 90) for number in range(200))
    lane = make_lane([ListUnit(texts)], max_epochs=1, heldout_fraction=0.0, **bounds)
    found = collections.Counter()
    for batch in read_to_the_end(lane):
        found.update(restore_chunks(batch))
        counts = batch.lane_state["streams"]["corpus"]["counts"]
    ids = {text: reference(text, add_special_tokens=False)["input_ids"] for text in texts}
    kept = [text for text in texts if admits(text, ids[text])]
    assert 10 < len(kept) < 190
    width = CONTEXT - 2
    parts = [ids[t][start : start + width] for t in kept for start in range(0, len(ids[t]), width)]
    assert found == collections.Counter((101, *part, 102) for part in parts)
    assert counts[0] == len(kept)
    assert counts[3] <= len(texts) - len(kept)  # those after the last document are never counted


def test_shuffling_changes_with_the_epoch_and_the_seed(make_lane, corpus):
    units = divide(corpus, 4)

    def order(seed, epoch):
        lane = make_lane(units, seed=seed, shuffle_window=8, max_epochs=epoch + 1)
        return [frame(c.ids) for c in iter_stream(lane, Position(WindowStart(epoch)))]

    orders = [order(seed, epoch) for seed in (0, 1) for epoch in (0, 1)]
    assert all(sorted(one) == sorted(orders[0]) for one in orders)
    assert len({tuple(one) for one in orders}) == 4


def test_a_chunk_is_masked_differently_in_another_batch_and_lane(make_lane):
    text = " ".join(["word"] * 30)
    batches = []
    for number in range(2):
        lane = make_lane([ListUnit((text,))] * 2, number, 2, heldout_fraction=0.0)
        batches += itertools.islice(lane.iter_batches(LaneState()), 3)
    assert len({tuple(restore_chunks(batch)) for batch in batches}) == 1
    assert len({tuple(batch.masked_positions.tolist()) for batch in batches}) == 6


@pytest.mark.parametrize("lookahead", [64, 128])
def test_the_state_stays_small_in_large_batches_of_tiny_documents(make_lane, lookahead):
    texts = tuple(
        make_text(n % 1000, 3 + (n * n) % (120 if n % 97 == 0 else 2)) for n in range(30_000)
    )
    lane = make_lane(
        [ListUnit(texts)], micro_batch=65_536, context=128, lookahead_documents=lookahead
    )
    for batch in itertools.islice(lane.iter_batches(LaneState()), 3):
        assert len(batch.cu_seqlens) > 10_000
        assert len(json.dumps(batch.lane_state)) < 4096


def test_the_policy_stop_gives_the_batches_before_and_names_the_line(make_lane, tmp_path):
    file = tmp_path / "texts.jsonl"
    lines = [json.dumps({"text": make_text(n, 28)}) for n in range(40)]
    file.write_text("\n".join([*lines[:30], "{broken", *lines[30:]]) + "\n")
    units = divide(str(file), 1)
    lane = make_lane(
        units, shuffle_window=1, heldout_fraction=0.0, lookahead_documents=3,
        on_bad_record=BadRecordPolicy.stop,
    )  # fmt: skip
    given_out = []
    batches = lane.iter_batches(LaneState())
    with pytest.raises(InputError) as error:
        given_out.extend(batches)
    assert len(given_out) >= 8
    assert f"{file}, line 31: not JSON" in str(error.value)
    assert "data.on_bad_record=skip" in str(error.value)
    with pytest.raises(InputError, match="line 31"):
        list(lane.iter_batches(parse(LaneState, given_out[-1].lane_state)))


def test_a_lone_surrogate_stops_with_its_file_and_line(make_lane, tmp_path):
    file = tmp_path / "texts.jsonl"
    file.write_text('{"text": "sound"}\n{"text": "half \\ud83d pair"}\n')
    units = divide(str(file), 1)
    lane = make_lane(units, on_bad_record=BadRecordPolicy.stop, heldout_fraction=0.0)
    with pytest.raises(InputError) as error:
        next(lane.iter_batches(LaneState()))
    assert f"{file}, line 2" in str(error.value)


@pytest.mark.parametrize("texts", [(), ("", " \n", "\t")])
def test_a_source_without_documents_is_an_error(make_lane, texts):
    with pytest.raises(InputError, match="source"):
        next(make_lane([ListUnit(texts)]).iter_batches(LaneState()))


def test_a_source_that_is_all_held_out_names_the_fraction(make_lane):
    lane = make_lane([ListUnit(("one", "two"))], heldout_fraction=0.9999999999)
    with pytest.raises(InputError, match=r"lower data\.heldout_fraction"):
        next(lane.iter_batches(LaneState()))


def test_a_source_of_invisible_characters_is_an_error_and_no_endless_search(make_lane):
    class Bounded(ListUnit):
        passes = 0

        def iter_records(self, cursor):
            Bounded.passes += 1
            assert Bounded.passes < 5000, "searches endlessly"
            return super().iter_records(cursor)

    with pytest.raises(InputError, match="no document to train on"):
        next(make_lane([Bounded(("\u200b", "\u200d\u200b"))]).iter_batches(LaneState()))


def assert_every_lane_trains(make_lane, units, num_lanes):
    for number in range(num_lanes):
        lane = make_lane(units, number, num_lanes, heldout_fraction=0.0, lookahead_documents=1)
        assert next(lane.iter_batches(LaneState())).num_tokens > 0


def test_fewer_documents_than_lanes_serve_every_lane(make_lane, tmp_path):
    file = tmp_path / "three.parquet"
    pq.write_table(pa.table({"text": [make_text(n, 20) for n in range(3)]}), file)
    data = DataConfig(source=SourceKind.files, paths=[str(file)], column="text")
    assert_every_lane_trains(make_lane, build_units(data, 8)["corpus"], 8)


def test_a_document_among_many_units_without_records_serves_every_lane(make_lane):
    units = [ListUnit((make_text(1, 30),)), *[ListUnit(())] * 63]
    assert_every_lane_trains(make_lane, units, 64)
