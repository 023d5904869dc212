"""The files a run began with, and those that are there when it goes on."""

import json

import pytest

from neobert_train.config.data_schema import DataConfig, SourceKind
from neobert_train.config.schema import TrainConfig
from neobert_train.data.corpus import find_changed_files, list_source_files, open_corpus


@pytest.fixture
def folder(tmp_path):
    for name in ("a.jsonl", "b.jsonl", "c.jsonl"):
        (tmp_path / name).write_text(json.dumps({"text": f"of {name}"}) + "\n")
    return tmp_path


def list_files(folder, tokenizer):
    data = DataConfig(source=SourceKind.files, paths=[str(folder)], column="text")
    return list_source_files(open_corpus(TrainConfig(data=data), tokenizer))


def test_unchanged_files_are_the_same_in_another_place(folder, tokenizer):
    before = list_files(folder, tokenizer)
    assert [name for name, _ in before["corpus"]] == ["a.jsonl", "b.jsonl", "c.jsonl"]
    written = json.loads(json.dumps(before))
    assert find_changed_files(written, list_files(folder, tokenizer)) == []


def test_every_change_is_named(folder, tokenizer):
    before = list_files(folder, tokenizer)
    with open(folder / "b.jsonl", "a") as file:
        file.write("\n")
    (change,) = find_changed_files(before, list_files(folder, tokenizer))
    assert change == "source 'corpus': b.jsonl had 23 bytes, and has 24"
    (folder / "c.jsonl").rename(folder / "d.jsonl")
    changes = find_changed_files(before, list_files(folder, tokenizer))
    assert changes[1:] == ["source 'corpus': d.jsonl in the place of c.jsonl"]
    (folder / "e.jsonl").write_text('{"text": "new"}\n')
    (change,) = find_changed_files(before, list_files(folder, tokenizer))
    assert change == "source 'corpus': 3 files then, 4 now"
