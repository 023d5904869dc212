"""Parameters in groups that are trained alike, by their role."""

from collections.abc import Mapping
from typing import Any

from torch import nn

from neobert_train.config.choices import GroupConfig, OptimizerConfig, Role
from neobert_train.optim.matrices import MatrixLayout


def build_groups(
    config: OptimizerConfig,
    weights: Mapping[str, nn.Parameter],
    roles: Mapping[str, Role],
    layouts: Mapping[str, MatrixLayout],
) -> list[dict[str, Any]]:
    """Return the trainable parameters as groups of a torch optimiser.

    Parameters that are trained alike share a group; vectors always have their own, so that the order in
    which ZeRO adds up the groups' norms does not depend on the settings. `base_lr` is the peak learning
    rate of a group, of which the schedule gives `lr`. `layouts` has an entry for each of `params`: how
    a hidden matrix is taken apart, and None for the other roles.

    Args:
        config: the learning rate and decay of each role.
        weights: by parameter name.
        roles: of every parameter by its name.
        layouts: of hidden matrices that hold several, by name.
    """
    groups: dict[tuple[float, float, bool], dict[str, Any]] = {}
    for name, weight in weights.items():
        if not weight.requires_grad:
            continue
        settings: GroupConfig = getattr(config, roles[name].value)
        lr, decay = config.lr * settings.lr_multiplier, settings.weight_decay
        decay = config.weight_decay if decay is None else decay
        group = groups.setdefault(
            (lr, decay, roles[name] is Role.vector),
            {"params": [], "layouts": [], "lr": lr, "base_lr": lr, "weight_decay": decay},
        )
        single = MatrixLayout(tuple(weight.shape[:1]))
        is_matrix = roles[name] is Role.hidden_matrix
        group["params"].append(weight)
        group["layouts"].append(layouts.get(name, single) if is_matrix else None)
    return list(groups.values())
