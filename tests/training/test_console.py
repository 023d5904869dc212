"""What a run shows: what it is doing, the first step at once, and something every half minute."""

import re
import time

import pytest

from neobert_train.training import console as module
from neobert_train.training.console import Console

RECORD = {"train/loss": 7.5, "train/learning_rate": 1e-3, "train/tokens_per_second": 2000.0}


@pytest.fixture
def console(monkeypatch):
    monkeypatch.setattr(module, "_REFRESH_SECONDS", 0.01)
    console = Console(100, shown=True, progress=True)
    yield console
    console.close()


def test_the_first_step_and_the_logged_ones_are_shown(console, capsys):
    console.announce("reading")
    console.begin_steps(40)
    console.advance(1000, 0.5)
    console.advance(1000, 0.5)
    console.advance(1000, 0.5, RECORD)
    console.say("a word between")
    console.advance(1000, 0.5)
    assert capsys.readouterr().err.splitlines() == [
        "reading ...",
        "step 41/100  2,000 tokens/s  0:30 left",
        "step 43/100  loss 7.5000  lr 1.00e-03  2,000 tokens/s  0:28 left",
        "a word between",
    ]


def test_a_first_step_that_is_logged_is_shown_once(console, capsys):
    console.begin_steps(0)
    console.advance(1000, 0.5, RECORD)
    assert capsys.readouterr().err.splitlines() == [
        "step 1/100  loss 7.5000  lr 1.00e-03  2,000 tokens/s  0:50 left"
    ]


def test_silence_is_broken_by_the_next_step_or_by_what_takes_so_long(console, capsys, monkeypatch):
    console.begin_steps(0)
    console.advance(1000, 0.5)
    capsys.readouterr()
    time.sleep(0.05)
    assert capsys.readouterr().err == ""
    console.note("the evaluation after step 1")
    monkeypatch.setattr(module, "_LONGEST_SILENCE_SECONDS", 0.2)
    deadline = time.monotonic() + 10
    shown = ""
    while "so far" not in shown:
        assert time.monotonic() < deadline
        shown += capsys.readouterr().err
        time.sleep(0.01)
    assert shown.startswith("the evaluation after step 1: 0:00 so far\n")
    console.close()
    time.sleep(0.3)
    capsys.readouterr()
    console.advance(1000, 0.5)
    assert re.match(r"step 2/100  2,000 tokens/s", capsys.readouterr().err)


def test_another_process_shows_nothing(capsys):
    console = Console(100, shown=False, progress=True)
    console.announce("reading")
    console.begin_steps(0)
    console.advance(1000, 0.5, RECORD)
    console.close()
    assert capsys.readouterr() == ("", "")
