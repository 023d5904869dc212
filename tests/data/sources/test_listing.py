"""What folders, globs and URLs name: which files are read, and what is left out and named."""

import json
import logging
import os

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from neobert_train.config.data_schema import DataConfig, FileFormat, SourceKind, TextDocuments
from neobert_train.data.sources import build_units
from neobert_train.errors import InputError


def read(*paths, **data) -> list[str]:
    data = {"source": SourceKind.files, "paths": [str(path) for path in paths]} | data
    units = build_units(DataConfig(**data), 1)["corpus"]
    return [record.text for unit in units for record in unit.iter_records(0)]


def write(*paths, text: str | None = None) -> None:
    """Files of JSON Lines, each with its own name as its only text."""
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"content": text or path.name}) + "\n")


@pytest.fixture
def warnings(caplog):
    """What the last listing said it left out."""
    caplog.set_level(logging.WARNING)

    def find() -> str:
        texts = [record.getMessage() for record in caplog.records]
        caplog.clear()
        (text,) = (text for text in texts if text.startswith("left out of data.paths: "))
        return text

    return find


def test_folders_globs_and_files_are_read_once_each_in_a_fixed_order(tmp_path):
    for name in ("b/2.jsonl", "b/1.ndjson", "a/x.json", "c/deep/er/y.jsonl", "b/[odd].jsonl"):
        write(tmp_path / name, text=name)
    (tmp_path / "b" / "notes.bin").write_text("not read")
    folder = ["b/1.ndjson", "b/2.jsonl", "b/[odd].jsonl"]
    assert read(tmp_path / "b") == folder
    assert read(tmp_path / "b" / "2.jsonl", tmp_path / "b") == ["b/2.jsonl", folder[0], folder[2]]
    assert read(f"{tmp_path}/**/*.jsonl") == [*folder[1:], "c/deep/er/y.jsonl"]
    assert read(f"{tmp_path}/c/**") == ["c/deep/er/y.jsonl"]
    assert read(f"{tmp_path}/**/er/**/*.jsonl") == ["c/deep/er/y.jsonl"]
    assert read(tmp_path / "b" / "[odd].jsonl") == ["b/[odd].jsonl"]
    assert sorted(read(tmp_path)) == sorted(["a/x.json", *folder, "c/deep/er/y.jsonl"])


def test_a_file_named_in_two_ways_is_read_once(tmp_path, monkeypatch):
    write(tmp_path / "a.jsonl")
    monkeypatch.chdir(tmp_path)
    for paths in ([".", "./*.jsonl", tmp_path / "a.jsonl"], ["**/*.jsonl", "**", "."]):
        assert read(*paths) == ["a.jsonl"]


def test_a_folder_of_parts_named_like_a_file_is_read_inside_another_folder(tmp_path):
    (tmp_path / "corpus" / "texts.parquet").mkdir(parents=True)
    pq.write_table(
        pa.table({"content": ["a"]}), tmp_path / "corpus" / "texts.parquet" / "part-0.parquet"
    )
    assert read(tmp_path / "corpus") == ["a"]


@pytest.fixture
def littered(tmp_path):
    """Two files of texts among what notebooks, Spark, macOS and `datasets` leave behind."""
    folder = tmp_path / "corpus"
    write(
        folder / "a.jsonl", folder / "sub" / "b.json", folder / "._a.jsonl",
        folder / ".ipynb_checkpoints" / "a-checkpoint.jsonl", folder / "_temporary" / "0" / "x.jsonl",
        folder / "dataset_infos.json", folder / "sub" / "state.json",
    )  # fmt: skip
    (folder / "_SUCCESS").touch()
    (folder / "README.md").write_text("# Notes")
    os.symlink(tmp_path / "gone", folder / "link.jsonl")
    os.mkfifo(folder / "pipe.jsonl")
    return folder


def test_what_a_folder_holds_beside_texts_is_left_out_and_named_once(littered, warnings):
    assert read(littered) == ["a.jsonl", "b.json"]
    message = warnings()
    for part in (
        f"names that begin with . or _: 4 ({littered}/.ipynb_checkpoints/, {littered}/_temporary/, "
        f"{littered}/._a.jsonl, ...)",
        f"descriptions of a dataset: 2 ({littered}/dataset_infos.json, {littered}/sub/state.json)",
        f"files of no known format: 1 ({littered}/README.md)",
        f"links to nothing: 1 ({littered}/link.jsonl)",
        f"no plain files: 1 ({littered}/pipe.jsonl)",
    ):
        assert part in message


def test_one_of_several_processes_warns(littered, caplog, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    assert read(littered) == ["a.jsonl", "b.json"]
    assert not caplog.records


def test_globs_follow_the_same_rule(littered, warnings):
    assert read(f"{littered}/*") == ["a.jsonl"]
    message = warnings()
    assert f"files of no known format: 1 ({littered}/README.md)" in message
    assert (
        f"names that begin with . or _: 2 ({littered}/_SUCCESS, {littered}/_temporary)" in message
    )
    assert f"folders, for which a glob needs **: 1 ({littered}/sub)" in message
    assert read(f"{littered}/**/*.json*") == ["a.jsonl", "b.json"]
    message = warnings()
    assert f"{littered}/_temporary/" in message
    assert "README.md" not in message, "the glob does not match it"


def test_what_is_named_is_read_whatever_its_name(littered):
    names = ["._a.jsonl", "dataset_infos.json", "_temporary", ".ipynb_checkpoints/*.jsonl"]
    assert read(*(littered / name for name in names)) == [
        "._a.jsonl", "dataset_infos.json", "x.jsonl", "a-checkpoint.jsonl"
    ]  # fmt: skip
    assert read(f"{littered}/**/_temp*/0/*.jsonl") == ["x.jsonl"]


def test_a_folder_or_glob_of_which_nothing_is_read_says_why(littered, tmp_path):
    for path in (f"{littered}/*.md", f"{littered}/dataset*"):
        with pytest.raises(InputError) as error:
            read(path)
        assert str(error.value).startswith(f"{path}: nothing in it is read: ")
    (tmp_path / "empty").mkdir()
    for path in (tmp_path / "empty", tmp_path / "none", tmp_path / "*.none"):
        with pytest.raises(InputError) as error:
            read(path)
        assert str(error.value) == f"{path}: no such file, and no files in such a folder or glob"


def test_a_named_format_reads_every_file_of_a_folder(tmp_path, warnings):
    (tmp_path / "chapter-1").write_text("one\n")
    (tmp_path / "notes.md").write_text("two\n")
    (tmp_path / ".draft").write_text("three\n")
    options = {"format": FileFormat.text, "text_documents": TextDocuments.line}
    assert read(tmp_path, **options) == ["one", "two"]
    assert (
        warnings() == f"left out of data.paths: names that begin with . or _: 1 ({tmp_path}/.draft)"
    )


@pytest.mark.parametrize("pattern", ["", "/**", "/**/*.jsonl"])
def test_links_to_folders_are_followed_and_loops_end(tmp_path, warnings, pattern):
    folder = tmp_path / "corpus"
    write(folder / "z" / "1.jsonl", tmp_path / "elsewhere" / "deep" / "2.jsonl")
    os.symlink(tmp_path / "elsewhere", folder / "a")
    assert read(f"{folder}{pattern}") == ["2.jsonl", "1.jsonl"]
    # Two loops: followed blindly, they double the paths at every turn.
    os.symlink(folder, tmp_path / "elsewhere" / "back")
    os.symlink(tmp_path / "elsewhere", tmp_path / "elsewhere" / "deep" / "up")
    os.symlink("self", folder / "self")
    assert read(f"{folder}{pattern}") == ["2.jsonl", "1.jsonl"]
    message = warnings()
    assert "links to folders that are read anyway: 2 " in message
    assert f"{folder}/a/back/" in message
    assert f"{folder}/a/deep/up/" in message


def test_a_folder_keeps_its_own_name_where_a_link_leads_to_it_too(tmp_path, warnings):
    write(tmp_path / "z" / "1.jsonl", tmp_path / "m" / "2.jsonl")
    os.symlink("z", tmp_path / "a")
    assert read(tmp_path) == ["2.jsonl", "1.jsonl"], "in the order of m and z"
    assert f"links to folders that are read anyway: 1 ({tmp_path}/a/)" in warnings()


def test_remote_folders_and_globs_follow_the_same_rule(server, warnings):
    many = server.folder / "many"
    write(many / "a.jsonl", many / "_old.jsonl", many / "dataset_info.json")
    (many / "README.md").write_text("# Notes")
    for url in (server.url("many/"), server.url("many/*")):
        assert read(url) == ["a.jsonl"]
        message = warnings()
        assert f"names that begin with . or _: 1 ({server.url('many/_old.jsonl')})" in message
        assert f"files of no known format: 1 ({server.url('many/README.md')})" in message
        assert f"descriptions of a dataset: 1 ({server.url('many/dataset_info.json')})" in message
    assert read(server.url("many/_old.jsonl")) == ["_old.jsonl"]
    assert read(server.url("many/_*.jsonl")) == ["_old.jsonl"]
    with pytest.raises(InputError, match=r"many/\*\.md: nothing in it is read: files of no known"):
        read(server.url("many/*.md"))


@pytest.fixture
def store():
    """An object store with files of a finished and of an unfinished write."""
    store = fsspec.filesystem("memory")
    for name in ("a.jsonl", "_temporary/0/b.jsonl", "sub/c.jsonl"):
        store.pipe_file(f"/lake/{name}", json.dumps({"content": name}).encode())
    yield store
    store.rm("/lake", recursive=True)


@pytest.mark.usefixtures("store")
def test_object_stores_follow_the_same_rule(warnings):
    for url in ("memory://lake", "memory://lake/**/*.jsonl"):
        assert read(url) == ["a.jsonl", "sub/c.jsonl"]
        assert "names that begin with . or _: 1 (memory:///lake/_temporary/0/b.jsonl)" in warnings()
    assert read("memory://lake/_temporary") == ["_temporary/0/b.jsonl"]
