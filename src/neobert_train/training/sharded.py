"""Training with ZeRO 1 to 3: what DeepSpeed holds in parts, by parameter name."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn


class ShardedState:
    """fp32 weights and moments that DeepSpeed spreads over processes.

    Attributes:
        optimizer: over the parameters, and over this process's parts once an engine is attached.
    """

    def __init__(
        self,
        network: nn.Module,
        build: Callable[[Mapping[str, nn.Parameter]], torch.optim.Optimizer],
        moments: Mapping[str, Sequence[str]],
    ) -> None:
        """Take the parameters of a network, which are in fp32.

        Args:
            network: whose low-precision copies DeepSpeed makes.
            build: an optimiser over weights by parameter name.
            moments: names of what it keeps, by parameter.
        """
        self._parameters = dict(network.named_parameters())
        self._moments = moments
        self.optimizer = build(self._parameters)

    def attach(self, deepspeed: Any) -> None:
        """Take the engine that was made with `optimizer`."""
        self._deepspeed = deepspeed

    def step(self) -> float:
        """End a micro step; see `Engine.step`."""
        is_last = self._deepspeed.is_gradient_accumulation_boundary()
        self._deepspeed.step()
        if not is_last or not self._deepspeed.was_step_applied():
            return math.nan  # DeepSpeed keeps the norm of the step before
        return float(self._deepspeed.get_global_grad_norm())

    def iter_state(self, with_moments: bool) -> Iterator[tuple[str, Tensor, dict[str, Tensor]]]:
        """Collect and yield name, weight and moments of every parameter; all processes take part."""
        from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

        if with_moments:
            self._link_moments()
        for name, parameter in self._parameters.items():
            kept = self._moments[name] if with_moments else ()
            weight = safe_get_full_fp32_param(parameter)
            yield name, weight, {m: safe_get_full_optimizer_state(parameter, m) for m in kept}

    def write(self, weights: Mapping[str, Tensor], moments: Mapping[str, Tensor]) -> None:
        """Set the weights, their low-precision copies, and moments that are there.

        Every process takes part.

        Args:
            weights: by parameter name.
            moments: by `MOMENT.PARAMETER`.
        """
        import deepspeed
        from deepspeed.utils import safe_set_full_fp32_param, safe_set_full_optimizer_state

        self._link_moments()
        for name, parameter in self._parameters.items():
            for moment in self._moments[name]:
                value = moments[f"{moment}.{name}"].to(self._deepspeed.device)
                safe_set_full_optimizer_state(parameter, value, moment)
            safe_set_full_fp32_param(parameter, weights[name].to(self._deepspeed.device))
            # Of ZeRO 3 every process holds a part of the copy.
            with deepspeed.zero.GatheredParameters([parameter], modifier_rank=0):
                if parameter.numel() == weights[name].numel():
                    parameter.data.copy_(weights[name])

    def _link_moments(self) -> None:
        """Let ZeRO 1 and 2 find the moments of every parameter group.

        DeepSpeed links moments to parameters once, after the step of the first group, when the other
        groups have none yet (seen in 0.19.8).
        """
        optimizer = self._deepspeed.optimizer
        if hasattr(optimizer, "_hp_optimizer_states_linked"):
            optimizer._hp_optimizer_states_linked = False
            optimizer._lazy_init_hp_params_optimizer_state()
