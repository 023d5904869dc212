"""Comparisons on planted tasks: which cells are computed, by whom, and what comes of them."""

import dataclasses
import gc
import os
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch

from neobert_train.evaluation.candidates import Candidate
from neobert_train.evaluation.cells import CellStore, Measurement
from neobert_train.evaluation.comparison import Comparison, run_comparison
from neobert_train.evaluation.conditions import Conditions
from neobert_train.evaluation.metrics import Scoring
from neobert_train.evaluation.planning import format_plan
from neobert_train.evaluation.results import MEAN, Result, collect_results
from neobert_train.evaluation.tasks import SCORE
from neobert_train.report.evaluation_page import write_results
from neobert_train.report.evaluation_tables import format_value

LABELS = np.arange(200) % 2


@dataclass
class PlantedTask:
    """Two settings with a share of right predictions that goes up with the model's name."""

    name: str = "planted"
    digest: str = "data"
    seeds: tuple = (0, 1)
    rates: dict = field(default_factory=lambda: {"a": 0.9, "b": 0.6, "c": 0.59})
    scoring: Scoring = field(default_factory=lambda: Scoring(("accuracy",)))
    labels: np.ndarray = field(default_factory=lambda: LABELS)
    calls: list = field(default_factory=list)
    seconds: float = 0.0
    error: Exception | None = None

    def list_settings(self):
        return [{"learning_rate": 1e-5}, {"learning_rate": 1e-4}]

    def measure(self, candidate, settings, seed, conditions):
        self.calls.append((candidate.label, settings["learning_rate"], seed))
        time.sleep(self.seconds)
        if self.error is not None and candidate.label == "b":
            raise self.error
        rng = np.random.default_rng([seed, ord(candidate.label)])
        rate = self.rates[candidate.label] - (settings["learning_rate"] > 5e-5) * 0.2
        right = rng.random(len(LABELS)) < rate
        predictions = np.where(right, LABELS, 1 - LABELS)
        return Measurement({SCORE: float(right.mean())}, predictions.tolist())

    def estimate_flops(self, candidate, settings):
        return 1e15


@pytest.fixture(autouse=True)
def fast_cells(monkeypatch):
    """Nothing here survives the loss of power, and no network is left to collect."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    monkeypatch.setattr(gc, "collect", lambda: 0)


def build(folder, tasks, models="abc"):
    candidates = [
        Candidate(name, Path(name), f"hash {name}", f"weights {name}", 512, 1000, False)
        for name in models
    ]
    conditions = Conditions(torch.device("cpu"), bf16=False, batch_tokens=1024)
    return Comparison(candidates, tasks, conditions, CellStore(folder / "cells"), folder / "starts")


def run(comparison, retry_failed=True):
    told = []
    run_comparison(comparison, retry_failed, lambda cell, found, is_new: told.append(is_new))
    return told


def test_a_second_call_computes_what_is_missing(tmp_path):
    task = PlantedTask()
    assert run(build(tmp_path, [task])) == [True] * 12
    assert run(build(tmp_path, [task])) == [False] * 12
    assert len(task.calls) == 12
    next((tmp_path / "cells/planted").glob("*.json")).unlink()
    assert sorted(run(build(tmp_path, [task]))) == [False] * 11 + [True]


def test_several_at_once_compute_each_cell_once_and_wait_for_each_other(tmp_path):
    task = PlantedTask(seconds=0.02)
    counts, comparison = [], build(tmp_path, [task])
    threads = [
        threading.Thread(target=lambda: counts.append(sum(run(comparison)))) for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(task.calls) == len(set(task.calls)) == 12
    assert sum(counts) == 12


def test_a_failed_cell_says_why_stops_no_other_and_is_tried_again(tmp_path):
    task = PlantedTask(error=MemoryError("no memory for 12 GiB"))
    run(build(tmp_path, [task]))
    results = collect_results(build(tmp_path, [task]))
    assert results.find("b", "planted").errors == ("MemoryError: no memory for 12 GiB",)
    assert results.find("b", "planted").value is None
    assert results.find("a", "planted").cells == 4
    task.calls.clear()
    run(build(tmp_path, [task]), retry_failed=False)
    assert task.calls == []
    task.error = None
    run(build(tmp_path, [task]))
    assert len(task.calls) == 4
    assert collect_results(build(tmp_path, [task])).find("b", "planted").errors == ()


def test_the_better_model_is_told_from_two_that_are_alike(tmp_path):
    tasks = [PlantedTask(), PlantedTask("other", rates={"a": 0.8, "b": 0.8, "c": 0.8})]
    comparison = build(tmp_path, tasks)
    run(comparison)
    results = collect_results(comparison)
    rows = [results.find(model, "planted") for model in "abc"]
    assert [row.protocol for row in rows] == ["cross-fitted"] * 3
    assert [row.ties for row in rows] == [True, False, False]
    assert all(results.find(model, "other").ties for model in "abc")
    for row, rate in zip(rows, (0.9, 0.6, 0.59), strict=True):
        assert row.low < rate < row.high
        assert row.maximum >= row.value
        assert row.best["learning_rate"] == 1e-5
        assert row.over_seeds
    mean = results.find("a", MEAN)
    assert mean.value == pytest.approx((rows[0].value + results.find("a", "other").value) / 2)


def test_the_table_depends_neither_on_the_order_of_models_nor_on_that_of_the_grid(
    tmp_path, monkeypatch
):
    task = PlantedTask()
    run(build(tmp_path, [task]))
    first = collect_results(build(tmp_path, [task]))
    other = collect_results(build(tmp_path, [task], models="cba"))
    settings = task.list_settings()[::-1]
    monkeypatch.setattr(PlantedTask, "list_settings", lambda self: settings)
    reversed_grid = collect_results(build(tmp_path, [task]))
    for model in "abc":
        assert first.find(model, "planted") == other.find(model, "planted")
        assert first.find(model, "planted") == reversed_grid.find(model, "planted")


def test_a_model_that_changes_while_it_is_measured_has_no_number(tmp_path):
    task, comparison = PlantedTask(), build(tmp_path, [PlantedTask()], "a")
    (tmp_path / "a").mkdir()
    file = tmp_path / "a/model.safetensors"
    file.write_text("before")
    (candidate,) = comparison.candidates
    candidate = dataclasses.replace(candidate, folder=tmp_path / "a")
    candidate = dataclasses.replace(candidate, marks=candidate.find_marks())
    cell = comparison.list_cells(task, candidate)[0]
    assert comparison.compute(task, candidate, cell).error is None
    file.write_text("changed")
    assert "files of the model changed" in comparison.compute(task, candidate, cell).error


@pytest.mark.parametrize(
    ("low", "high", "shown"),
    [(0.9, 1.0, "95.0 ± 5.0"), (0.85, 0.98, "95.0 [85.0, 98.0]"), (0.89, 1.0, "95.0 ± 5.5")],
)
def test_an_interval_is_written_by_its_ends_where_it_is_lopsided(low, high, shown):
    row = Result("a", "t", protocol="direct", value=0.95, low=low, high=high, over_seeds=True)
    assert format_value(row) == shown


def test_results_are_written_in_every_form(tmp_path):
    comparison = build(tmp_path, [PlantedTask(), PlantedTask("other")])
    run(comparison)
    results = collect_results(comparison)
    write_results(results, tmp_path)
    row = results.find("a", "planted")
    shown = f"{100 * row.value:.1f} ± {50 * (row.high - row.low):.1f}"
    assert f"| a | {shown}† |" in (tmp_path / "results.md").read_text()
    lines = (tmp_path / "results.csv").read_text().splitlines()
    assert len(lines) == 1 + 3 * 3
    assert float(lines[1].split(",")[3]) == row.value
    assert rf"\mathbf{{{100 * row.value:.1f}}}" in (tmp_path / "results.tex").read_text()
    page = (tmp_path / "results.html").read_text()
    assert shown in page
    assert "<svg" in page


def test_a_plan_counts_what_is_left(tmp_path):
    task = PlantedTask()
    text = format_plan(build(tmp_path, [task]))
    assert text.splitlines()[1].split()[:3] == ["planted", "12", "12"]
    # 12e15 operations at 30 % of the fp32 rate of an H100.
    assert float(text.splitlines()[1].split()[3]) == pytest.approx(0.25, rel=0.7)
    run(build(tmp_path, [task], "ab"))
    assert format_plan(build(tmp_path, [task])).splitlines()[1].split()[2] == "4"
