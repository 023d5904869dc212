"""A run continues with the files it began with, or with those that are meant; on every host alike."""

import json
import os
import subprocess
from dataclasses import replace

import pytest

from neobert_train.config.data_schema import DataConfig, MixtureSourceConfig, SourceKind
from neobert_train.config.saved import dump_config
from neobert_train.config.schema import Resume, TrainConfig
from neobert_train.data.corpus import list_source_files, open_corpus, to_json
from neobert_train.errors import InputError
from neobert_train.files import write_checked_json
from neobert_train.run.directory import RunDirectory
from neobert_train.tokenizers.loading import SHIPPED_TOKENIZER, load_tokenizer
from neobert_train.training.starting_point import check_source_files
from support.programs import describe_launch, find_python


def write(folder, **texts):
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        (folder / f"{name}.jsonl").write_text(json.dumps({"text": text}) + "\n")
    return folder


def make_config(*paths, resume=Resume.auto, **data) -> TrainConfig:
    paths = [str(path) for path in paths]
    config = DataConfig(source=SourceKind.files, paths=paths, column="text", **data)
    return TrainConfig(data=config, resume=resume)


def open_units(config):
    return open_corpus(config, load_tokenizer(config.tokenizer.path))


@pytest.fixture
def texts(tmp_path):
    return write(tmp_path / "texts", a="of a", b="of b")


@pytest.fixture
def run(tmp_path, texts):
    """What a run that reads `texts` leaves of its files and settings."""
    return begin(tmp_path / "run", make_config(texts))


def begin(folder, config):
    run = RunDirectory(folder)
    run.create()
    files = to_json(list_source_files(open_units(config)))
    write_checked_json(run.sources_file, files)
    run.config_file.write_text(dump_config(config))
    return run


def check(run, config):
    check_source_files(config, run, open_units(config))


def refuse(run, config) -> str:
    with pytest.raises(InputError) as error:
        check(run, config)
    return str(error.value)


@pytest.mark.parametrize("resume", [Resume.auto, Resume.changed])
def test_edited_files_are_refused_also_under_changed_with_what_to_do(run, texts, resume):
    check(run, make_config(texts, resume=resume))
    write(texts, b="of B")
    for settings in ({}, {"min_tokens": 3, "shuffle_window": 7}):
        message = refuse(run, make_config(texts, resume=resume, **settings))
        assert "source 'corpus': b.jsonl (content hash " in message
        assert f"with edited files of the same names, remove {run.sources_file}" in message
    run.sources_file.unlink()
    check(run, make_config(texts, resume=resume))


def test_a_new_file_is_refused_where_no_setting_names_it(run, texts):
    write(texts, c="of c")
    message = refuse(run, make_config(texts, resume=Resume.changed))
    assert "source 'corpus': 3 files instead of 2, with c.jsonl" in message
    assert "name them by other data settings and write resume=changed" in message


def test_files_that_moved_are_still_checked(run, tmp_path, caplog):
    moved = write(tmp_path / "moved", a="of a", b="of b")
    config = make_config(moved, resume=Resume.changed)
    check(run, config)
    assert caplog.messages == []
    write(moved, b="of B")
    assert "b.jsonl (content hash " in refuse(run, config)


def test_other_files_by_other_settings_are_meant_and_listed(run, tmp_path, caplog):
    others = write(tmp_path / "others", b="another", c="of c", d="of d")
    check(run, make_config(others, resume=Resume.changed))
    assert caplog.messages == [
        "continuing with other files of the source 'corpus': 3 files instead of 2, with c.jsonl, "
        "d.jsonl, without a.jsonl"
    ]


def test_only_the_sources_whose_settings_changed_may_have_other_files(tmp_path, texts, caplog):
    others = write(tmp_path / "others", x="of x")
    sources = {
        name: MixtureSourceConfig(source=SourceKind.files, paths=[str(folder)], column="text")
        for name, folder in (("one", texts), ("other", others))
    }
    run = begin(tmp_path / "run", make_config(mixture=sources))
    write(others, y="of y")
    new = write(tmp_path / "new", n="of n")
    sources["one"] = replace(sources["one"], paths=[str(new)])
    sources["third"] = replace(sources["one"])
    message = refuse(run, make_config(mixture=sources, resume=Resume.changed))
    assert "source 'other': 2 files instead of 1, with y.jsonl" in message
    assert "'one'" not in message
    (others / "y.jsonl").unlink()
    check(run, make_config(mixture=sources, resume=Resume.changed))
    assert "files of the source 'one': 1 files instead of 2, with n.jsonl" in caplog.text


COMPARE = """
import sys
from neobert_train.config.data_schema import DataConfig, SourceKind
from neobert_train.config.schema import TrainConfig
from neobert_train.data.corpus import open_corpus
from neobert_train.distributed import Collectives, find_device
from neobert_train.errors import InputError
from neobert_train.tokenizers.loading import SHIPPED_TOKENIZER, load_tokenizer
from neobert_train.training.starting_point import check_same_files, check_same_tokenizer
from neobert_train.world import World

world = World(rank=int(sys.argv[1]), world_size=2)
collectives = Collectives(world, find_device(world))
data = DataConfig(source=SourceKind.files, paths=["texts"], column="text")
for name in ("bert-base-uncased", "vocab/tokenizer.json"):
    tokenizer = load_tokenizer(name)
    try:
        check_same_tokenizer(tokenizer, collectives)
        print("no difference", flush=True)
    except InputError as error:
        print(error, flush=True)
for folder in sys.argv[2:]:
    data.paths = [folder]
    try:
        check_same_files(open_corpus(TrainConfig(data=data), tokenizer), collectives)
        print("no difference", flush=True)
    except InputError as error:
        print(error, flush=True)
collectives.close()
"""


def test_hosts_with_other_files_are_told_the_first_difference(tmp_path):
    """Two processes that see other disks under the same paths, as on two hosts."""
    folders = ["same", "edited", "more"]
    for rank in range(2):
        disk = tmp_path / str(rank)
        write(disk / "same", a="of a")
        write(disk / "edited", a=["of a", "of A"][rank])
        write(disk / "more", **{name: f"of {name}" for name in ["a", "ab"][rank]})
        (disk / "vocab").mkdir()
        content = json.loads((SHIPPED_TOKENIZER / "tokenizer.json").read_text(encoding="utf-8"))
        content["normalizer"]["lowercase"] = not rank
        (disk / "vocab/tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    launcher = describe_launch()
    processes = [
        subprocess.Popen(
            [find_python(), "-c", COMPARE, str(rank), *folders],
            cwd=tmp_path / str(rank),
            env={**os.environ, **launcher, "RANK": str(rank)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    first, second = (process.communicate(timeout=300)[0] for process in processes)
    assert first == second
    before, tokenizers, *differences = first.split("no difference\n")
    assert before == ""
    assert "different tokenizers under tokenizer.path=vocab/tokenizer.json" in tokenizers
    assert "process 1 on " in differences[0]
    assert "source 'corpus': a.jsonl (content hash " in differences[0]
    assert "source 'corpus': 2 files instead of 1, with b.jsonl" in differences[0]
