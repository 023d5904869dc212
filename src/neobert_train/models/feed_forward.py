"""Feed-forward layers whose products apply the gate as they write, by the package quack-kernels."""

import importlib
import importlib.util
from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from neobert_train.errors import InputError
from neobert_train.modeling.attention import find_device_obstacle

FeedForward = Callable[[Tensor, Tensor, Tensor], Tensor]


@lru_cache(maxsize=8)
def load_quack(device: torch.device, dtype: torch.dtype) -> FeedForward:
    """Return quack's feed-forward layer, for `SwiGLU.kernel`, once it was tried out on the device.

    It keeps the gate and its value for the backward pass, and computes their product again.

    Raises:
        InputError: it cannot be used here; says why.
    """
    obstacle = find_device_obstacle(device, dtype)
    if obstacle is None and importlib.util.find_spec("quack") is None:
        obstacle = 'it is not installed (pip install "quack-kernels[cu13]")'
    if obstacle is None:
        try:
            kernel = bind(importlib.import_module("quack.mlp"))
            try_out(kernel, device, dtype)
            return kernel
        except Exception as error:  # a broken build raises OSError, RuntimeError, ...
            obstacle = f"it does not work here ({type(error).__name__}: {error})"
    raise InputError(
        f"model.feed_forward=quack cannot be had: {obstacle}; write model.feed_forward=torch"
    )


def bind(module: Any) -> FeedForward:
    """Return the layer of `quack.mlp` for weights whose rows are those of the gate, then of its value."""
    # Its search for the fastest tiles would compile dozens of kernels for every shape.
    return partial(module.mlp_func, activation="swiglu", concat_layout=True, tuned=False)


def compute_plainly(x: Tensor, gate_and_value: Tensor, output: Tensor) -> Tensor:
    """Return what `SwiGLU` gives with these weights, [2 width, hidden_size] and its reverse, by torch."""
    gate, value = F.linear(x, gate_and_value).chunk(2, dim=-1)
    return F.linear(F.silu(gate) * value, output)


def try_out(kernel: FeedForward, device: torch.device, dtype: torch.dtype) -> None:
    """Let a kernel compute a small layer, forward and backward, and of two tokens without a gradient.

    Raises:
        ValueError: it gives other numbers than torch.
        Exception: whatever it raises by itself.
    """
    tokens, hidden_size, width = 256, 128, 192
    shapes = (tokens, hidden_size), (2 * width, hidden_size), (hidden_size, width)
    with torch.inference_mode(False), torch.enable_grad():
        generator = torch.Generator().manual_seed(0)
        drawn = [torch.randn(shape, generator=generator).to(device) for shape in shapes]
        results = []
        for function in (kernel, compute_plainly):
            inputs = [x.clone().mul_(0.3).to(dtype).requires_grad_() for x in drawn]
            output = function(*inputs)
            gradients = torch.autograd.grad(output.float().square().sum(), inputs)
            with torch.no_grad():
                of_two = function(inputs[0][:2], *inputs[1:])
            results.append([output.detach(), *gradients, of_two])
    for number, expected in zip(*results, strict=True):
        difference = (number.float() - expected.float()).norm() / expected.float().norm()
        if not difference < 0.05:
            raise ValueError(f"its numbers differ from those of torch by {difference:.2g}")
