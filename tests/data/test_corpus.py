"""The files a run began with, and those that are there when it goes on."""

import json
import shutil

import pytest

from neobert_train.config.data_schema import BadRecordPolicy, DataConfig, SourceKind
from neobert_train.config.schema import TrainConfig
from neobert_train.config.typed import parse
from neobert_train.data.corpus import (
    SourceFiles,
    find_file_differences,
    list_source_files,
    open_corpus,
    to_json,
)
from neobert_train.data.shards.preparation import list_jobs, write_manifest, write_shard
from neobert_train.storage.versions import FileVersion
from neobert_train.tokenizers.loading import load_tokenizer


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "texts"
    folder.mkdir()
    for name in ("a.jsonl", "b.jsonl", "c.jsonl"):
        (folder / name).write_text(json.dumps({"text": f"of {name}"}) + "\n")
    return folder


def make_config(*paths) -> TrainConfig:
    paths = [str(path) for path in paths]
    return TrainConfig(data=DataConfig(source=SourceKind.files, paths=paths, column="text"))


def list_files(folder, tokenizer):
    return list_source_files(open_corpus(make_config(folder), tokenizer))


def read_again(files):
    return parse(SourceFiles, json.loads(json.dumps(to_json(files))))


def test_unchanged_files_are_the_same_in_another_place(folder, tokenizer):
    before = list_files(folder, tokenizer)
    assert [file.name for file in before["corpus"]] == ["a.jsonl", "b.jsonl", "c.jsonl"]
    assert read_again(before) == before
    copy = shutil.copytree(folder, folder.parent / "copy", copy_function=shutil.copy)
    assert find_file_differences(read_again(before), list_files(copy, tokenizer)) == []


def test_files_that_were_written_down_without_marks_are_taken(folder, tokenizer):
    files = list_files(folder, tokenizer)
    earlier = {"corpus": [[name, size] for name, size, _ in to_json(files)["corpus"]]}
    before = parse(SourceFiles, earlier)
    assert find_file_differences(before, files) == []
    (folder / "b.jsonl").write_text(json.dumps({"text": "of B.jsonl"}) + "\n")  # not to be seen
    assert find_file_differences(before, list_files(folder, tokenizer)) == []
    (folder / "b.jsonl").write_text(json.dumps({"text": "of b"}) + "\n")
    assert find_file_differences(before, list_files(folder, tokenizer)) != []


@pytest.mark.parametrize(
    "damaged",
    [{"corpus": 1}, {"corpus": [["a"]]}, {"corpus": [["a", -1, {}]]}, {"corpus": [["a", 1, []]]}],
)
def test_what_no_files_are_is_refused(damaged):
    with pytest.raises(ValueError, match="corpus"):
        parse(SourceFiles, damaged)


def test_every_change_is_named(folder, tokenizer):
    before = list_files(folder, tokenizer)
    (folder / "b.jsonl").write_text(json.dumps({"text": "of B.jsonl"}) + "\n")
    (change,) = find_file_differences(before, list_files(folder, tokenizer))
    assert change.startswith("source 'corpus': b.jsonl (content hash ")
    with open(folder / "b.jsonl", "a") as file:
        file.write("\n")
    (change,) = find_file_differences(before, list_files(folder, tokenizer))
    assert change == "source 'corpus': b.jsonl (24 bytes instead of 23)"
    (folder / "c.jsonl").rename(folder / "d.jsonl")
    (change,) = find_file_differences(before, list_files(folder, tokenizer))
    assert change == "source 'corpus': with d.jsonl, without c.jsonl"
    for number in range(8):
        (folder / f"e{number}.jsonl").write_text('{"text": "new"}\n')
    (change,) = find_file_differences(before, list_files(folder, tokenizer))
    assert change == (
        "source 'corpus': 11 files instead of 3, with d.jsonl, e0.jsonl, e1.jsonl, e2.jsonl, "
        "e3.jsonl, 4 more, without c.jsonl"
    )
    config = make_config(folder / "b.jsonl", folder / "a.jsonl", folder / "d.jsonl")
    (change,) = find_file_differences(
        list_source_files(open_corpus(make_config(folder / "[abd].jsonl"), tokenizer)),
        list_source_files(open_corpus(config, tokenizer)),
    )
    assert change == "source 'corpus': the same files in another order"


def test_a_remote_file_that_was_replaced_is_named(folder, server, tokenizer):
    path = server.folder / "a.jsonl"
    path.write_text(json.dumps({"text": "before"}) + "\n")
    before = list_files(server.url("a.jsonl"), tokenizer)
    version = before["corpus"][0].version
    assert (version.size, {kind for kind, _ in version.marks}) == (19, {"etag", "date"})
    path.write_text(json.dumps({"text": "behind"}) + "\n")
    server.tells = {"ETag"}
    (change,) = find_file_differences(before, list_files(server.url("a.jsonl"), tokenizer))
    assert change.startswith("source 'corpus': a.jsonl (etag ")


def test_a_division_is_fixed_when_the_run_begins(tmp_path, tokenizer):
    """A file that grows would be divided in other places by every unit that opens it."""
    path = tmp_path / "growing.jsonl"
    lines = [json.dumps({"text": f"document {n}"}) + "\n" for n in range(100)]
    path.write_text("".join(lines))
    units = open_corpus(make_config(path), tokenizer)["corpus"]
    division = units[0].find_division()
    (first,) = (list(unit.iter_records(0)) for unit in units[:1])
    with open(path, "a") as file:
        file.write(lines[0])
    assert units[1].find_division() == division
    with pytest.raises(Exception, match="was changed while the run reads it"):
        list(units[1].iter_records(0))
    assert len(first) < 100


def test_prepared_shards_know_the_files_they_were_made_of(folder, tmp_path):
    tokenizer = load_tokenizer(TrainConfig().tokenizer.path)
    config = make_config(folder)
    files = list_source_files(open_corpus(config, tokenizer))
    config.data.prepared_dir = str(tmp_path / "prepared")
    prepare(config, tokenizer)
    assert list_source_files(open_corpus(config, tokenizer)) == files
    # An edit of the same size is prepared anew, and the files of a run that began with it differ.
    (folder / "b.jsonl").write_text(json.dumps({"text": "of B.jsonl"}) + "\n")
    assert prepare(config, tokenizer) == [True, False, True]
    changed = list_source_files(open_corpus(config, tokenizer))
    assert find_file_differences(files, changed)
    # Folders that hold no marks are taken as they are.
    path = tmp_path / "prepared" / "manifest.json"
    path.write_text(json.dumps(without_marks(json.loads(path.read_text()))))
    for entry in (tmp_path / "prepared").glob("*/[0-9]*.json"):
        entry.write_text(json.dumps(without_marks(json.loads(entry.read_text()))))
    listed = list_source_files(open_corpus(config, tokenizer))
    assert [file.version for file in listed["corpus"]] == [FileVersion(23)] * 3
    assert find_file_differences(changed, listed) == []
    assert prepare(config, tokenizer) == [True, True, True]


def prepare(config, tokenizer) -> list[bool]:
    jobs = list_jobs(config, tokenizer)
    results = [write_shard(job) for files in jobs.values() for file in files for job in file]
    write_manifest(config.data, tokenizer, jobs, {r.entry["shard"]: r.entry for r in results})
    return [result.found for result in results]


def without_marks(value):
    if isinstance(value, dict):
        return {key: without_marks(entry) for key, entry in value.items() if key != "marks"}
    return [without_marks(entry) for entry in value] if isinstance(value, list) else value


def test_a_url_with_another_signature_is_the_same_source(server, tmp_path):
    tokenizer = load_tokenizer(TrainConfig().tokenizer.path)
    (server.folder / "a.jsonl").write_text(json.dumps({"text": "before"}) + "\n")
    config = make_config(server.url("a.jsonl?Signature=s3cr3t", "alice:hunter2@"))
    config.data.prepared_dir = str(tmp_path / "prepared")
    assert prepare(config, tokenizer) == [False]
    written = "".join(path.read_text() for path in tmp_path.rglob("*.json"))
    assert not any(secret in written for secret in ("s3cr3t", "alice", "hunter2"))
    config.data.paths = [server.url("a.jsonl?Signature=other", "alice:other@")]
    assert prepare(config, tokenizer) == [True]


def test_messages_about_records_of_a_signed_url_hold_no_secrets(server, tokenizer):
    (server.folder / "a.jsonl").write_text(json.dumps({"text": "before"}) + "\n{bad\n")
    config = make_config(server.url("a.jsonl?Signature=s3cr3t", "alice:hunter2@"))
    config.data.on_bad_record = BadRecordPolicy.skip
    units = open_corpus(config, tokenizer)["corpus"]
    shown = [str(list(unit.iter_records(0))) + unit.describe(3) for unit in units]
    assert any("a.jsonl, line at byte 19: not JSON" in text for text in shown)
    assert not any(secret in str(shown) for secret in ("s3cr3t", "alice", "hunter2"))
