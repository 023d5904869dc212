"""Fixtures for tests of remote reading."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from misbehaving_server import MisbehavingServer

from neobert_train.data import retries


@pytest.fixture
def server(tmp_path: Path) -> Iterator[MisbehavingServer]:
    """A web server over `tmp_path / "served"` that misbehaves as the test scripts it."""
    with MisbehavingServer(tmp_path / "served") as running:
        yield running


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds of every pause before a retry in this process, none of which is waited."""
    taken: list[float] = []
    monkeypatch.setattr(retries, "_sleep", taken.append)
    monkeypatch.setattr(retries, "_last_warnings", {})
    return taken
