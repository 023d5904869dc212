"""The optimiser that a configuration names."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from neobert_train.config.choices import (
    AdamWConfig,
    MuonConfig,
    NorMuonConfig,
    OptimizerConfig,
    Role,
)
from neobert_train.optim.adamw import build_adamw
from neobert_train.optim.groups import build_groups
from neobert_train.optim.matrices import MatrixLayout
from neobert_train.optim.muon import build_muon
from neobert_train.optim.normuon import build_normuon

# Each takes its own settings and the groups of parameters.
BUILDERS: dict[
    type[OptimizerConfig], Callable[[Any, list[dict[str, Any]]], torch.optim.Optimizer]
] = {
    AdamWConfig: build_adamw,
    MuonConfig: build_muon,
    NorMuonConfig: build_normuon,
}


def build_optimizer(
    config: OptimizerConfig,
    weights: Mapping[str, nn.Parameter],
    roles: Mapping[str, Role],
    layouts: Mapping[str, MatrixLayout],
) -> torch.optim.Optimizer:
    """Return the optimiser over all trainable parameters of a network.

    Args:
        config: its kind and settings.
        weights: what it updates, by parameter name.
        roles: of every parameter by its name.
        layouts: of hidden matrices that hold several, by name.
    """
    return BUILDERS[type(config)](config, build_groups(config, weights, roles, layouts))
