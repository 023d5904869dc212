"""report.html shows what the files of a run hold, and names a damaged one."""

import json
import math
import os
import subprocess
import sys

import pytest

from neobert_train.files import write_checked_json
from neobert_train.report.render import render_report
from neobert_train.run.directory import RunDirectory


@pytest.fixture
def run(tmp_path):
    run = RunDirectory(tmp_path / "run")
    run.create()
    records = [
        {"step": 1, "train/tokens": 5, "train/loss": 3.5, "eval/masked_lm_loss": 4.25},
        {"step": 2, "train/tokens": 10.0, "train/loss": None, "eval/masked_lm_loss": None},
    ]
    run.metrics_file.write_text("".join(json.dumps(record) + "\n" for record in records))
    run.config_file.write_text("output_dir: a<b>&\n")
    return run


def test_values_that_were_not_finite_are_shown_as_such(run):
    report = render_report(run)
    assert "<td>train/loss</td><td>not a finite number</td>" in report
    assert "<td>eval/masked_lm_loss</td><td>not a finite number</td>" in report
    assert "<td>train/tokens</td><td>10</td>" in report
    assert "a&lt;b&gt;&amp;" in report


@pytest.mark.parametrize("entropy", [2.5, math.nan])
def test_the_unigram_entropy_is_drawn_where_it_is_known(run, entropy):
    sample = {"heldout": [], "unigram_entropy": entropy, "num_documents": 0}
    write_checked_json(run.heldout_file, sample, indent=None)
    assert ("unigram entropy" in render_report(run)) == math.isfinite(entropy)


def test_a_probe_is_drawn_with_what_to_compare_it_with(run):
    assert "Probe: party" not in render_report(run)
    with run.metrics_file.open("a") as file:
        file.write(json.dumps({"step": 3, "probe/party": 0.75}) + "\n")
    report = render_report(run)
    assert all(f"<!-- {text} -->" in report for text in ("bag of words", "chance"))
    assert "<!-- Probe: party of the speaker -->" in report
    assert "<td>probe/party</td><td>75.0% (bag of words 67.5%, chance 52.1%)</td>" in report


@pytest.mark.parametrize(
    "name", ["metrics.jsonl", "heldout.json", "environment.json", "config.yaml"]
)
def test_a_damaged_file_is_named_without_a_traceback(run, name):
    file = run.path / name
    file.unlink(missing_ok=True)
    os.mkfifo(file)
    done = subprocess.run(
        [sys.executable, "-m", "neobert_train.report", str(run.path)],
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.startswith(
        f"neobert_train: {file} cannot be read (it is not a regular file)"
    )
    assert "Traceback" not in done.stderr
