"""AdamW with weight decay on matrices only (arXiv 1711.05101)."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from neobert_train.config.schema import OptimizerConfig


def build_optimizer(config: OptimizerConfig, model: nn.Module) -> torch.optim.AdamW:
    """AdamW over all parameters; norms and biases, which have one dimension, are not decayed."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups: list[dict[str, Any]] = [
        {"params": _with_dimensions(parameters, decayed=True), "weight_decay": config.weight_decay},
        {"params": _with_dimensions(parameters, decayed=False), "weight_decay": 0.0},
    ]
    beta1, beta2 = config.betas
    return torch.optim.AdamW(groups, lr=config.lr, betas=(beta1, beta2), eps=config.eps, fused=True)


def _with_dimensions(parameters: Iterable[nn.Parameter], decayed: bool) -> list[nn.Parameter]:
    return [parameter for parameter in parameters if (parameter.dim() >= 2) is decayed]
