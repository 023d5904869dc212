"""What a run pushes, when, and what it says of what it cannot push."""

import sys
import time
from dataclasses import replace

import pytest

from neobert_train.config.checks import find_problems
from neobert_train.export import publisher as module
from neobert_train.export.publisher import Publisher
from neobert_train.files import to_json
from neobert_train.run.directory import RunDirectory
from support.local_hub import READ_ONLY_TOKEN

FILES = ("model.safetensors", "optimizer.safetensors", "state.json", "config.yaml")
# In place of `export`: writes down its arguments and those variables that it must not have.
EXPORT = """
import os, pathlib, sys, time
log, code, seconds = sys.argv[1:4]
names = [name for name in ("RANK", "WORLD_SIZE") if name in os.environ]
with open(log, "a") as file:
    print(*sys.argv[4:], *names, file=file)
folder = [a for a in sys.argv if a.startswith("output=")][0].removeprefix("output=")
pathlib.Path(folder).mkdir()
time.sleep(float(seconds))
print("neobert_train: the disk is full")
sys.exit(int(code))
"""


@pytest.fixture
def make_publisher(hub, make_config, tmp_path, monkeypatch):
    """Build a publisher of a run with checkpoints 0, 1, 2 and 3, whose exports end with a code."""
    run = RunDirectory(tmp_path / "run")
    for step in range(4):
        run.checkpoint(step).mkdir(parents=True)
        files = {name: {"bytes": 1, "sha256": f"{step:064x}"} for name in FILES}
        text = to_json({"step": step, "files": files})
        (run.checkpoint(step) / "manifest.json").write_text(text)

    def make(*overrides, code=0, seconds=0):
        command = [sys.executable, "-c", EXPORT, str(tmp_path / "log"), str(code), str(seconds)]
        monkeypatch.setattr(module, "_build_command", lambda: command)
        config = make_config("hub.repository=org/name", "checkpoint.keep_every_steps=2", *overrides)
        return Publisher(config, run)

    return make


def test_an_export_gives_way_to_training():
    assert module._build_command()[:3] == ["nice", sys.executable, "-m"]


def read_log(tmp_path):
    log = tmp_path / "log"
    return log.read_text().splitlines() if log.exists() else []


def never():
    return None


def test_what_is_kept_is_pushed_meanwhile_and_the_newest_as_main_at_the_end(
    make_publisher, tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv("RANK", "0")
    publisher = make_publisher("hub.private=true", "hub.license=mit")
    run = tmp_path / "run"
    publisher.refresh()
    while len(read_log(tmp_path)) < 2:
        time.sleep(0.01)
    publisher.finish(never)
    rest = f"license=mit step={{}} private=true output={run}/.tmp-upload-"
    begin = f"run_dir={run} push_to_hub=org/name"
    wanted = [
        f"{begin} revision=step-00000000 {rest.format(0)}",
        f"{begin} revision=step-00000002 {rest.format(2)}",
        f"{begin} {rest.format(3)}",
    ]
    for line, expected in zip(read_log(tmp_path), wanted, strict=True):
        assert line.startswith(expected)
        assert "RANK" not in line
    assert capsys.readouterr().out.endswith("on the Hub       org/name\n")
    assert not list(run.glob(".tmp-*"))


def test_what_is_on_the_hub_is_not_pushed_again(make_publisher, hub, tmp_path):
    for branch, step in {"step-00000000": 0, "main": 3}.items():
        mark = f"sha256 of the checkpoint's weights: {step:064x}"
        hub.write("org/name", {}, revision=branch, message=mark)
    make_publisher().finish(never)
    (line,) = read_log(tmp_path)
    assert "revision=step-00000002" in line


def test_a_failed_push_is_tried_again_and_reported_with_its_command(
    make_publisher, tmp_path, monkeypatch, caplog
):
    monkeypatch.setattr(module, "_LAST_ATTEMPTS", 2)
    publisher = make_publisher("checkpoint.keep_every_steps=0", code=2)
    publisher.finish(never)
    assert len(read_log(tmp_path)) == 2
    first, last = (record.getMessage() for record in caplog.records)
    assert first == (
        "not pushed to org/name on the Hub yet: main: the disk is full; tries again until the run ends"
    )
    assert "not pushed to org/name on the Hub: main. The same command" in last
    command = (
        f"python -m neobert_train export run_dir={tmp_path / 'run'} push_to_hub=org/name step=3"
    )
    assert last.splitlines()[-1].strip() == command


def test_a_damaged_checkpoint_does_not_keep_the_others_from_the_hub(
    make_publisher, tmp_path, monkeypatch, caplog
):
    monkeypatch.setattr(module, "_LAST_ATTEMPTS", 1)
    (tmp_path / "run" / "checkpoints" / "step-00000000" / "manifest.json").write_text("{}")
    make_publisher().finish(never)
    assert len(read_log(tmp_path)) == 2
    assert "step-00000000 is damaged" in caplog.text
    assert "not pushed to org/name on the Hub: step-00000000. The same" in caplog.text


@pytest.mark.parametrize("ends", ["wait_seconds", "signal"])
def test_a_push_that_hangs_is_ended(make_publisher, tmp_path, caplog, ends):
    publisher = make_publisher("hub.wait_seconds=2", seconds=60)
    started = time.monotonic()

    def find_reason():
        return "SIGTERM" if ends == "signal" and read_log(tmp_path) else None

    publisher.finish(find_reason)
    assert time.monotonic() - started < 10
    assert "org/name on the Hub: step-00000000, step-00000002, main." in caplog.text
    assert not list((tmp_path / "run").glob(".tmp-*"))


def test_a_push_without_end_is_tried_again(make_publisher, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(module, "_LONGEST_PUSH", 1.0)
    monkeypatch.setattr(module, "_LAST_ATTEMPTS", 2)
    make_publisher("checkpoint.keep_every_steps=0", seconds=60).finish(never)
    assert len(read_log(tmp_path)) == 2
    assert "not pushed to org/name on the Hub yet: main: it was killed" in caplog.text


def test_without_permission_every_try_is_short(make_publisher, monkeypatch, tmp_path, caplog):
    monkeypatch.setenv("HF_TOKEN", READ_ONLY_TOKEN)
    monkeypatch.setattr(module, "_LAST_ATTEMPTS", 2)
    make_publisher().finish(never)
    assert read_log(tmp_path) == []
    assert "the token may not do this with org/name" in caplog.text
    assert "planted-" not in caplog.text


def test_a_run_that_pushed_nothing_has_nothing_to_report(make_publisher, caplog):
    make_publisher().close()
    assert caplog.text == ""


def test_a_killed_run_leaves_nothing_behind_for_long(make_publisher, tmp_path):
    (tmp_path / "run" / ".tmp-upload-1").mkdir()
    make_publisher().finish(never)
    assert not list((tmp_path / "run").glob(".tmp-*"))


def test_a_wrong_repository_is_told_before_anything_starts(make_config):
    config = make_config("hub.repository=org/name")
    assert find_problems(config) == []
    config.checkpoint.save_every_steps, config.checkpoint.keep_every_steps = 70, 100
    (problem,) = find_problems(config)
    assert problem.endswith("write checkpoint.keep_every_steps=70")
    config.checkpoint.keep_every_steps = 0
    (problem,) = find_problems(replace(config, hub=replace(config.hub, repository="a/b/c")))
    assert (
        "hub.repository=a/b/c is no repository of the Hub: write hub.repository=org/name" in problem
    )
