"""Cells: what they are known by, who computes them, and what happens to damaged ones."""

import dataclasses
import json
import multiprocessing
import os
import signal

import pytest

from neobert_train.errors import InputError
from neobert_train.evaluation import cells
from neobert_train.evaluation.cells import Cell, CellStore, Measurement

CELL = Cell("model", "sst2", "data", {"learning_rate": 1e-5}, 3, "org/model@main")
OTHERS = [
    {"model": "other"},
    {"task": "rte"},
    {"data": "other"},
    {"settings": {"learning_rate": 2e-5}},
    {"seed": 4},
]
FOUND = Measurement({"accuracy": 0.5, "score": 0.5}, [1, 0, 1], 2.5, 9.0)


@pytest.mark.parametrize("change", OTHERS)
def test_a_cell_is_known_by_all_that_it_depends_on(change):
    assert dataclasses.replace(CELL, **change).key != CELL.key


def test_a_cell_is_not_another_one_for_the_name_of_its_model():
    assert dataclasses.replace(CELL, label="copy").key == CELL.key


def test_another_version_is_another_cell(monkeypatch):
    before = CELL.key
    monkeypatch.setattr(cells, "VERSION", cells.VERSION + 1)
    assert CELL.key != before


def test_a_measurement_comes_back_as_it_was_saved(tmp_path):
    store = CellStore(tmp_path)
    assert store.load(CELL) is None
    store.save(CELL, FOUND)
    assert CellStore(tmp_path).load(CELL) == FOUND
    failed = Measurement(error="out of memory")
    store.save(CELL, failed)
    assert store.load(CELL) == failed


@pytest.mark.parametrize("damage", ["", "{", '{"sha256": "0", "content": {}}', '{"cell": 1}'])
def test_a_damaged_cell_is_not_there(tmp_path, damage):
    store = CellStore(tmp_path)
    store.save(CELL, FOUND)
    (tmp_path / CELL.file).write_text(damage)
    assert store.load(CELL) is None


def test_cells_of_another_version_are_refused(tmp_path, monkeypatch):
    CellStore(tmp_path)
    monkeypatch.setattr(cells, "VERSION", cells.VERSION + 1)
    with pytest.raises(InputError, match=r"of version 1.*output="):
        CellStore(tmp_path)


def hold(folder, ready, done):
    with CellStore(folder).claim(CELL) as is_mine:
        ready.put(is_mine)
        done.wait(30)


def test_one_process_at_a_time_has_a_cell_and_a_killed_one_leaves_it(tmp_path):
    context = multiprocessing.get_context("fork")
    ready, done = context.Queue(), context.Event()
    process = context.Process(target=hold, args=(tmp_path, ready, done))
    process.start()
    assert ready.get(timeout=30)
    with CellStore(tmp_path).claim(CELL) as is_mine:
        assert not is_mine
    with CellStore(tmp_path).claim(dataclasses.replace(CELL, seed=9)) as is_mine:
        assert is_mine
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    with CellStore(tmp_path).claim(CELL) as is_mine:
        assert is_mine
    assert list(tmp_path.rglob("*.lock")) == []


def test_a_cells_file_says_whose_it_is(tmp_path):
    CellStore(tmp_path).save(CELL, FOUND)
    (file,) = (tmp_path / "sst2").iterdir()
    assert file.name == f"{CELL.key[:32]}.json"
    assert json.loads(file.read_text())["content"]["cell"]["settings"] == CELL.settings
