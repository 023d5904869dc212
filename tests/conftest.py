"""Fixtures that more than one folder of tests uses."""

import contextlib
import gc
import logging
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from neobert_train.config.schema import TrainConfig
from neobert_train.machine.threads import limit_spinning
from neobert_train.storage import retries
from neobert_train.tokenizers.loading import load_tokenizer
from neobert_train.tokenizers.text_tokenizer import TextTokenizer
from support.configs import compose
from support.misbehaving_server import MisbehavingServer
from support.programs import STARTS_ANEW, kill_forked


def pytest_configure(config: pytest.Config) -> None:
    """Set what this process and those that tests start go by.

    Threads that wait give their core away, as in the program; it is settled before torch is imported.
    GPUs are hidden unless their tests are asked for, and Triton's kernels interpreted; SIGHUP is not
    ignored, as it is under nohup. Whoever asks for more than the quick tests has time for programs that
    are started anew.
    """
    if not config.getoption("numprocesses", default=None):  # the process that only hands them out
        gc.disable()  # while tests are imported
    limit_spinning()
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    if config.getoption("markexpr") != "gpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
        os.environ["TRITON_INTERPRET"] = "1"
    if config.getoption("markexpr") != "not slow":
        os.environ[STARTS_ANEW] = "1"


def pytest_collection_finish() -> None:
    """Keep the garbage collector from what the libraries have loaded: a third of a second at a time."""
    gc.freeze()
    gc.enable()


def pytest_sessionfinish() -> None:
    """Let libraries clear up after themselves, some of which complain otherwise."""
    gc.unfreeze()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: Any) -> Iterator[Any]:
    """End the processes that a test which failed has left, so that they slow down no other test."""
    report = yield
    if report.failed and "tmp_path" in getattr(item, "funcargs", {}):
        folder = str(item.funcargs["tmp_path"])
        for process in psutil.process_iter(["cmdline", "cwd"]):
            places = [process.info["cwd"] or "", *(process.info["cmdline"] or ())]
            if any(folder in place for place in places):
                with contextlib.suppress(psutil.Error):
                    process.kill()
        kill_forked()
    return report


@pytest.fixture(scope="session")
def tokenizer() -> TextTokenizer:
    """The shipped bert-base-uncased tokenizer."""
    return load_tokenizer("bert-base-uncased")


@pytest.fixture
def make_config(tmp_path: Path):
    """Compose `+experiment=smoke` with overrides into a typed config that runs in `tmp_path`."""

    def make(*overrides: str) -> TrainConfig:
        config = compose("train", "+experiment=smoke", "data.num_workers=0", *overrides)
        config.output_dir = str(tmp_path / "run")
        return config

    return make


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A Hugging Face Hub on localhost, which this process takes for the real one."""
    from neobert_train.hub import REQUEST_SECONDS, bound_waits
    from support.local_hub import LocalHub

    logging.getLogger("huggingface_hub").setLevel(logging.CRITICAL)
    monkeypatch.setattr(logging.getLogger("neobert_train"), "propagate", True)
    with LocalHub() as hub:
        hub.use_here(monkeypatch, tmp_path / "home")
        yield hub
    bound_waits(REQUEST_SECONDS)


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
