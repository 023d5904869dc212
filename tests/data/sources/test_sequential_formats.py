"""CSV, JSON values and Arrow files, read from their beginning: every document once, from any cursor."""

import bz2
import csv
import gzip
import io
import itertools
import json
import lzma
import random
from dataclasses import replace

import numpy as np
import pandas
import pyarrow as pa
import pyarrow.csv
import pyarrow.feather
import pytest
import zstandard
from hypothesis import find, given, settings
from hypothesis import strategies as st

from neobert_train.config.data_schema import BadRecordPolicy, DataConfig, FileFormat, SourceKind
from neobert_train.config.derived import resolve_sources
from neobert_train.data.sources import (
    END_OF_UNIT,
    BadRecord,
    Record,
    build_units,
    list_files_of_source,
)
from neobert_train.data.sources.formats import FORMATS, find_format
from neobert_train.errors import InputError
from neobert_train.storage.stored_files import StoredFile

CHARACTERS = "aZ \t,;\"'\\\n\r{}[]:é中😀\u2028"
texts_of_a_file = st.lists(st.text(CHARACTERS, max_size=12), min_size=1, max_size=14)
numbers = itertools.count()


def build(*paths, num_lanes=1, **data):
    data = {"source": SourceKind.files, "paths": [str(path) for path in paths]} | data
    return build_units(DataConfig(**data), num_lanes)["corpus"]


def read(*paths, **data) -> list[str]:
    """The texts, or what is wrong with the record."""
    records = [record for unit in build(*paths, **data) for record in unit.iter_records(0)]
    return [getattr(record, "text", None) or getattr(record, "reason", "") for record in records]


def find_problem(*paths, **data) -> str:
    with pytest.raises(InputError) as raised:
        build(*paths, **data)
    return str(raised.value)


def write_csv(path, texts, draw, delimiter=","):
    with open(
        path, "w", newline="", encoding=draw(st.sampled_from(["utf-8", "utf-8-sig"]))
    ) as file:
        end = draw(st.sampled_from(["\n", "\r\n"]))
        # Python's writer leaves a CR unquoted that is not of its line end.
        quoting = draw(st.sampled_from([csv.QUOTE_ALL, csv.QUOTE_MINIMAL][: len(end)]))
        writer = csv.writer(file, delimiter=delimiter, quoting=quoting, lineterminator=end)
        writer.writerow(["id", "content"])
        writer.writerows(enumerate(texts))


def write_tsv(path, texts, draw):
    write_csv(path, texts, draw, "\t")


def write_array(path, texts, draw):
    records = [{"id": number, "content": text} for number, text in enumerate(texts)]
    indent, is_ascii = draw(st.sampled_from([None, 1])), draw(st.booleans())
    path.write_text(json.dumps(records, indent=indent, ensure_ascii=is_ascii), encoding="utf-8")


def write_values(path, texts, draw):
    between = draw(st.sampled_from(["", " ", "\n", "\n\n", ",\n", "\r"]))
    values = [json.dumps({"content": text, "id": n}, indent=1) for n, text in enumerate(texts)]
    path.write_text(between.join(values), encoding="utf-8", newline="")


def write_arrow(path, texts, draw, open_writer=pa.ipc.new_file):
    kind = draw(st.sampled_from([pa.string(), pa.large_string(), pa.string_view()]))
    if draw(st.booleans()):
        kind = pa.dictionary(pa.int32(), pa.string())
    table = pa.table({"id": range(len(texts)), "content": pa.array(texts).cast(kind)})
    options = pa.ipc.IpcWriteOptions(compression=draw(st.sampled_from([None, "lz4", "zstd"])))
    with open_writer(path, table.schema, options=options) as writer:
        writer.write_table(table.slice(0, 0))
        writer.write_table(table.unify_dictionaries(), max_chunksize=draw(st.integers(1, 6)))


def write_arrow_stream(path, texts, draw):
    write_arrow(path, texts, draw, pa.ipc.new_stream)


WRITERS = {
    "csv": write_csv, "tsv": write_tsv, "json": write_array, "values.json": write_values,
    "arrow": write_arrow, "stream.arrow": write_arrow_stream,
}  # fmt: skip

PACKERS = {
    "": bytes, ".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress,
    ".zst": zstandard.compress,
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("sequential")


@pytest.mark.parametrize("suffix", WRITERS)
@settings(deadline=None, max_examples=50)
@given(data=st.data(), texts=texts_of_a_file, parts=st.integers(1, 18))
def test_units_give_every_document_once_and_continue_from_any_cursor(
    folder, suffix, data, texts, parts
):
    path = folder / f"{next(numbers)}.{suffix}"
    WRITERS[suffix](path, texts, data.draw)
    if not suffix.endswith("arrow"):
        packing = data.draw(st.sampled_from(list(PACKERS)))
        content, path = path.read_bytes(), path.with_name(path.name + packing)
        path.write_bytes(PACKERS[packing](content))
    is_values = suffix == "values.json"
    (whole,) = build(path, id_column="id", format=FileFormat.json if is_values else FileFormat.auto)
    records = list(whole.iter_records(0))
    assert [record.text for record in records] == texts
    assert [record.id for record in records] == [str(number) for number in range(len(texts))]
    begins = np.array([record.begin for record in records])
    for part, unit in enumerate(whole.divide(parts)):
        own = list(unit.iter_records(0))
        assert own == [
            records[place] for place in whole.find_division().select(begins, part, parts)
        ]
        cursors = [0, *(record.next_cursor for record in own)]
        for place, cursor in enumerate(cursors):
            assert list(unit.iter_records(cursor)) == own[place:]


def find_simplest(strategy):
    return find(strategy, lambda _: True)


@pytest.mark.parametrize("suffix", WRITERS)
def test_lanes_share_the_documents_and_a_warning_says_what_it_costs(folder, caplog, suffix):
    path = folder / f"{next(numbers)}.{suffix}"
    texts = [f"text {number}" for number in range(20)]
    WRITERS[suffix](path, texts, find_simplest)
    known = FileFormat.json if suffix == "values.json" else FileFormat.auto
    units = build(path, num_lanes=4, format=known)
    assert len(units) == 4
    assert "can be read only from their beginning" in caplog.text
    caplog.clear()
    config = DataConfig(source=SourceKind.files, paths=[str(path)], format=known)
    list_files_of_source(config, resolve_sources(config)["corpus"])
    assert caplog.text == ""  # what reads all of it once, as `prepare`, loses nothing
    found = [record.text for unit in units for record in unit.iter_records(0)]
    assert sorted(found) == sorted(texts)


def test_every_format_is_known_by_name():
    assert set(FORMATS.values()) == set(FileFormat) - {FileFormat.auto}
    for suffix, known in FORMATS.items():
        assert find_format(f"A{suffix.upper()}") is known
        assert find_format(f"https://host/a{suffix}?version=1.txt") is known


# --- CSV and TSV ---


def test_csv_is_read_as_pandas_and_pyarrow_read_it(folder):
    path = folder / "reference.csv"
    noise = random.Random(2)
    texts = ["".join(noise.choices("ab ,\"\n'é", k=noise.randint(1, 30))) for _ in range(300)]
    texts = [f"x{text}" for text in texts]  # an empty field is null to them
    pandas.DataFrame({"n": range(300), "content": texts}).to_csv(path, index=False)
    found = read(path)
    assert found == texts
    assert found == pandas.read_csv(io.StringIO(path.read_text(), newline=""))["content"].tolist()
    options = pyarrow.csv.ParseOptions(newlines_in_values=True)
    assert found == pyarrow.csv.read_csv(path, parse_options=options)["content"].to_pylist()


def test_bad_rows_of_csv_are_named_and_the_others_are_read(tmp_path):
    path = tmp_path / "a.csv"
    path.write_bytes(
        b'id,content\r\n1,first\r\n2\r\n\r\n3,a,b\r\n4,"two\r\nlines"\r\n5,caf\xe9\r\n'
        b'6,"quoted" and not\r\n7,5" disk\r\n8,"last ""one"""\r\n'
    )
    found = read(path, on_bad_record=BadRecordPolicy.skip)
    assert found == [
        "first",
        f"{path}, line 3: has 1 fields, not 2 as the first row",
        f"{path}, line 5: has 3 fields, not 2 as the first row",
        "two\r\nlines",
        f"{path}, line 8: not UTF-8 (byte 0xe9)",
        f"{path}, line 9: not a row (',' expected after '\"')",
        '5" disk',
        'last "one"',
    ]


def test_a_quote_that_is_left_open_ends_the_unit_and_is_named(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text('content\n"first"\n"never\nclosed\n')
    *records, bad = build(path)[0].iter_records(0)
    assert [record.text for record in records] == ["first"]
    assert bad.next_cursor == END_OF_UNIT
    assert "the file ends inside the quoted field that begins in line 3" in bad.reason


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("id,text\n1,a\n", "has no column 'content': write data.column=... with one of id, text"),
        ("content,content\na,b\n", "has 2 columns 'content': write data.column=... with one of"),
        ("content;id\na;1\n", "its fields seem to be separated by ';': write it with commas"),
        ("content\tid\na\t1\n", "its fields seem to be separated by '\\t': write data.format=tsv"),
        ("content\n", "is empty"),
        ("id,content\r1,a\r2,b\r", "its lines end in CR, without LF: convert them"),
        ("x" * 9000 + "\nrow\n", "write data.column=... with one of " + "x" * 40 + "..."),
    ],
)
def test_what_is_wrong_with_the_first_row_shows_at_the_start(tmp_path, content, problem):
    path = tmp_path / "a.csv"
    path.write_bytes(content.encode())
    message = find_problem(path)
    assert problem in message
    assert str(path) in message
    assert len(message) < 300


def test_a_column_of_ids_that_csv_lacks_is_an_error(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("content\na\n")
    assert "has no column 'key': write data.id_column=..." in find_problem(path, id_column="key")


# --- JSON values ---


def test_a_file_of_json_is_read_by_what_it_holds(tmp_path):
    """Also under one name: `.json` is used for lines, for arrays and for single objects."""
    contents = {
        "lines": '{"content": "a"}\n{"content": "b"}\n',
        "array": '[{"content": "a"}, {"content": "b"}]',
        "spread": '\ufeff \n[\n {\n  "content": "a"\n },\n {"content": "b"}]\n',
        "object": '{\n "content": "a"\n}\n{\n "content": "b"\n}',
        "line": '{"content": "a"}{"content": "b"}\n',
    }
    for name, content in contents.items():
        path = tmp_path / f"{name}.json"
        path.write_text(content, encoding="utf-8")
        formats = {"lines": ["auto", "jsonl", "json"], "line": ["json"]}.get(name, ["auto", "json"])
        for known in formats:
            assert read(path, format=FileFormat[known]) == ["a", "b"], (name, known)
    assert len(build(tmp_path / "lines.json", num_lanes=2)) == 8, "lines are divided by bytes"
    assert len(build(tmp_path / "array.json", num_lanes=2)) == 2


def test_what_is_wrong_inside_a_value_stays_inside_it(tmp_path):
    path = tmp_path / "a.json"
    path.write_bytes(
        b'[{"content": "first"}, {"content": "a\tb"}, {"content": "caf\xe9"}, {"content": 7},\n'
        b'{"content": "x",}, "text", 12.5, null, {"other": {"a": 1}}, {"content": "half \\ud83d"},\n'
        b'[{"content": "x"}], {"content": "say "hi" to him"}, {"content": "last \\\\\\" [{"}]'
    )
    found = read(path, on_bad_record=BadRecordPolicy.skip)
    assert (found[0], found[-1]) == ("first", 'last \\" [{')
    reasons = [
        "not JSON (Invalid control character at column 15): write \\t and \\n for tabs",
        "not UTF-8 (byte 0xe9)",
        "'content' holds a number, not text",
        "not JSON (",
        "holds a text, not an object",
        "holds a number, not an object",
        "holds null, not an object",
        "has no key 'content': write data.column=... with one of other.a",
        "holds the lone surrogate '\\ud83d'",
        "holds a list, not an object",
        "not JSON (",
    ]
    assert len(found) == len(reasons) + 2
    for number, (text, reason) in enumerate(zip(found[1:-1], reasons, strict=True), 2):
        assert text.startswith(f"{path}, document {number}: {reason}")


@pytest.mark.parametrize("block", [1, 2, 3, 7, 64])
def test_values_are_found_however_the_file_is_cut_into_blocks(tmp_path, monkeypatch, block):
    monkeypatch.setattr("neobert_train.data.sources.json_text._READ_BYTES", block)
    texts = ["\\", '"', '\\"', "\\\\", "[{", "a\\nb", '"\\\\"', "", "é\u2028"]
    values = [json.dumps({"content": text, "more": [{"x": [[]]}, '"']}) for text in texts]
    path = tmp_path / "a.json"
    for content in (
        "".join(values),
        f"[{', '.join(values)}]",
        f"[{values[0]}]\n[{']['.join(values[1:])}]",
    ):
        path.write_text(content)
        assert read(path, format=FileFormat.json) == texts
    path.write_text('[{"content": "a"}, 1, 23 ,true,456]')
    found = read(path, format=FileFormat.json, on_bad_record=BadRecordPolicy.skip)
    assert [reason.partition("holds ")[2].partition(",")[0] for reason in found[1:]] == [
        "a number", "a number", "true or false", "a number",
    ]  # fmt: skip


@settings(deadline=None, max_examples=60)
@given(cut=st.integers(1, 200))
def test_a_file_of_json_values_that_is_cut_off_is_noticed(folder, cut):
    path = folder / "cut.json"
    texts = [f"text {number}" for number in range(6)]
    whole = json.dumps([{"content": text} for text in texts]).encode()
    cut = min(cut, len(whole) - 1)
    path.write_bytes(b"[" + b'{"content": "text"},' + whole[1:-cut])
    *records, bad = build(path)[0].iter_records(0)
    assert [record.text for record in records[1:]] == texts[: len(records) - 1]
    assert isinstance(bad, BadRecord)
    assert bad.next_cursor == END_OF_UNIT
    assert "the file ends inside a" in bad.reason


# --- Arrow ---


def test_what_datasets_and_feather_write_is_read(tmp_path):
    import datasets

    texts = [f"text {number}" for number in range(25)]
    datasets.Dataset.from_dict({"content": texts}).save_to_disk(tmp_path / "saved", num_shards=2)
    assert read(tmp_path / "saved") == texts
    table = pa.table({"content": texts, "number": range(25)})
    for compression in ("lz4", "uncompressed"):
        pyarrow.feather.write_feather(table, tmp_path / "a.feather", compression, chunksize=10)
        assert read(tmp_path / "a.feather") == texts
    (tmp_path / "b.feather").write_bytes(b"FEA1....FEA1")
    assert "Feather version 1: write it again" in find_problem(tmp_path / "b.feather")


@pytest.mark.parametrize("open_writer", [pa.ipc.new_file, pa.ipc.new_stream])
def test_an_arrow_file_that_is_cut_off_ends_its_units_with_a_bad_record(tmp_path, open_writer):
    path = tmp_path / "a.arrow"
    table = pa.table({"content": [f"text {number}" for number in range(100)]})
    with open_writer(path, table.schema) as writer:
        writer.write_table(table, max_chunksize=10)
    units = build(path, num_lanes=3)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    for unit in units:
        # As of a file that was damaged when the run began, which not every one is looked into.
        *records, bad = replace(unit, file=StoredFile(str(path))).iter_records(0)
        assert all(isinstance(record, Record) for record in records)
        assert bad.next_cursor == END_OF_UNIT
        assert str(path) in bad.reason
        assert "cannot be read (" in bad.reason
    assert len(records) == (0 if open_writer is pa.ipc.new_file else 13)
    path.write_bytes(b"")
    assert find_problem(path) == f"{path} is empty"


def test_arrow_columns_are_checked_and_rows_that_are_not_utf8_named(tmp_path):
    path = tmp_path / "a.arrow"

    def write(table):
        with pa.ipc.new_file(path, table.schema) as writer:
            writer.write_table(table)

    write(pa.table({"text": ["a"], "id": [1]}))
    assert find_problem(path) == (
        f"{path} has no column 'content': write data.column=... with one of text, id"
    )
    assert "column 'id' holds int64, not text: write data.column=... with one of text" in (
        find_problem(path, column="id")
    )
    write(pa.table({"content": pa.array([], pa.string())}))
    assert find_problem(path) == f"{path} has no rows"
    ends = pa.py_buffer(b"".join(n.to_bytes(4, "little") for n in (0, 1, 2, 3)))
    write(pa.table({"content": pa.StringArray.from_buffers(3, ends, pa.py_buffer(b"a\xe9c"))}))
    first, bad, last = read(path, on_bad_record=BadRecordPolicy.skip)
    assert (first, last) == ("a", "c")
    assert bad.startswith(f"{path}, row 2: not UTF-8 (")


@settings(deadline=None, max_examples=60)
@given(
    is_file=st.booleans(),
    changes=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), min_size=1, max_size=4),
)
def test_damage_in_an_arrow_file_never_crashes_the_process(folder, is_file, changes):
    """pyarrow checks nothing by itself: a wrong offset ends in a segmentation fault."""
    path = folder / "damaged.arrow"
    table = pa.table({"content": [f"text {number}" for number in range(40)], "id": range(40)})
    with (pa.ipc.new_file if is_file else pa.ipc.new_stream)(path, table.schema) as writer:
        writer.write_table(table, max_chunksize=15)
    (unit,) = build(path, id_column="id")
    content = bytearray(path.read_bytes())
    for place, byte in changes:
        content[int(place * (len(content) - 1))] = byte
    path.write_bytes(content)
    unit = replace(unit, file=StoredFile(str(path)))
    records = [record for part in unit.divide(2) for record in part.iter_records(0)]
    assert all(isinstance(record, Record) or str(path) in record.reason for record in records)


def test_texts_inside_objects_are_found_by_their_path(tmp_path):
    rows = [
        {"text": {"en": "one", "de": "eins"}, "text.de": "own"},
        {"text": None, "text.de": "own"},
    ]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "a.json").write_text(json.dumps(rows))
    table = pa.Table.from_pylist(rows)
    with pa.ipc.new_file(tmp_path / "a.arrow", table.schema) as writer:
        writer.write_table(table)
    for suffix in ("jsonl", "json", "arrow"):
        path = tmp_path / f"a.{suffix}"
        assert read(path, column="text.en") == ["one", ""]
        assert read(path, column="text.de") == ["own", "own"], "a name that itself holds a dot wins"
        assert "with one of text.en, text.de, text.de" in find_problem(path, column="text.fr")
        assert "with one of text.en, text.de" in find_problem(path, column="text")


@pytest.mark.parametrize("suffix", ["csv", "tsv"])
def test_fields_of_tables_may_be_as_long_as_documents(tmp_path, suffix):
    """Python's own bound is 128 KiB."""
    path = tmp_path / f"a.{suffix}"
    path.write_text("content\n" + "é" * 300_000 + "\n")
    assert read(path) == ["é" * 300_000]
