"""The loss over the vocabulary: time, launches, and bytes that its operations read and write."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from gpu_check.measuring import BF16, Scale, format_kinds
from gpu_check.table import NEEDS_GPU, Row, judge
from neobert_train.modeling import cross_entropy
from neobert_train.modeling.cross_entropy import Steps, find_steps, sum_cross_entropy

# Of a bf16 result against fp32.
_TOLERANCE = 0.02


class Traffic(TorchDispatchMode):
    """Counts operations, and the bytes of the tensors that they take and give.

    Views and memory that is only reserved count as nothing. A kernel that torch does not know as an
    operation is not seen.
    """

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()
        self.bytes = 0

    def __torch_dispatch__(
        self,
        function: Any,
        types: Any,
        arguments: tuple[Any, ...] = (),
        options: Mapping[str, Any] | None = None,
    ) -> Any:
        result = function(*arguments, **(options or {}))
        if not _is_free(function):
            self.calls[str(function)] += 1
            leaves = tree_leaves((arguments, options, result))
            tensors = {id(leaf): leaf for leaf in leaves if isinstance(leaf, Tensor)}
            self.bytes += sum(x.numel() * x.element_size() for x in tensors.values())
        return result


def _is_free(function: Any) -> bool:
    """Return whether an operation gives a view, or memory that nothing is written to."""
    aliases = [result.alias_info for result in function._schema.returns]
    is_view = any(alias is not None and not alias.is_write for alias in aliases)
    return is_view or "empty" in str(function)


def run(scale: Scale) -> Iterator[Row]:
    steps = type(find_steps(scale.device, BF16)).__name__
    verdict = judge(steps == "FusedSteps") if scale.on_gpu else NEEDS_GPU
    yield Row("computed by", steps, "FusedSteps", verdict)
    targets, shape = scale.tokens // 5, scale.shape
    sizes = (targets, shape.width), (shape.vocab_size, shape.width), (shape.vocab_size,)
    inputs = [scale.draw(*size).div(10).requires_grad_() for size in sizes]
    labels = torch.randint(shape.vocab_size, (targets,), device=scale.device)
    plain = patch.object(cross_entropy, "find_steps", lambda device, dtype: Steps())

    def step() -> list[Tensor]:
        return differentiate(inputs, labels)

    yield Row(f"{targets} x {shape.vocab_size}, ms", f"{scale.time(step, 5):.2f}",
              "4, of which products 3 (estimate)")  # fmt: skip
    with plain:
        yield Row("the same in several operations, ms", f"{scale.time(step, 5):.2f}",
                  "10 to 18, of which products 6 to 9 (estimate)")  # fmt: skip
        exact = differentiate([x.detach().float().requires_grad_() for x in inputs], labels)
    pairs = zip(step(), exact, strict=True)
    error = max(((a.float() - b).norm() / b.norm()).item() for a, b in pairs)
    yield Row(
        "error against fp32", f"{error:.4f}", f"below {_TOLERANCE}", judge(error < _TOLERANCE)
    )
    yield from count(scale, step)


def differentiate(inputs: list[Tensor], labels: Tensor) -> list[Tensor]:
    """Return the loss, and the gradients of hidden states, weight and bias."""
    hidden, weight, bias = inputs
    loss = sum_cross_entropy(hidden, weight, bias, labels)[0]
    return [loss, *torch.autograd.grad(loss, inputs)]


def count(scale: Scale, step: Callable[[], Any]) -> Iterator[Row]:
    with Traffic() as traffic:
        step()
    yield Row("operations of torch, and GB that they read and write",
              f"{traffic.calls.total()}, {traffic.bytes / 1e9:.3g}")  # fmt: skip
    if not scale.on_gpu:
        yield Row("launches", "", verdict=NEEDS_GPU)
        yield Row("peak memory", "", verdict=NEEDS_GPU)
        return
    kernels = scale.profile(step)
    yield Row("launches", f"{len(kernels)}; ms by kind: {format_kinds(kernels)}",
              "100; 500 in several operations (estimate)")  # fmt: skip
    yield Row("peak memory", f"{scale.measure_peak_bytes(step) / 2**30:.2f} GiB")
