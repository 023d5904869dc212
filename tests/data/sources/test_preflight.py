"""What is wrong with the files shows at the start, all of it at once, with what to write instead."""

import errno
import gzip
import json
import logging
import os
from collections import Counter

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from neobert_train.config.data_schema import (
    BadRecordPolicy,
    DataConfig,
    FileFormat,
    SourceKind,
    TextDocuments,
)
from neobert_train.data.sources import END_OF_UNIT, BadRecord, Record, build_units, files
from neobert_train.errors import InputError
from neobert_train.storage import stored_files
from neobert_train.storage.local_files import open_local
from support.misbehaving_server import Fault


def build(*paths, num_lanes=1, **data):
    data = {"source": SourceKind.files, "paths": [str(path) for path in paths]} | data
    return build_units(DataConfig(**data), num_lanes)["corpus"]


def read(*paths, **options) -> list[str]:
    records = [r for unit in build(*paths, **options) for r in unit.iter_records(0)]
    return [record.text for record in records]


def write_jsonl(path, *records):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def find_problem(*paths, **options) -> str:
    with pytest.raises(InputError) as raised:
        build(*paths, **options)
    return str(raised.value)


@pytest.fixture
def sound(tmp_path):
    return write_jsonl(tmp_path / "sound.jsonl", {"content": "sound"})


def test_every_problem_of_every_file_is_listed_at_once(tmp_path, sound):
    files = {
        "empty.jsonl": "is empty",
        "blank.txt": "is empty",
        "archive.tar": "its name tells no format that is read: unpack it, and name the folder",
        "other.jsonl": "has no key 'content': write data.column=... with one of text, url",
        "list.jsonl": "write data.format=json for values that take several lines",
        "fake.parquet": "cannot be read as parquet",
        "rows.parquet": "has no rows",
        "column.parquet": "has no column 'content': write data.column=... with one of text, url",
        "number.parquet": "column 'content' holds int64, not text: write data.column=... with one of title",
        "numbers.parquet": "write data.column=... with one of (there is no text column)",
        "latin.txt": "not UTF-8 (byte 0xe9)",
        "broken.jsonl.gz": "cannot be read (Not a gzipped file",
    }  # fmt: skip
    (tmp_path / "empty.jsonl").touch()
    (tmp_path / "blank.txt").write_text(" \n\t\r\n")
    (tmp_path / "archive.tar").write_text("x")
    write_jsonl(tmp_path / "other.jsonl", {"text": "x", "url": "y"})
    (tmp_path / "list.jsonl").write_text(json.dumps([{"content": "x"}], indent=1))
    (tmp_path / "fake.parquet").write_text("content\nx\n")
    pq.write_table(pa.table({"content": pa.array([], pa.string())}), tmp_path / "rows.parquet")
    pq.write_table(pa.table({"text": ["x"], "url": ["y"]}), tmp_path / "column.parquet")
    pq.write_table(pa.table({"content": [1], "title": ["y"]}), tmp_path / "number.parquet")
    pq.write_table(pa.table({"content": [1]}), tmp_path / "numbers.parquet")
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9\n")
    (tmp_path / "broken.jsonl.gz").write_text("no gzip")
    missing = [tmp_path / "missing.jsonl", tmp_path / "no*thing.txt"]
    message = find_problem(sound, *missing, *(tmp_path / name for name in files))
    lines = message.splitlines()
    assert lines[0] == f"{len(files) + 2} problems were found:"
    assert len(lines) == len(files) + 3
    for path in missing:
        assert f"{path}: no such file, and no files in such a folder or glob" in message
    for name, mend in files.items():
        (line,) = [line for line in lines if str(tmp_path / name) in line]
        assert mend in line
    assert "sound" not in message


@pytest.mark.parametrize(
    ("content", "advice"),
    [
        ('[{"content": "a"}, {"content": "b"}]\n', "write data.format=json for an array"),
        ('[\n{"content": "a"}\n]\n', "write data.format=json for values that take several lines"),
        ('{\n"content": "a"\n}\n', "write data.format=json for values that take several lines"),
        ('{"content": "a",\n"id": 1}\n', "write data.format=json for values that take several lines"),
        ('{"content": "a"}{"content": "b"}\n', "write data.format=json for values that follow one another"),
        ('{"content": "a"} {"content": "b"}\n', "write data.format=json for values that follow one another"),
        ('{"content": "a"}\r{"content": "b"}\r', "its lines end in CR, without LF: convert them, as `tr"),
        ('{"content": "a\tb"}\n', "write \\t and \\n for tabs and line ends in strings"),
        ('{"content": "broken\n', "it ends within a string"),
        ('{"content": "a"},\n', "write data.format=json for values that take several lines"),
        ("{'content': 'a'}\n", "Expecting property name enclosed in double quotes at column 2)"),
        ('content,id\na,1\n', "not JSON (Expecting value at column 1)"),
    ],
)  # fmt: skip
def test_a_line_that_is_no_json_object_says_what_to_do_about_it(tmp_path, content, advice):
    path = tmp_path / "a.jsonl"
    path.write_bytes(content.encode())
    message = find_problem(path)
    assert message.startswith(f"{path}, line 1: ")
    assert advice in message
    assert ("data.format" in message) == ("data.format" in advice)


@pytest.mark.parametrize("documents", [TextDocuments.line, TextDocuments.blank_line])
@pytest.mark.parametrize("content", ["one\rtwo\r", "one\rtwo", "one\r\rtwo\r"])
def test_text_whose_lines_end_in_cr_is_no_single_document(tmp_path, documents, content):
    path = tmp_path / "mac.txt"
    path.write_bytes(content.encode())
    assert find_problem(path, text_documents=documents) == (
        f"{path}: its lines end in CR, without LF: convert them, as `tr '\\r' '\\n'` does, or write "
        f"data.text_documents=file"
    )
    assert read(path, text_documents=TextDocuments.file) == [content.rstrip("\r")]
    path.write_bytes(b"progress 1\rprogress 2\nnext\n\nlast\n")
    assert read(path, text_documents=documents)[0].startswith("progress 1\rprogress 2")


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.json", "a.csv"])
@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
def test_a_file_in_utf16_is_to_be_converted(tmp_path, name, encoding):
    path = tmp_path / name
    path.write_bytes('\ufeff{"content": "a"}\n'.encode(encoding))
    assert "UTF-16, not UTF-8: convert it, as `iconv -f UTF-16" in find_problem(path)


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("a.tar", "unpack it, and name the folder"),
        ("a.tar.gz", "unpack it, and name the folder"),
        ("a.TGZ", "unpack it, and name the folder"),
        ("a.zip", "unpack it, and name the folder"),
        ("a.jsonl.lz4", "unpack it"),
        ("a.pdf", "write its text to .txt or .jsonl"),
        ("a.docx", "write its text to .txt or .jsonl"),
        ("a.html", "write its text to .txt or .jsonl"),
        ("a.xlsx", "save it as .csv"),
        ("a.pkl", "convert it to .parquet"),
        ("a.md", "write data.format=text"),
        (
            "part-00000",
            "write data.format=... with one of parquet, arrow, jsonl, json, csv, tsv, text",
        ),
    ],
)
def test_a_name_that_tells_no_format_says_what_to_do_about_it(tmp_path, name, advice):
    path = tmp_path / name
    path.write_bytes(b"x")
    assert find_problem(path) == f"{path}: its name tells no format that is read: {advice}"


@pytest.mark.parametrize("name", ["a.parquet.gz", "a.arrow.zst"])
def test_tables_inside_a_compressed_file_are_to_be_unpacked(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(b"x")
    assert find_problem(path).startswith(f"{path}: unpack it: ")


def test_a_json_key_that_holds_no_text_says_which_setting_to_change(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", {"content": 3, "title": "text"})
    message = find_problem(path)
    assert "'content' holds a number, not text" in message
    assert "data.column" in message


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("broken.jsonl", b"no json\n"),
        ("empty.jsonl", b""),
        ("fake.parquet", b"PAR1 but no parquet"),
        ("latin.txt", b"caf\xe9\n"),
        ("noise.jsonl.gz", b"no gzip"),
    ],
)
def test_skip_leaves_a_file_out_with_a_warning(tmp_path, sound, caplog, name, content):
    (tmp_path / name).write_bytes(content)
    with caplog.at_level(logging.WARNING):
        units = build(tmp_path / name, sound, on_bad_record=BadRecordPolicy.skip)
    assert {unit.name for unit in units} == {str(sound)}
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert record.getMessage().startswith(f"left out: {tmp_path / name}")
    message = find_problem(tmp_path / name, on_bad_record=BadRecordPolicy.skip)
    assert message == "no readable file is left in data.paths"
    assert str(tmp_path / name) in find_problem(tmp_path / name, sound)


def test_skip_looks_past_bad_records_at_the_beginning_of_a_file(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text("broken\n" * 100 + '{"content": "good"}\n')
    (unit, *_) = build(path, on_bad_record=BadRecordPolicy.skip)
    assert isinstance(next(unit.iter_records(0)), BadRecord)
    path.write_text("broken\n" * 101 + '{"content": "too late"}\n')
    message = find_problem(path, on_bad_record=BadRecordPolicy.skip)
    assert message == "no readable file is left in data.paths"


def test_column_and_format_mistakes_are_errors_also_with_skip(tmp_path, sound):
    pq.write_table(pa.table({"text": ["x"]}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"content": [1]}), tmp_path / "b.parquet")
    write_jsonl(tmp_path / "c.jsonl", *[{"text": "x"}] * 200)
    (tmp_path / "d.tar").write_text("x")
    paths = [tmp_path / name for name in ("a.parquet", "b.parquet", "c.jsonl", "d.tar")]
    message = find_problem(sound, *paths, on_bad_record=BadRecordPolicy.skip)
    assert message.startswith("4 problems were found:")
    assert all(str(path) in message for path in paths)


def test_a_wrong_column_is_an_error_with_skip_also_when_the_last_line_is_broken(tmp_path, sound):
    path = write_jsonl(tmp_path / "a.jsonl", *[{"text": "x"}] * 5)
    path.write_text(path.read_text() + '{"te')
    assert "has no key 'content'" in find_problem(path, sound, on_bad_record=BadRecordPolicy.skip)


def test_skip_leaves_a_broken_file_out_whatever_its_name(tmp_path, sound):
    path = tmp_path / "my data.jsonl"
    path.write_text("broken\n")
    units = build(path, sound, on_bad_record=BadRecordPolicy.skip)
    assert {unit.name for unit in units} == {str(sound)}


def test_a_named_format_decides_for_files_whose_names_tell_nothing(tmp_path):
    path = tmp_path / "part-00000"
    path.write_text('{"content": "a"}\n\n{"content": "b"}\n')
    assert read(path, format=FileFormat.jsonl) == ["a", "b"]
    lines = ['{"content": "a"}', '{"content": "b"}']
    assert read(path, format=FileFormat.text, text_documents=TextDocuments.line) == lines
    assert read(path, format=FileFormat.text, text_documents=TextDocuments.blank_line) == lines


@pytest.mark.parametrize("num_lanes", [1, 3, 16])
@pytest.mark.parametrize("num_files", [1, 5])
def test_there_are_units_for_every_lane_and_each_document_is_in_one(tmp_path, num_lanes, num_files):
    expected = []
    for file in range(num_files):
        texts = [f"file {file} text {number}" for number in range(100)]
        write_jsonl(tmp_path / f"{file}.jsonl", *({"content": text} for text in texts))
        (tmp_path / f"{file}.txt").write_text("\n\n".join(f"{text} block" for text in texts))
        rows = pa.table({"content": [f"{text} row" for text in texts]})
        pq.write_table(rows, tmp_path / f"{file}.parquet")
        expected += [t + kind for t in texts for kind in ("", " block", " row")]
    units = build(tmp_path, num_lanes=num_lanes)
    assert len(units) >= num_lanes
    texts = [record.text for unit in units for record in unit.iter_records(0)]
    assert sorted(texts) == sorted(expected)


def test_the_shipped_texts_are_found_wherever_the_run_starts(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = DataConfig(source=SourceKind.embedded, column="content")
    units = build_units(config, num_lanes=2)["corpus"]
    assert all(len(record.text) > 100 for unit in units for record in unit.iter_records(0))


def write_parquet(path, **columns):
    pq.write_table(pa.table(columns), path)
    return path


@pytest.fixture
def opened(monkeypatch):
    """The names of the local files that were opened, in their order, each as often as it was."""
    names = []

    def open_and_note(path, version):
        names.append(os.path.basename(path))
        return open_local(path, version)

    monkeypatch.setattr(stored_files, "open_local", open_and_note)
    return names


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
@pytest.mark.parametrize("num_lanes", [1, 64])
def test_of_very_many_files_some_that_lie_evenly_among_them_are_opened(
    tmp_path, monkeypatch, opened, suffix, num_lanes
):
    monkeypatch.setattr(files, "_LOCAL_FILES_CHECKED", 10)
    for number in range(95):
        path = tmp_path / f"{number:02d}.{suffix}"
        if suffix == "jsonl":
            write_jsonl(path, {"content": f"text {number}"})
        else:
            write_parquet(path, content=[f"text {number}"])
    units = build(tmp_path, num_lanes=num_lanes)
    assert sorted(opened) == [f"{number:02d}.{suffix}" for number in range(0, 95, 10)]
    texts = [record.text for unit in units for record in unit.iter_records(0)]
    assert sorted(texts) == sorted(f"text {number}" for number in range(95))


def test_every_one_of_a_thousand_local_files_is_opened(tmp_path, opened):
    for number in range(1000):
        (tmp_path / f"{number}.txt").write_text("text\n")
    build(tmp_path, text_documents=TextDocuments.line)
    assert len(set(opened)) == 1000


def test_of_many_remote_files_eight_are_looked_into(server):
    for number in range(30):
        write_jsonl(server.folder / "many" / f"{number:02d}.jsonl", {"content": "text"})
    assert len(build(server.url("many/"))) >= 30
    requests = Counter(request.path for request in server.requests)
    # Each is asked for its version; the beginning of some is read.
    assert requests.pop("/many/") == 1
    assert requests == {f"/many/{number:02d}.jsonl": 1 + (number % 4 == 0) for number in range(30)}


def test_a_server_that_fails_is_not_asked_for_all_of_many_files(server, pauses):
    for number in range(200):
        write_jsonl(server.folder / "many" / f"{number:03d}.jsonl", {"content": "text"})
    server.script(Fault(), Fault(status=503), repeat=True)
    message = find_problem(server.url("many/"), max_retries=1)
    assert "not read after 2 attempts" in message
    assert len(server.requests) < 150


def test_looking_at_many_files_is_shown(tmp_path, monkeypatch, caplog):
    for number in range(40):
        write_jsonl(tmp_path / f"{number:02d}.jsonl", {"content": "text"})
    monkeypatch.setattr(files, "_SHOWN_EVERY_SECONDS", 0.0)
    build(tmp_path)
    assert "looking at the files of the data: 20 of 40" in caplog.messages


def test_missing_files_of_a_server_are_all_named(server):
    urls = [server.url(f"{number}.jsonl") for number in range(5)]
    message = find_problem(*urls)
    assert all(f"{url}: no such file" in message for url in urls)


def test_a_file_without_the_right_to_read_is_no_bad_one(tmp_path, sound, monkeypatch):
    refused, open_file = tmp_path / "refused.jsonl", os.open
    write_jsonl(refused, {"content": "text"})

    def refuse(path, *arguments, **options):
        if path == str(refused):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
        return open_file(path, *arguments, **options)

    monkeypatch.setattr(os, "open", refuse)  # as root may read everything
    message = find_problem(sound, refused, on_bad_record=BadRecordPolicy.skip)
    assert f"{refused}: cannot be read (Permission denied): give the user" in message


@pytest.mark.parametrize("policy", list(BadRecordPolicy))
@pytest.mark.parametrize("name", ["rows.parquet", "rows.jsonl"])
def test_a_server_that_fails_is_an_error_and_leaves_no_file_out(
    server, sound, pauses, policy, name
):
    """The files would be in another order once it is back."""
    write_parquet(server.folder / "rows.parquet", content=["remote"])
    write_jsonl(server.folder / "rows.jsonl", {"content": "remote"})
    server.script(Fault(), Fault(status=503), repeat=True)  # the size is told, and nothing else
    message = find_problem(sound, server.url(name), on_bad_record=policy, max_retries=1)
    assert name in message
    assert "503" in message
    server.script()
    assert sorted(read(sound, server.url(name), on_bad_record=policy)) == ["remote", "sound"]


@pytest.mark.parametrize("setting", ["column", "id_column"])
def test_a_later_parquet_file_without_a_column_is_a_bad_record_that_names_the_setting(
    tmp_path, monkeypatch, setting
):
    monkeypatch.setattr(files, "_LOCAL_FILES_CHECKED", 1)
    write_parquet(tmp_path / "0.parquet", content=["first"], key=["a"])
    columns = {"content": ["later"], "key": ["b"], "url": ["c"]}
    del columns["content" if setting == "column" else "key"]
    later = write_parquet(tmp_path / "1.parquet", **columns)
    units = build(tmp_path, id_column="key")
    records = [record for unit in units for record in unit.iter_records(0)]
    assert [(r.text, r.id) for r in records if isinstance(r, Record)] == [("first", "a")]
    bad = [record for record in records if isinstance(record, BadRecord)]
    assert len(bad) == len([unit for unit in units if unit.name == str(later)])
    for record in bad:
        assert record.is_setting
        assert record.next_cursor == END_OF_UNIT
        assert record.reason.startswith(f"{later} has no column ")
        assert record.reason.endswith(f"write data.{setting}=... with one of {', '.join(columns)}")


def test_a_later_file_of_json_lines_without_the_key_is_bad_records_that_name_the_setting(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(files, "_LOCAL_FILES_CHECKED", 1)
    write_jsonl(tmp_path / "0.jsonl", {"content": "first"})
    later = write_jsonl(tmp_path / "1.jsonl", {"text": "x"}, {"content": "sound", "id": 1})
    records = [record for unit in build(tmp_path) for record in unit.iter_records(0)]
    assert [r.text for r in records if isinstance(r, Record)] == ["first", "sound"]
    (bad,) = (record for record in records if isinstance(record, BadRecord))
    assert bad.is_setting
    assert bad.reason == (
        f"{later}, line 1: has no key 'content': write data.column=... with one of text"
    )


def test_suffixes_are_known_in_any_case(tmp_path):
    write_parquet(tmp_path / "A.PARQUET", content=["parquet"])
    (tmp_path / "b.Json.GZ").write_bytes(gzip.compress(b'{"content": "gzip"}\n'))
    (tmp_path / "C.JSONL.ZST").write_bytes(zstandard.compress(b'{"content": "zstandard"}\n'))
    (tmp_path / "d.TXT.Gz").write_bytes(gzip.compress(b"text\n"))
    (tmp_path / "E.Txt").write_text("plain\n")
    everything = ["gzip", "parquet", "plain", "text", "zstandard"]
    for num_lanes in (1, 3):
        assert sorted(read(tmp_path, num_lanes=num_lanes)) == everything
        assert sorted(read(f"{tmp_path}/*", num_lanes=num_lanes)) == everything
    assert read(f"{tmp_path}/*.PARQUET") == ["parquet"]
    assert sorted(read(f"{tmp_path}/*.G[Zz]", tmp_path / "d.TXT.Gz")) == ["gzip", "text"]


@pytest.mark.parametrize("num_lanes", [1, 8])
def test_files_without_a_way_into_their_middle_are_named_with_the_cost(tmp_path, caplog, num_lanes):
    (tmp_path / "a.txt").write_text("one\n\ntwo\n")
    write_jsonl(tmp_path / "b.jsonl", {"content": "three"})
    with caplog.at_level(logging.WARNING):
        build(tmp_path, num_lanes=num_lanes)
    (record,) = caplog.records
    assert record.getMessage().startswith(
        f"1 of 2 files, such as {tmp_path / 'a.txt'}, can be read"
    )
    caplog.clear()
    build(tmp_path / "b.jsonl")
    build(tmp_path / "a.txt", text_documents=TextDocuments.file)
    assert not caplog.records
