"""Training without ZeRO: fp32 weights, moments and gradients, whole on every process."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


class WholeState:
    """What an optimiser without ZeRO updates.

    In fp32 its weights are the network's parameters, and DeepSpeed averages their gradients over
    processes. Its bf16 mode keeps no fp32 weights without ZeRO (seen in 0.19.8). So in bf16 the network
    computes with bf16 copies of the weights: the gradient of a micro-batch is added to a sum in fp32
    as soon as it is there and dropped, the sums are averaged over processes once per step, and an
    updated weight is rounded to its copy. Per parameter that takes 2 bytes for the copy, 4 for the
    sum and 4 for the weight, beside the moments.

    Attributes:
        optimizer: over the weights.
    """

    def __init__(
        self,
        network: nn.Module,
        build: Callable[[Mapping[str, nn.Parameter]], torch.optim.Optimizer],
        moments: Mapping[str, Sequence[str]],
        is_bf16: bool,
        max_grad_norm: float,
    ) -> None:
        """Take over the weights of a network, which are in fp32 and on their device.

        Args:
            network: whose parameters become bf16 copies where it computes in bf16.
            build: an optimiser over weights by parameter name.
            moments: names of what it keeps, by parameter.
            is_bf16: whether the network is to compute in bf16.
            max_grad_norm: to which gradients are scaled down; 0 for no limit.
        """
        self._moments, self._max_grad_norm = moments, max_grad_norm
        self._parameters = dict(network.named_parameters())
        self._weights = dict(self._parameters)
        # Of every weight that is trained, its part of the flat sum; empty in fp32.
        self._sums: dict[str, Tensor] = {}
        self._flat_sum: Tensor | None = None
        if is_bf16:
            self._weights = {
                name: nn.Parameter(p.detach(), requires_grad=p.requires_grad)
                for name, p in self._parameters.items()
            }
            self._divide()
        self.optimizer = build(self._weights)

    def attach(self, deepspeed: Any) -> None:
        """Take the engine that was made with `optimizer`."""
        self._deepspeed = deepspeed
        deepspeed.enable_backward_allreduce = self._flat_sum is None

    def step(self) -> float:
        """End a micro step; see `Engine.step`."""
        is_last = self._deepspeed.is_gradient_accumulation_boundary()
        norm = self._finish_gradients() if is_last else math.nan
        self._deepspeed.step()
        if is_last and self._flat_sum is not None:
            self._flat_sum.zero_()
            for name, weight in self._weights.items():
                self._parameters[name].data.copy_(weight.data)
        return norm

    def iter_state(self, with_moments: bool) -> Iterator[tuple[str, Tensor, dict[str, Tensor]]]:
        """Yield name, weight and moments of every parameter, as they are in memory."""
        for name, weight in self._weights.items():
            state = self.optimizer.state[weight] if with_moments else {}
            kept = self._moments[name] if with_moments else ()
            yield name, weight.data, {moment: state[moment] for moment in kept}

    def write(self, weights: Mapping[str, Tensor], moments: Mapping[str, Tensor]) -> None:
        """Set the weights, their copies, and moments that are there, by `MOMENT.PARAMETER`."""
        for name, weight in self._weights.items():
            weight.data.copy_(weights[name])
            self._parameters[name].data.copy_(weights[name])
            for moment in self._moments[name]:
                self.optimizer.state[weight][moment].copy_(moments[f"{moment}.{name}"])

    def _divide(self) -> None:
        """Let the network compute with bf16 copies, whose gradients are added up in fp32."""
        trained = {name: weight for name, weight in self._weights.items() if weight.requires_grad}
        sizes = [weight.numel() for weight in trained.values()]
        device = next(iter(trained.values())).device
        self._flat_sum = torch.zeros(sum(sizes), device=device)
        for name, part in zip(trained, self._flat_sum.split(sizes), strict=True):
            self._sums[name] = part.view_as(trained[name])
        for name, parameter in self._parameters.items():
            parameter.data = parameter.data.bfloat16()
            if name in self._sums:
                add = partial(_move_gradient, self._sums[name])
                parameter.register_post_accumulate_grad_hook(add)

    def _finish_gradients(self) -> float:
        """Give the weights the gradient of the global batch, clipped; return its norm before.

        Where that is not finite they get none: an optimiser skips what has no gradient, and so the
        whole step.
        """
        if self._flat_sum is not None:
            dist.all_reduce(self._flat_sum)
            self._flat_sum.div_(dist.get_world_size())
            for name, part in self._sums.items():
                self._weights[name].grad = part
        for weight in self._weights.values():
            if weight.requires_grad and weight.grad is None:  # the network does not use it
                weight.grad = torch.zeros_like(weight)
        norm = self._clip_gradients()
        if not math.isfinite(norm):
            for weight in self._weights.values():
                weight.grad = None
        return norm

    def _clip_gradients(self) -> float:
        """Clip as ZeRO does, and return the norm before.

        DeepSpeed's own clipping of a plain optimiser keeps no norm, and adds squares up in fp32, which
        was 0.05 % off on an embedding of two million weights.
        """
        gradients = [w.grad for w in self._weights.values() if w.grad is not None]
        squares = [torch.linalg.vector_norm(g, dtype=torch.float64) ** 2 for g in gradients]
        norm = float(torch.stack(squares).sum().sqrt())
        if 0 < self._max_grad_norm < norm + 1e-6:
            for gradient in gradients:
                gradient.mul_(self._max_grad_norm / (norm + 1e-6))
        return norm


def _move_gradient(total: Tensor, parameter: Tensor) -> None:
    """Add a parameter's gradient to a sum of the same shape, and drop it."""
    assert parameter.grad is not None
    total.add_(parameter.grad)
    parameter.grad = None
