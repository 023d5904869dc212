"""Whole rows of files: what is read, and what is said of files that are damaged."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from neobert_train.data.sources.rows import describe_bad_text, iter_file_rows, list_row_suffixes
from neobert_train.errors import InputError
from neobert_train.storage.stored_files import StoredFile

ROWS = [{"text": 'a, "quoted"\nline', "label": "007"}, {"text": "é" * 300_000, "label": ""}]


def read(path):
    return list(iter_file_rows(StoredFile(str(path))))


def write(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def test_every_format_gives_whole_rows_with_their_places(tmp_path):
    quoted = ['"' + row["text"].replace('"', '""') + f'",{row["label"]}' for row in ROWS]
    table = "\ufeff" + "\n".join(["text,label", *quoted])
    assert read(write(tmp_path / "a.csv", table)) == [
        (f"{tmp_path}/a.csv, row {number}", row) for number, row in enumerate(ROWS, 1)
    ]
    lines = "\n\n".join(map(json.dumps, ROWS))
    assert read(write(tmp_path / "a.jsonl", lines)) == [
        (f"{tmp_path}/a.jsonl, line {number}", row)
        for number, row in zip((1, 3), ROWS, strict=True)
    ]
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "a.parquet")
    assert [row for _, row in read(tmp_path / "a.parquet")] == ROWS
    assert read(write(tmp_path / "a.tsv", "text\tlabel\nx\t1\n"))[0][1] == {
        "text": "x",
        "label": "1",
    }


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", b"text,label\ncaf\xe9,1\n", "a.csv is not UTF-8"),
        ("a.csv", "text,text\na,b\n", "names the column 'text' twice"),
        ("a.csv", "text,label\na\n", r"row 1 \(line 2\) has 1 columns"),
        ("a.jsonl", '{"text": 1}\n[1]\n', "line 2 holds a list, not an object"),
        ("a.jsonl", "{\n", "line 1 is not JSON"),
        ("a.parquet", "PAR1", "a.parquet cannot be read"),
    ],
)
def test_damage_is_told_with_its_place(tmp_path, name, content, message):
    with pytest.raises(InputError, match=message):
        read(write(tmp_path / name, content))


def test_a_missing_file_is_told(tmp_path):
    with pytest.raises(InputError, match=r"none\.csv"):
        read(tmp_path / "none.csv")


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ("a", None),
        (" ", "is empty"),
        (None, "is empty"),
        (3, "a number, not a text"),
        ("b\ud800", "surrogate"),
    ],
)
def test_what_is_no_text_is_told(value, problem):
    found = describe_bad_text(value)
    assert found is None if problem is None else problem in found


def test_formats_are_known_by_the_ends_of_names():
    assert {".jsonl", ".parquet", ".csv", ".tsv"} <= set(list_row_suffixes())
