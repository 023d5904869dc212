"""Several runs in one report: their last values, and the settings in which they differ."""

import json
import subprocess
import sys

import pytest

from neobert_train.config.saved import dump_config
from neobert_train.errors import InputError
from neobert_train.report.comparison import render_comparison, write_comparison
from neobert_train.run.directory import RunDirectory
from support.configs import compose


def write_run(folder, loss, *overrides):
    run = RunDirectory(folder)
    run.create()
    config = compose("train", "+experiment=smoke", *overrides)
    config.output_dir = str(folder)
    run.config_file.write_text(dump_config(config))
    records = [
        {"step": 1, "train/tokens": 10, "train/loss": 9.0},
        {"step": 2, "train/tokens": 20, "train/loss": loss, "eval/masked_lm_loss": loss},
    ]
    run.metrics_file.write_text("".join(json.dumps(record) + "\n" for record in records))
    return run


def test_what_differs_is_shown_and_what_does_not_is_not(tmp_path):
    runs = [
        write_run(tmp_path / "first", 5.25, "optimizer.lr=0.002"),
        write_run(tmp_path / "second", None, "optimizer.lr=0.004", "scheduler=constant"),
    ]
    file = write_comparison(runs)
    assert file == tmp_path / "comparison.html"
    text = file.read_text()
    assert "<td>train/loss</td><td>5.2500</td><td>not a finite number</td>" in text
    assert "<td>optimizer.lr</td><td>0.002</td><td>0.004</td>" in text
    assert "<td>scheduler.kind</td><td>cosine</td><td>constant</td>" in text
    assert "<td>scheduler.decay_fraction</td><td>0.9</td><td></td>" in text
    assert "optimizer.eps" not in text
    assert text.count("<svg") == 2


def test_runs_of_one_name_are_told_apart(tmp_path):
    runs = [write_run(tmp_path / name / "run", 5.0) for name in ("a", "b<i>")]
    text = render_comparison(runs)
    assert f"<td>{tmp_path}/a/run</td>" in text
    assert "b&lt;i&gt;/run" in text


def test_a_run_without_metrics_is_named(tmp_path):
    runs = [write_run(tmp_path / "first", 5.0), RunDirectory(tmp_path / "second")]
    with pytest.raises(InputError, match="second holds no metrics yet"):
        render_comparison(runs)


def test_names_are_drawn_as_they_are(tmp_path):
    runs = [write_run(tmp_path / name, 5.0) for name in (r"p$\frac$q", "_under", "日本")]
    text = render_comparison(runs)
    assert "_under -->" in text
    assert text.count("<svg") == 2


def test_metrics_without_tokens_are_left_out_of_the_curves(tmp_path):
    runs = [write_run(tmp_path / name, 5.0) for name in ("first", "second")]
    runs[1].metrics_file.write_text('{"step": 1, "train/loss": 9.0}\n')
    assert "<td>second</td>" in render_comparison(runs)


def test_a_run_is_not_compared_with_itself(tmp_path):
    run = write_run(tmp_path / "first", 5.0)
    with pytest.raises(InputError, match="named twice"):
        render_comparison([run, RunDirectory(tmp_path / "other" / ".." / "first")])


@pytest.mark.parametrize("arguments", [["missing"], [""], ["file", "file/x"]])
def test_what_is_no_run_directory_is_told(tmp_path, arguments):
    (tmp_path / "file").write_text("x")
    done = subprocess.run(
        [sys.executable, "-m", "neobert_train.report", *arguments],
        capture_output=True, text=True, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 2
    assert "is no run directory: it holds no config.yaml" in done.stderr
    assert not list(tmp_path.glob("*.html"))
