"""AdamW with decoupled weight decay (arXiv 1711.05101)."""

from typing import Any

import torch

from neobert_train.config.choices import AdamWConfig


def build_adamw(config: AdamWConfig, groups: list[dict[str, Any]]) -> torch.optim.AdamW:
    """Return torch's fused AdamW over groups of parameters."""
    beta1, beta2 = config.betas
    return torch.optim.AdamW(groups, lr=config.lr, betas=(beta1, beta2), eps=config.eps, fused=True)
