"""Fixtures that more than one folder of tests uses."""

import os
from pathlib import Path

import pytest

from neobert_train.config.schema import TrainConfig
from neobert_train.config.store import compose_config, to_typed
from neobert_train.tokenizers.loading import load_tokenizer
from neobert_train.tokenizers.text_tokenizer import TextTokenizer


def pytest_configure(config: pytest.Config) -> None:
    """Hide GPUs, also from the processes that tests start, unless their tests are asked for."""
    if config.getoption("markexpr") != "gpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


@pytest.fixture(scope="session")
def tokenizer() -> TextTokenizer:
    """The shipped bert-base-uncased tokenizer."""
    return load_tokenizer("bert-base-uncased")


@pytest.fixture
def make_config(tmp_path: Path):
    """Compose `+experiment=smoke` with overrides into a typed config that runs in `tmp_path`."""

    def make(*overrides: str) -> TrainConfig:
        base = ["+experiment=smoke", f"output_dir={tmp_path / 'run'}", "data.num_workers=0"]
        return to_typed("train", compose_config("train", [*base, *overrides]))

    return make
