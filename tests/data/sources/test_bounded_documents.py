"""Documents beyond the bound are bad records, and take no more memory than the bound."""

import bz2
import gzip
import io
import lzma
import tracemalloc
from dataclasses import replace
from functools import partial

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from neobert_train.config.data_schema import DataConfig, FileFormat, SourceKind, TextDocuments
from neobert_train.data.sources import BadRecord, build_units, lines, tables
from neobert_train.data.sources.compression import decompress
from neobert_train.storage.stored_files import StoredFile

MOST = 1 << 20
LINE = b"some words of a document, again and again with no end in sight, " * 15 + b"and so on\n"
LONG = LINE * (MOST // len(LINE) * 12)
CONTENTS = {
    "jsonl": b'{"content": "first"}\n{"content": "%b"}\n{"content": "last"}\n' % LONG.replace(b"\n", b" "),
    "json": b'[{"content": "first"}, {"content": "%b"},\n{"content": "last"}]' % LONG.replace(b"\n", b" "),
    "csv": b'content\nfirst\n"%b"\nlast\n' % LONG,
    "line": b"first\n%b\nlast\n" % LONG.replace(b"\n", b" "),
    "blank_line": b"first\n\n%b\nlast\n" % LONG,
    "file": LONG,
}  # fmt: skip
PACKERS = {"": bytes, ".gz": gzip.compress}


@pytest.fixture(autouse=True)
def _bound(monkeypatch):
    for module in (lines, tables):
        monkeypatch.setattr(module, "MOST_DOCUMENT_BYTES", MOST)


def build(path, kind="text"):
    options = {"format": FileFormat.text}
    if kind in ("line", "blank_line", "file"):
        options["text_documents"] = TextDocuments[kind]
    else:
        options["format"] = FileFormat[kind]
    config = DataConfig(source=SourceKind.files, paths=[str(path)], **options)
    return build_units(config, 1)["corpus"]


@pytest.mark.parametrize("packing", ["", ".gz"])
@pytest.mark.parametrize("kind", [kind for kind in CONTENTS if kind != "file"])
def test_a_document_beyond_the_bound_is_named_and_the_rest_of_the_file_is_read(
    tmp_path, kind, packing
):
    path = tmp_path / f"bomb{packing}"
    path.write_bytes(PACKERS[packing](CONTENTS[kind]))
    units = build(path, kind)
    tracemalloc.start()
    try:
        records = [record for unit in units for record in unit.iter_records(0)]
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    first, bad, last = records
    assert (first.text, last.text) == ("first", "last")
    assert bad.begin < bad.next_cursor <= last.begin
    place = {"json": "document 2", "blank_line": "line 3", "csv": "line 3"}.get(kind, "line 2")
    assert bad.reason.startswith(f"{path}, {place}: too long: 12,5")
    assert bad.reason.endswith(" bytes, and a document may have 1,048,576")
    assert peak < 6 * MOST, f"{peak:,} bytes"
    for unit in units:
        own = list(unit.iter_records(0))
        for number, record in enumerate(own):
            assert list(unit.iter_records(record.next_cursor)) == own[number + 1 :]


@pytest.mark.parametrize("packing", ["", ".gz"])
def test_a_file_that_is_one_document_is_bounded_too(tmp_path, packing):
    sound = tmp_path / "a.txt"
    sound.write_text("sound")
    path = tmp_path / f"bomb.txt{packing}"
    path.write_bytes(PACKERS[packing](b"short"))
    (unit,) = build(path, "file")
    path.write_bytes(PACKERS[packing](CONTENTS["file"]))
    unit = replace(unit, file=StoredFile(str(path)))
    tracemalloc.start()
    try:
        (bad,) = unit.iter_records(0)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert bad.reason == f"{path}, line 1: {lines.describe_length(len(LONG))}"
    assert peak < 6 * MOST, f"{peak:,} bytes"


def test_a_document_at_the_bound_is_read(tmp_path):
    path = tmp_path / "a.txt"
    for size, is_bad in ((MOST - 1, False), (MOST, True)):  # its line end counts
        path.write_bytes(b"first\n" + b"a" * size + b"\nlast\n")
        records = [record for unit in build(path, "line") for record in unit.iter_records(0)]
        assert [isinstance(record, BadRecord) for record in records] == [False, is_bad, False]


def test_a_text_of_a_table_beyond_the_bound_is_a_bad_record(tmp_path):
    table = pa.table({"content": ["first", "a" * (MOST + 1), "last"]})
    pq.write_table(table, tmp_path / "a.parquet")
    with pa.ipc.new_file(tmp_path / "a.arrow", table.schema) as writer:
        writer.write_table(table)
    for kind in ("parquet", "arrow"):
        path = tmp_path / f"a.{kind}"
        units = build(path, kind)
        first, bad, last = (record for unit in units for record in unit.iter_records(0))
        assert (first.text, last.text) == ("first", "last")
        assert bad.reason == f"{path}, row 2: {lines.describe_length(MOST + 1)}"


@pytest.mark.parametrize(
    ("packing", "compress", "most"),
    [
        (".gz", gzip.compress, 1 << 20),
        (".bz2", bz2.compress, 8 << 20),
        (".xz", partial(lzma.compress, preset=0), 8 << 20),
        (".zst", zstandard.compress, 65 << 20),
    ],
)
def test_a_decompressor_gives_no_more_at_a_time_than_a_small_part_of_the_bound(
    packing, compress, most
):
    packed = compress(bytes(100 << 20))
    tracemalloc.start()
    try:
        with decompress(f"bomb{packing}", io.BytesIO(packed)) as stream:
            assert stream.read(10) == bytes(10)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < most
