"""Small embedders, trained in the process of the tests."""

import pytest
import torch

from neobert_train.tokenizers.loading import load_tokenizer
from neobert_train.tuning.embedder_folder import EmbedderFolder
from neobert_train.tuning.embedding import Surroundings, train_embedder
from support.configs import compose
from support.pairs import make_rows, write_neobert, write_rows
from support.small_vocabulary import build_small_tokenizer


@pytest.fixture(scope="session")
def tokenizer():
    return load_tokenizer(str(build_small_tokenizer()))


@pytest.fixture(scope="session")
def pairs(tmp_path_factory):
    """A file of 48 rows with anchor, positive and negative."""
    return write_rows(tmp_path_factory.mktemp("pairs") / "pairs.jsonl", make_rows(48))


@pytest.fixture(scope="session")
def neobert(tmp_path_factory, tokenizer):
    """An exported NeoBERT with random weights."""
    return write_neobert(tmp_path_factory.mktemp("exported") / "neobert", tokenizer)


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch):
    """Variables that DeepSpeed has set in this process are none of a trainer's."""
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(autouse=True)
def one_thread():
    """The models are tiny."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Training:
    """Trains embedders on the pairs, and keeps what was shown."""

    def __init__(self, pairs):
        self._pairs, self.records = pairs, []

    def compose(self, model, output, *overrides):
        """The settings of a training of 9 steps, 3 a pass."""
        return compose(
            "embed", f"model={model}", f"output={output}", f"paths=[{self._pairs}]",
            "negatives=[negative]", "batch_size=16", "mini_batch_size=6", "epochs=3", "lr=1e-3",
            "precision=fp32", "log_every_steps=1", *overrides,
        )  # fmt: skip

    def __call__(self, model, output, *overrides, stop_after=None, fail_after=None):
        """Train; returns the result, None where it was stopped after so many steps."""
        config = self.compose(model, output, *overrides)
        folder, asked = EmbedderFolder(config.output), []

        def find_stop():
            asked.append(1)
            if len(asked) == fail_after:
                raise ZeroDivisionError
            return "SIGTERM" if len(asked) == stop_after else None

        def show(record, steps, seconds):
            self.records.append(record)

        around = Surroundings(torch.device("cpu"), lambda: None, find_stop, lambda text: None, show)
        try:
            folder.claim()
            folder.check_settings(config)
            return train_embedder(config, folder, around)
        finally:
            folder.release()


@pytest.fixture
def train(pairs):
    """Trains an embedder: `train(model, output, *overrides)`."""
    return Training(pairs)
