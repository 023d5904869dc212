"""Wrong input to a training run: exit code 2, the file and the mend named, nothing begun."""

import json
import shutil

import pytest

from support.programs import run_command
from support.small_vocabulary import list_small_settings

GOOD = "\n".join(
    json.dumps({"text": f"speech {n} about the union and the people " * 30}) for n in range(240)
)
FEW = [
    "trainer.max_steps=2", "data.num_workers=0", "logging.report=false", "data=files",
    *list_small_settings(),
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("none.jsonl", None, "no such file"),
        ("empty.jsonl", b"", "is empty"),
        ("bad.jsonl", b"{broken\n" + GOOD.encode(), "bad.jsonl, line 1: not JSON"),
        ("latin.jsonl", b'{"text": "caf\xe9"}\n', "line 1: not UTF-8 (byte 0xe9)"),
        ("key.jsonl", b'{"body": "x"}\n', "data.column=... with one of body"),
        ("fake.parquet", b"PAR1 no parquet", "cannot be read as parquet"),
    ],
)
def test_a_file_that_cannot_be_trained_on(tmp_path, name, content, words):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    output = run_command(
        "+experiment=smoke", *FEW, f"output_dir={tmp_path / 'run'}", f"data.paths=[{tmp_path / name}]",
        code=2,
    )  # fmt: skip
    assert words in output
    assert "Traceback" not in output
    assert not (tmp_path / "run").exists()


def test_a_bad_line_far_inside_stops_with_a_checkpoint_and_skipping_goes_on(tmp_path):
    file, run = tmp_path / "texts.jsonl", tmp_path / "run"
    lines = GOOD.splitlines()
    file.write_text("\n".join([*lines[:40], "{broken", *lines[40:]]))
    settings = [
        "+experiment=smoke", *FEW, f"output_dir={run}", f"data.paths=[{file}]",
        "trainer.max_steps=40", "data.shuffle_window=1", "data.lookahead_documents=4",
        "batch.global_batch_tokens=1024", "evaluation.max_tokens=0", "checkpoint.save_every_steps=40",
    ]  # fmt: skip
    output = run_command(*settings, code=2)
    assert f"{file}, line 41: not JSON" in output
    assert "data.on_bad_record=skip" in output
    (checkpoint,) = (run / "checkpoints").iterdir()
    assert int(checkpoint.name[5:]) >= 1
    output = run_command(*settings, "data.on_bad_record=skip")
    assert "Done: 40 steps" in output
    assert output.count(f"WARNING: {file}, line 41: not JSON") == 1
    assert "left out, as are all that cannot be read (data.on_bad_record=skip)" in output
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records] == list(range(1, 41))
    assert records[-1]["data/bad_records"] >= 1


def test_a_tokenizer_that_does_not_exist(tmp_path):
    output = run_command(
        "+experiment=smoke", f"output_dir={tmp_path / 'run'}", "tokenizer.path=nobody/nothing",
        code=2, HF_HUB_OFFLINE="1",
    )  # fmt: skip
    assert "tokenizer.path=bert-base-uncased" in output
    assert not (tmp_path / "run").exists()


def test_weights_of_another_shape(finished_run, tmp_path):
    output = run_command(
        "+experiment=smoke", f"output_dir={tmp_path / 'run'}", f"init_from={finished_run}",
        "model.hidden_size=32", code=2,
    )  # fmt: skip
    assert f"the weights of init_from={finished_run} are those of another model" in output
    assert "write model.hidden_size=64" in output
    assert not (tmp_path / "run").exists()


def test_a_kernel_that_cannot_run_here(tmp_path):
    output = run_command(
        "+experiment=smoke", f"output_dir={tmp_path / 'run'}", "model.attention=xformers",
        code=2, CUDA_VISIBLE_DEVICES="",
    )  # fmt: skip
    assert "runs on CUDA devices only" in output


def test_damaged_files_of_a_run_are_named_and_their_fixes_work(finished_run, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(finished_run, run)
    settings = [
        "+experiment=smoke", f"output_dir={run}", "trainer.max_steps=4", "data.num_workers=0",
        "logging.report=false",
    ]  # fmt: skip
    kept = {}
    for name, fix in {
        "metrics.jsonl": "restore the file, or remove the line",
        "sources.json": "restore it, or remove it if the files of the data are still the same",
        "heldout.json": "remove it, and the run looks for held-out documents again",
        "environment.json": "remove it; nothing but this list is lost",
    }.items():
        content = (run / name).read_text()
        kept[name] = content
        damaged = "{\n" + content if name == "metrics.jsonl" else content.replace("1", "2", 1)
        (run / name).write_text(damaged)
        output = run_command(*settings, code=2)
        place = "metrics.jsonl, line 1 is damaged" if name == "metrics.jsonl" else "cannot be read"
        assert f"{run / name}" in output
        assert place in output
        assert fix in output
        assert "Traceback" not in output
        (run / name).unlink()
    assert "Done: 4 steps" in run_command(*settings)
    for name in ("sources.json", "heldout.json"):
        assert (run / name).read_text() == kept[name]


def test_nothing_held_out(tmp_path):
    output = run_command(
        "+experiment=smoke", f"output_dir={tmp_path / 'run'}", "data.heldout_fraction=1e-9", code=2
    )
    assert "raise data.heldout_fraction" in output
    assert not (tmp_path / "run").exists()


def test_no_secret_of_the_environment_reaches_the_run_directory(finished_run):
    for path in finished_run.rglob("*"):
        if path.is_file():
            assert b"planted-secret" not in path.read_bytes(), path


def test_every_file_of_a_run_is_text_or_safetensors(finished_run):
    kinds = {path.suffix for path in finished_run.rglob("*") if path.is_file()}
    assert kinds <= {".json", ".jsonl", ".yaml", ".html", ".safetensors", "", ".md", ".py"}
    assert len(list((finished_run / "checkpoints").iterdir())) == 2
    assert (finished_run / "report.html").read_text().count("<svg") == 6


def test_wandb_without_a_network_records_offline_and_keeps_the_key_to_itself(tmp_path):
    pytest.importorskip("wandb")
    run, key = tmp_path / "run", "0123456789abcdef" * 2 + "01234567"
    output = run_command(
        "+experiment=smoke", f"output_dir={run}", "trainer.max_steps=2", "logging=wandb",
        "logging.report=false", "data.num_workers=0", *list_small_settings(), cwd=tmp_path,
        WANDB_API_KEY=key, WANDB_BASE_URL="http://127.0.0.1:9",
    )  # fmt: skip
    assert "W&B does not start online" in output
    assert "Done: 2 steps" in output
    # One W&B run, whose name says when it began, so that it is no other run's of the same name.
    began = json.loads((run / "environment.json").read_text())["content"][0]["started"]
    name = "run-" + "".join(filter(str.isdigit, began))
    assert [path.name.split("-", 3)[3] for path in (run / "wandb").glob("offline-run-*")] == [name]
    assert key not in output
    for path in run.rglob("*"):
        if path.is_file():
            assert key.encode() not in path.read_bytes(), path
