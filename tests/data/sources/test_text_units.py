"""JSON Lines and plain text: the units of a file give every document once and in full."""

import gzip
import itertools
import json
import lzma
import math
from functools import partial

import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from neobert_train.data.sources import Record, Unit
from neobert_train.data.sources.text import (
    LineRanges,
    Sequential,
    TextLayout,
    choose_text_format,
)
from neobert_train.storage.stored_files import StoredFile

BOM = b"\xef\xbb\xbf"
# Separators that str.splitlines would break at, a character of every UTF-8 length, JSON's own signs.
CHARACTERS = 'aZ 0\t\x0b\x0c\x1c\x85\u2028"\\{}[],:éß中文😀\u0301'
# bzip2 is slow to begin with; test_compression.py has it.
PACKERS = {
    ".gz": gzip.compress,
    ".xz": partial(lzma.compress, preset=0),
    ".zst": zstandard.compress,
}
PACKINGS = ["", *PACKERS]

parts_counts = st.integers(1, 40)
line_ends = st.sampled_from([b"\n", b"\r\n"])
blank_lines = st.sampled_from([b"", b"", b"  ", b"\t"])


@st.composite
def plain_lines(draw) -> str:
    """One line that is not blank, at times longer than what one read of a file returns."""
    line = draw(st.text(CHARACTERS, max_size=20)) + draw(st.sampled_from("xé中😀"))
    return line * draw(st.sampled_from([1, 1, 1, 1, 30_000])) + draw(st.sampled_from(["", " "]))


def list_units(path, kind: str, column: str, parts: int, id_column=None):
    known = choose_text_format(str(path), TextLayout(kind, column, id_column))
    parts = parts if known.units_per_lane else 1  # a file that is one document has no parts
    return Unit(StoredFile(str(path)), known).divide(parts)


def pack(raw: bytes, packing: str, cut: float) -> bytes:
    """The bytes as they lie in the file; compressed ones as two members joined at `cut`."""
    middle = int(len(raw) * cut)
    compress = PACKERS.get(packing)
    return compress(raw[:middle]) + compress(raw[middle:]) if compress else raw


def read_all(path, kind: str, parts: int, column: str = "content") -> list[str]:
    """Every text of a file; each record's cursor must continue with exactly what follows it."""
    texts = []
    for unit in list_units(path, kind, column, parts):
        records = list(unit.iter_records(0))
        assert all(isinstance(record, Record) for record in records), records
        cursors = [0, *(record.next_cursor for record in records)]
        assert all(a < b for a, b in itertools.pairwise(cursors))
        for index in range(len(records) + 1):
            assert list(unit.iter_records(cursors[index])) == records[index:]
        texts += [record.text for record in records]
    return texts


def assert_same_documents(found: list[str], expected: list[str], in_order: bool) -> None:
    assert sorted(found) == sorted(expected)
    if in_order:
        assert found == expected


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("text")


@pytest.mark.parametrize("packing", PACKINGS)
@settings(deadline=None, max_examples=40)
@given(data=st.data())
def test_units_of_lines_give_each_line_once(folder, packing, data):
    lines = data.draw(st.lists(plain_lines(), min_size=1, max_size=12))
    raw = BOM if data.draw(st.booleans()) else b""
    for line in lines:
        raw += line.encode() + data.draw(line_ends)
        raw += data.draw(blank_lines) + data.draw(line_ends)
    if data.draw(st.booleans()):
        raw = raw.rstrip(b"\r\n")
    path = folder / f"lines.txt{packing}"
    path.write_bytes(pack(raw, packing, data.draw(st.floats(0, 1))))
    found = read_all(path, "line", data.draw(parts_counts))
    assert_same_documents(found, lines, in_order=not packing)


@pytest.mark.parametrize("packing", PACKINGS)
@settings(deadline=None, max_examples=40)
@given(data=st.data())
def test_units_of_json_lines_give_each_text_once(folder, packing, data):
    texts = data.draw(st.lists(st.none() | st.just("") | plain_lines(), min_size=1, max_size=12))
    raw = BOM if data.draw(st.booleans()) else b""
    for number, text in enumerate(texts):
        record = {"id": number, "content": text, "other": "no"}
        raw += json.dumps(record, ensure_ascii=data.draw(st.booleans())).encode()
        raw += data.draw(line_ends) + data.draw(blank_lines) + data.draw(line_ends)
    if data.draw(st.booleans()):
        raw = raw.rstrip()
    path = folder / f"records.jsonl{packing}"
    path.write_bytes(pack(raw, packing, data.draw(st.floats(0, 1))))
    found = read_all(path, "jsonl", data.draw(parts_counts))
    assert_same_documents(found, [text or "" for text in texts], in_order=not packing)


@pytest.mark.parametrize("packing", PACKINGS)
@settings(deadline=None, max_examples=40)
@given(data=st.data())
def test_units_of_blocks_give_each_block_between_blank_lines_once(folder, packing, data):
    blocks = data.draw(
        st.lists(st.lists(plain_lines(), min_size=1, max_size=3), min_size=1, max_size=6)
    )
    raw, expected = BOM if data.draw(st.booleans()) else b"", []
    if data.draw(st.booleans()) and not raw:
        raw += b"\n \r\n"
    for lines in blocks:
        end = data.draw(line_ends)
        block = end.join(line.encode() for line in lines)
        expected.append(block.decode())
        raw += block + end
        raw += b"".join(data.draw(blank_lines) + end for _ in range(data.draw(st.integers(1, 3))))
    if data.draw(st.booleans()):
        raw = raw.rstrip(b"\r\n")
    path = folder / f"blocks.txt{packing}"
    path.write_bytes(pack(raw, packing, data.draw(st.floats(0, 1))))
    parts = data.draw(parts_counts)
    assert_same_documents(read_all(path, "blank_line", parts), expected, in_order=parts == 1)


@pytest.mark.parametrize("packing", PACKINGS)
def test_a_file_as_one_document_comes_whole_whatever_the_parts(folder, packing):
    text = "\n first é\r\n\r\n\n last 😀"
    path = folder / f"whole.txt{packing}"
    path.write_bytes(pack(BOM + text.encode() + b"\r\n\n", packing, 0.4))
    for parts in (1, 7):
        assert read_all(path, "file", parts) == [text]


@pytest.mark.parametrize("num_parts", [2, 3, 16])
def test_a_plain_file_of_lines_is_divided_into_ranges_of_even_size(folder, num_parts):
    """So that no lane has to read what another one reads."""
    path = folder / "even.txt"
    path.write_text("".join(f"line number {number:05d}\n" for number in range(1600)))
    counts = [
        len(list(unit.iter_records(0))) for unit in list_units(path, "line", "content", num_parts)
    ]
    assert sum(counts) == 1600
    assert len(counts) == num_parts
    assert math.floor(1600 / num_parts) - 1 <= min(counts) <= max(counts) <= 1600 / num_parts + 1


@pytest.mark.parametrize("parts", range(2, 9))
@pytest.mark.parametrize("size", [4096, 8192, 65536])
def test_range_ends_beside_line_ends_and_read_buffers_lose_nothing(folder, size, parts):
    """Ranges end right before, at and after a line end."""
    path = folder / "edges.txt"
    for shift in range(-3, 4):
        lines = ["a" * (size - 1 + shift), *["b" * (size - 1)] * (parts - 2), "c" * (size - shift)]
        raw = "\n".join(lines).encode()
        path.write_bytes(raw)
        assert len(raw) == parts * size
        units = list_units(path, "line", "", parts)
        assert all(isinstance(unit.format, LineRanges) for unit in units)
        assert [r.text for unit in units for r in unit.iter_records(0)] == lines


@pytest.mark.parametrize("packing", PACKINGS)
@pytest.mark.parametrize("parts", [1, 3])
def test_documents_are_named_by_their_id_and_place(folder, packing, parts):
    path = folder / f"ids.jsonl{packing}"
    lines = [
        {"content": "a", "key": 7}, {"content": "b"}, {"content": "c", "key": "x"},
        {"content": "d", "key": None}, {"key": "é", "content": None},
    ]  # fmt: skip
    encoded = [json.dumps(line).encode() + b"\n" for line in lines]
    path.write_bytes(pack(b"\n".join(encoded), packing, 0.5))
    units = list_units(path, "jsonl", "content", parts, "key")
    found = [(record, unit) for unit in units for record in unit.iter_records(0)]
    found.sort(key=lambda pair: pair[0].begin)
    assert [(record.text, record.id) for record, _ in found] == [
        ("a", "7"), ("b", None), ("c", "x"), ("d", None), ("", "é")
    ]  # fmt: skip
    if packing:
        places = [f"document {number}" for number in range(1, 6)]
    else:
        ends = itertools.accumulate(len(line) + 1 for line in encoded)
        places = [f"line ending at byte {end - 1:,}" for end in ends]
    assert [unit.describe(record.next_cursor) for record, unit in found] == [
        f"{path}, {place}" for place in places
    ]


def test_large_offsets_are_written_so_that_they_can_be_read(folder):
    unit = Unit(StoredFile("a.jsonl"), LineRanges(TextLayout("jsonl", "content")))
    assert unit.describe(12_345_678) == "a.jsonl, line ending at byte 12,345,678"


@pytest.mark.parametrize("packing", PACKINGS)
@pytest.mark.parametrize("kind", ["jsonl", "line", "blank_line"])
@settings(deadline=None, max_examples=20)
@given(sizes=st.lists(st.integers(0, 60), min_size=1, max_size=20), parts=st.integers(1, 12))
def test_parts_hold_the_records_that_the_division_says(folder, kind, packing, sizes, parts):
    """By which prepared shards are divided without the texts."""
    path = folder / f"division.txt{packing}"
    lines = [
        json.dumps({"content": f"{number} " + "x" * size}) for number, size in enumerate(sizes)
    ]
    raw = ("\n\n" if kind == "blank_line" else "\n").join(lines).encode()
    path.write_bytes(pack(raw, packing, 0.5))
    (whole,) = list_units(path, kind, "content", 1)
    records = list(whole.iter_records(0))
    begins = np.array([record.begin for record in records])
    assert (np.diff(begins) > 0).all()
    for part, unit in enumerate(list_units(path, kind, "content", parts)):
        chosen = whole.find_division().select(begins, part, parts)
        assert list(unit.iter_records(0)) == [records[index] for index in chosen]


def test_a_file_that_cannot_be_entered_in_its_middle_is_read_from_its_beginning(folder):
    path = folder / "stream.txt"
    lines = [f"line {number}" for number in range(10)]
    path.write_text("\n".join(lines))
    known = choose_text_format(str(path), TextLayout("line"), can_seek=False)
    assert isinstance(known, Sequential)
    parts = Unit(StoredFile(str(path)), known).divide(3)
    texts = [[record.text for record in part.iter_records(0)] for part in parts]
    assert texts == [lines[0::3], lines[1::3], lines[2::3]]


def test_names_of_compressed_files_are_read_in_any_case(folder):
    path = folder / "shout.JSONL.GZ"
    path.write_bytes(gzip.compress(b'{"content": "a"}\n'))
    assert read_all(path, "jsonl", 1) == ["a"]
