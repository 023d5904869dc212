"""The process group of engines that tests build in this process."""

from collections.abc import Iterator

import pytest
import torch

from neobert_train.distributed import Collectives
from neobert_train.world import World


@pytest.fixture(scope="session")
def world() -> Iterator[World]:
    """One process; DeepSpeed remembers its group, so that all tests share one."""
    collectives = Collectives(World(), torch.device("cpu"))
    yield collectives.world
    collectives.close()
