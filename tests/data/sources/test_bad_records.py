"""Damage in text files: one bad record names its place, and what can still be read is read."""

import bz2
import errno
import gzip
import json
import lzma
import os
from functools import partial

import pytest
import zstandard

from neobert_train.data.sources import END_OF_UNIT, BadRecord, Record, Unit
from neobert_train.data.sources.text import TextLayout, choose_text_format
from neobert_train.storage import failures
from neobert_train.storage.stored_files import StorageError, StoredFile

PACKERS = {
    "": lambda raw: raw, ".gz": gzip.compress, ".xz": lzma.compress,
    ".zst": zstandard.compress, ".bz2": partial(bz2.compress, compresslevel=1),
}  # fmt: skip
PACKINGS = list(PACKERS)
BAD_LINES = {
    b"{broken": "not JSON",
    b'{"content": "cut': "not JSON",
    b'{"other": "x", "more": 1}': "has no key 'content': write data.column=... with one of other, more",
    b'{"content": 7}': "'content' holds a number, not text",
    b'{"content": ["a"]}': "'content' holds a list, not text",
    b'["content"]': "holds a list, not an object with a 'content' key",
    b'"content"': "holds a text, not an object with a 'content' key",
    b'{"content": "\xff"}': "not UTF-8 (byte 0xff)",
    b'{"content": "\xe4\xb8"}': "not UTF-8 (byte 0xe4)",
    b'{"content": "half \\ud83d"}': "holds the lone surrogate '\\ud83d'",
    b"\x00\x00\x00": "not JSON",
}


def make_line(number: int) -> bytes:
    return json.dumps({"content": f"document {number}"}).encode()


def list_units(path, kind="jsonl", parts=1):
    known = choose_text_format(str(path), TextLayout(kind, "content"))
    return Unit(StoredFile(str(path)), known).divide(parts)


def read(path, kind="jsonl", parts=1):
    units = list_units(path, kind, parts)
    return [record for unit in units for record in unit.iter_records(0)]


@pytest.mark.parametrize("packing", PACKINGS)
@pytest.mark.parametrize("parts", [1, 5])
def test_every_bad_line_is_named_and_the_others_are_read(tmp_path, packing, parts):
    path = tmp_path / f"records.jsonl{packing}"
    lines = [b"", make_line(0)]
    for number, bad in enumerate(BAD_LINES, 1):
        lines += [bad, b"", make_line(number)]
    path.write_bytes(PACKERS[packing](b"\r\n".join(lines)))
    records = read(path, parts=parts)
    texts = [record.text for record in records if isinstance(record, Record)]
    assert sorted(texts) == sorted(f"document {n}" for n in range(len(BAD_LINES) + 1))
    reasons = [record.reason for record in records if isinstance(record, BadRecord)]
    assert len(reasons) == len(BAD_LINES)
    for number, reason in enumerate(BAD_LINES.values()):
        assert any(r.startswith(f"{path}, line {3 * number + 3}: {reason}") for r in reasons)


@pytest.mark.parametrize(
    "line",
    [
        pytest.param(b'{"content": "a", "n": ' + b"1" * 5000 + b"}", id="very long integer"),
        pytest.param(b'{"content": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", id="deeply nested"),
    ],
)
def test_json_beyond_the_limits_of_the_parser_is_one_bad_record(tmp_path, line):
    path = tmp_path / "records.jsonl"
    path.write_bytes(b"\n".join([make_line(0), line, make_line(1)]))
    first, bad, last = read(path)
    assert (first.text, last.text) == ("document 0", "document 1")
    assert bad.reason.startswith(f"{path}, line 2: ")


def test_naming_many_bad_lines_does_not_read_the_file_again_for_each(tmp_path, monkeypatch):
    path = tmp_path / "records.jsonl"
    path.write_bytes(b"".join(make_line(n) + b"x" * 2000 + b"\n" for n in range(400)))
    num_bytes, pread = 0, os.pread

    def count(*arguments):
        nonlocal num_bytes
        data = pread(*arguments)
        num_bytes += len(data)
        return data

    monkeypatch.setattr(os, "pread", count)
    records = read(path)
    assert [record.reason.split(": ")[0] for record in records] == [
        f"{path}, line {line}" for line in range(1, 401)
    ]
    assert 2 * path.stat().st_size <= num_bytes <= 4 * path.stat().st_size


def test_naming_bad_lines_of_a_remote_file_costs_no_request(server):
    (server.folder / "a.jsonl").write_bytes(make_line(0) + b"\n{bad\n" * 200)
    file = StoredFile(server.url("a.jsonl?Signature=s3cr3t", "alice:hunter2@")).identify()
    server.requests.clear()
    records = list(
        Unit(file, choose_text_format("a.jsonl", TextLayout("jsonl", "content"))).iter_records(0)
    )
    assert len(server.requests) == 1
    begin = len(make_line(0)) + 1
    assert records[1].reason.startswith(f"{server.url('a.jsonl')}, line at byte {begin}: not JSON")


def test_only_damage_of_the_content_is_a_bad_record(tmp_path, monkeypatch):
    """Also of an open file: the system's errors end the run in place of dropping its units."""
    lines = b"\n".join(make_line(number) for number in range(20_000))
    for packing in PACKINGS:
        path = tmp_path / f"records.jsonl{packing}"
        path.write_bytes(PACKERS[packing](lines))
        (unit,) = list_units(path)
        records = unit.iter_records(0)
        next(records)
        with monkeypatch.context() as patch:
            patch.setattr(os, "pread", fail_with(OSError(errno.EIO, os.strerror(errno.EIO))))
            with pytest.raises(
                StorageError, match=r"records\.jsonl.*Input/output error.*check its disk"
            ):
                list(records)
        records = unit.iter_records(0)
        next(records)
        with monkeypatch.context() as patch:
            patch.setattr(failures, "_LEAST_MEMORY_BYTES", 1 << 60)
            patch.setattr(os, "pread", fail_with(MemoryError()))
            with pytest.raises(StorageError, match=r"records\.jsonl.*memory.*data\.num_workers"):
                list(records)


def fail_with(error):
    def fail(*_):
        raise error

    return fail


@pytest.mark.parametrize("kind", ["line", "blank_line", "file"])
@pytest.mark.parametrize("packing", PACKINGS)
def test_text_that_is_not_utf8_is_one_bad_record_with_its_line(tmp_path, kind, packing):
    path = tmp_path / f"text.txt{packing}"
    path.write_bytes(PACKERS[packing](b"first\n\ncaf\xe9 noir\n\nlast\n"))
    records = read(path, kind)
    bad = [record for record in records if isinstance(record, BadRecord)]
    line = 1 if kind == "file" else 3
    assert [record.reason for record in bad] == [f"{path}, line {line}: not UTF-8 (byte 0xe9)"]
    texts = [record.text for record in records if isinstance(record, Record)]
    assert texts == ([] if kind == "file" else ["first", "last"])


def test_the_byte_named_is_the_bad_one_also_after_a_byte_order_mark(tmp_path):
    path = tmp_path / "text.txt"
    path.write_bytes(b"\xef\xbb\xbfcaf\xe9\n")
    (bad,) = read(path, "line")
    assert bad.reason == f"{path}, line 1: not UTF-8 (byte 0xe9)"


@pytest.mark.parametrize("packing", PACKINGS[1:])
@pytest.mark.parametrize("kind", ["jsonl", "line", "blank_line"])
@pytest.mark.parametrize("parts", [1, 3])
def test_a_truncated_stream_gives_what_lies_before_the_damage_and_ends(
    tmp_path, packing, kind, parts
):
    path = tmp_path / f"records.jsonl{packing}"
    lines = [make_line(number * 7919) for number in range(20_000)]
    text = (b"\n\n" if kind == "blank_line" else b"\n").join(lines)
    whole = PACKERS[packing](text)
    path.write_bytes(whole[: len(whole) * 3 // 5])
    expected = {line.decode() for line in lines}
    if kind == "jsonl":
        expected = {json.loads(line)["content"] for line in expected}
    num_read = 0
    for unit in list_units(path, kind, parts):
        *records, last = unit.iter_records(0)
        assert {record.text for record in records} <= expected
        assert isinstance(last, BadRecord)
        assert last.next_cursor == END_OF_UNIT
        assert last.reason.startswith(f"{path}, after document ")
        assert "cannot be read (" in last.reason
        assert not last.reason.endswith("()")
        num_read += len(records)
    assert num_read > 5_000


def test_a_gzip_stream_with_wrong_bytes_ends_in_a_bad_record(tmp_path):
    path = tmp_path / "records.jsonl.gz"
    whole = bytearray(gzip.compress(b"".join(make_line(n) + b"\n" for n in range(20_000))))
    whole[-6] ^= 0xFF  # the checksum
    path.write_bytes(whole)
    *records, last = read(path)
    assert [record.text for record in records] == [f"document {n}" for n in range(20_000)]
    assert isinstance(last, BadRecord)
    assert str(path) in last.reason
    whole[10] |= 0b110  # a kind of block that does not exist
    path.write_bytes(whole)
    (last,) = read(path)
    assert last.next_cursor == END_OF_UNIT
    assert last.reason.startswith(f"{path}, after document 0: cannot be read (")


def test_a_zstandard_stream_with_a_wrong_checksum_ends_in_a_bad_record(tmp_path):
    path = tmp_path / "records.jsonl.zst"
    compressor = zstandard.ZstdCompressor(write_checksum=True)
    whole = bytearray(compressor.compress(b"\n".join(make_line(n) for n in range(20_000))))
    whole[-2] ^= 0xFF
    path.write_bytes(whole)
    last = read(path)[-1]
    assert isinstance(last, BadRecord)
    assert last.next_cursor == END_OF_UNIT


def test_a_file_that_vanishes_after_the_start_is_no_bad_record(tmp_path):
    for name in ("records.jsonl", "records.jsonl.gz"):
        path = tmp_path / name
        path.write_bytes(PACKERS[path.suffix if path.suffix == ".gz" else ""](make_line(0)))
        (unit,) = list_units(path)
        path.unlink()
        with pytest.raises(StorageError, match=r"cannot be read \(No such file or directory\)"):
            next(unit.iter_records(0))
