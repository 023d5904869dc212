"""What a trainer continues from comes back bit for bit, and runs nothing when it is read."""

import random

import numpy as np
import pytest
import torch
from torch import nn

from neobert_train.errors import InputError
from neobert_train.tuning import trainer_state
from neobert_train.tuning.trainer_state import (
    load_optimizer,
    load_random_states,
    save_optimizer,
    save_random_states,
)


class Taught:
    """A small network, its optimiser and schedule, after some steps."""

    def __init__(self, steps, width=3):
        torch.manual_seed(0)
        self.network = nn.Sequential(nn.Linear(width, width), nn.Linear(width, 1), nn.Linear(1, 1))
        groups = [
            {"params": [w for w in self.network.parameters() if w.dim() > 1]},
            {"params": [w for w in self.network.parameters() if w.dim() == 1], "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.AdamW(groups, lr=0.1, weight_decay=0.1)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer, lambda step: 1 / (1 + step)
        )
        self.names = {weight: name for name, weight in self.network.named_parameters()}
        self.learn(steps)

    def learn(self, steps):
        for _ in range(steps):
            self.optimizer.zero_grad()
            # The last layer takes no part, and has no moments.
            self.network[:2](torch.randn(4, self.network[0].in_features)).square().sum().backward()
            self.optimizer.step()
            self.schedule.step()

    @property
    def state(self):
        return self.optimizer, self.schedule, self.names


def test_training_continues_as_if_nothing_had_happened(tmp_path):
    undisturbed = Taught(3)
    save_optimizer(tmp_path, *undisturbed.state)
    save_random_states(tmp_path)
    weights = {k: v.clone() for k, v in undisturbed.network.state_dict().items()}
    undisturbed.learn(4)
    drawn = random.random(), np.random.rand(), float(torch.rand(1))

    continued = Taught(0)
    continued.network.load_state_dict(weights)
    load_optimizer(tmp_path, *continued.state)
    load_random_states(tmp_path)
    assert continued.schedule.get_last_lr() == [0.1 / 4] * 2
    continued.learn(4)
    for one, other in zip(
        undisturbed.network.parameters(), continued.network.parameters(), strict=True
    ):
        assert torch.equal(one, other)
    assert (random.random(), np.random.rand(), float(torch.rand(1))) == drawn


def test_files_hold_moments_by_the_names_of_parameters_and_no_pickle(tmp_path):
    taught = Taught(1)
    save_optimizer(tmp_path, *taught.state)
    save_random_states(tmp_path)
    names = set(trainer_state._load_tensors(tmp_path / "optimizer.safetensors"))
    assert names == {
        f"{moment}.{layer}.{kind}"
        for moment in ("step", "exp_avg", "exp_avg_sq")
        for layer in (0, 1)
        for kind in ("weight", "bias")
    }
    assert {path.suffix for path in tmp_path.iterdir()} == {".safetensors", ".json"}


def test_moments_of_another_model_are_refused(tmp_path):
    save_optimizer(tmp_path, *Taught(1, width=5).state)
    with pytest.raises(InputError, match=r"optimizer\.safetensors .*is not of this model"):
        load_optimizer(tmp_path, *Taught(0).state)


@pytest.mark.parametrize("name", ["optimizer.safetensors", "schedule.json"])
@pytest.mark.parametrize("damage", ["cut", "gone"])
def test_damaged_files_are_named(tmp_path, name, damage):
    save_optimizer(tmp_path, *Taught(1).state)
    file = tmp_path / name
    if damage == "gone":
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(InputError, match=rf"{name} cannot be read .*remove the folder"):
        load_optimizer(tmp_path, *Taught(0).state)
