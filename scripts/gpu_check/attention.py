"""Attention by backend: speed, accuracy against fp32, and whether it gives the same bits again."""

import contextlib
from collections.abc import Callable, Iterator

import torch
from bench_step import make_sample
from torch import Tensor

from gpu_check.measuring import BF16, Scale, guard
from gpu_check.table import NEEDS_GPU, Row, judge
from neobert_train.modeling.attention import BACKENDS, attend, find_obstacle
from neobert_train.modeling.documents import Documents

# Of a bf16 result against fp32, as the tests of backends allow.
_TOLERANCE = 0.02


def run(scale: Scale) -> Iterator[Row]:
    for context in scale.contexts:
        batch = make_sample(scale.tokens, context, 4, scale.shape.vocab_size).packed
        bounds = batch.cu_seqlens.to(scale.device)
        inputs = draw_inputs(scale)
        gradient = scale.draw(*inputs[0].shape)
        operations = 4 * scale.shape.width * batch.squared_lengths
        exact = None
        for name in BACKENDS:
            check = f"{name} at context {context}"
            obstacle = find_obstacle(name, scale.device, BF16)
            if obstacle is not None:
                verdict = "" if scale.on_gpu else NEEDS_GPU
                yield Row(check, obstacle[:160], verdict=verdict)
                continue
            if exact is None:
                floats = [x.detach().float().requires_grad_() for x in inputs]
                documents = Documents(bounds, batch.max_seqlen)
                exact = attend_both_ways(floats, gradient.float(), documents, "sdpa")
            # Made anew, since it keeps what the kernel before derived from it.
            documents = Documents(bounds, batch.max_seqlen)
            yield from guard(check, measure(scale, check, name, inputs, gradient, documents,
                                            exact, operations))  # fmt: skip


def draw_inputs(scale: Scale) -> list[Tensor]:
    """Return queries, keys and values; the values lie among the others, as in the model."""
    heads = scale.shape.heads
    size = scale.tokens, heads, scale.shape.width // heads
    q, k = scale.draw(*size), scale.draw(*size)
    v = scale.draw(size[0], heads, 3, size[2])[:, :, 2]
    return [x.requires_grad_() for x in (q, k, v)]


def attend_both_ways(
    inputs: list[Tensor], gradient: Tensor, documents: Documents, name: str
) -> list[Tensor]:
    """Return the output, and the gradients of queries, keys and values."""
    output = attend(*inputs, documents, name)
    return [output, *torch.autograd.grad(output, inputs, gradient)]


def measure(
    scale: Scale, check: str, name: str, inputs: list[Tensor], gradient: Tensor,
    documents: Documents, exact: list[Tensor], operations: int,
) -> Iterator[Row]:  # fmt: skip

    def attend_both() -> list[Tensor]:
        return attend_both_ways(inputs, gradient, documents, name)

    pairs = zip(attend_both(), exact, strict=True)
    error = max(((a.float() - b).norm() / b.norm()).item() for a, b in pairs)
    yield Row(f"{check}: error against fp32", f"{error:.4f}", f"below {_TOLERANCE}",
              judge(error < _TOLERANCE))  # fmt: skip
    repeats = 1 if name == "sdpa" else 10  # document by document, it takes its time on a GPU
    with torch.no_grad():
        forward = scale.time(lambda: attend(*inputs, documents, name), repeats)
    both = scale.time(attend_both, repeats)
    rates = f"{operations / forward / 1e9:.3g}, {2.5 * operations / (both - forward) / 1e9:.3g}"
    yield Row(f"{check}: forward + backward, ms", f"{forward:.2f} + {both - forward:.2f}; {rates} TFLOP/s",
              "FlashAttention 2 250, 185; 3 and 4 360, 280 (estimate)")  # fmt: skip
    yield Row(f"{check}: twice the same, bit for bit", describe_repeat(attend_both))
    with deterministic_algorithms():
        found = describe_repeat(attend_both)
        both = scale.time(attend_both, repeats)
    yield Row(f"{check}: the same with trainer.deterministic, ms", f"{found}, {both:.2f}",
              "the same", judge(found == "the same"))  # fmt: skip


def describe_repeat(function: Callable[[], list[Tensor]]) -> str:
    """Return whether a function gives the same bits in each of some calls."""
    first = function()
    is_same = all(a.equal(b) for _ in range(3) for a, b in zip(first, function(), strict=True))
    return "the same" if is_same else "not the same"


@contextlib.contextmanager
def deterministic_algorithms() -> Iterator[None]:
    """Compute as with `trainer.deterministic`, as far as attention is concerned."""
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)
        torch.utils.deterministic.fill_uninitialized_memory = True  # type: ignore[attr-defined]
