"""What surrounds attention in a block, as a run compiles it: time, kernels, breaks of the graph."""

import importlib.util
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from bench_step import Shape
from torch import Tensor
from torch._dynamo.utils import counters

from gpu_check.measuring import BF16, Scale, format_kinds, guard
from gpu_check.table import NEEDS_GPU, Row, judge
from neobert_train.modeling.blocks import EncoderBlock, rotary_factors
from neobert_train.modeling.heads import NeoBERTForMaskedLM
from neobert_train.models.compiled_blocks import CompiledBlocks, connect
from neobert_train.models.feed_forward import FeedForward, compute_plainly, load_quack


def run(scale: Scale) -> Iterator[Row]:
    for compiled in (True, False):
        if compiled and not scale.on_gpu:
            yield Row("compiled", "", verdict=NEEDS_GPU)
            continue
        form = "compiled" if compiled else "not compiled"
        yield from guard(form, measure(scale, form, compiled))
    yield from guard("feed-forward", measure_feed_forward(scale))


def measure(scale: Scale, form: str, compiled: bool) -> Iterator[Row]:
    two_blocks = Shape(2, scale.shape.width, scale.shape.vocab_size)
    network = NeoBERTForMaskedLM(two_blocks.to_neobert()).to(scale.device, BF16)
    blocks = list(network.model.transformer_encoder)
    if compiled:
        functions = CompiledBlocks(blocks)
        project_one, connect_two = functions.project, functions.connect
    else:
        project_one, connect_two = EncoderBlock.project, connect
    size = scale.tokens, scale.shape.heads, scale.shape.width // scale.shape.heads
    x, attended = scale.draw(scale.tokens, scale.shape.width), scale.draw(*size)
    gradients = [scale.draw(*size) for _ in range(3)]
    turns = rotary_factors(torch.arange(scale.tokens, device=scale.device) % 512, size[-1])
    inputs = [tensor.requires_grad_() for tensor in (x, attended)]
    weights = list(network.model.transformer_encoder.parameters())

    def project() -> None:
        differentiate(project_one(blocks[0], x, turns), [x, *weights], gradients)

    def connect_both() -> None:
        outputs = connect_two(*blocks, x, attended, turns)
        differentiate(outputs, [*inputs, *weights], [x.detach(), *gradients])

    counters.clear()
    yield from describe(scale, f"project, {form}", project, "1.6 compiled (estimate)")
    name = f"combine, and project of the next, {form}"
    yield from describe(scale, name, connect_both, "6.1 compiled (estimate)")
    if compiled:
        breaks, graphs = sum(counters["graph_break"].values()), counters["stats"]["unique_graphs"]
        yield Row("graphs, breaks of them", f"{graphs}, {breaks}", "2, 0",
                  judge((graphs, breaks) == (2, 0)))  # fmt: skip


def measure_feed_forward(scale: Scale) -> Iterator[Row]:
    """Compare the layer of torch with that of quack, where it is installed."""
    width, hidden_size = scale.shape.to_config().compute_feed_forward_width(), scale.shape.width
    inputs = [
        scale.draw(*size).mul_(0.02).requires_grad_()
        for size in ((scale.tokens, hidden_size), (2 * width, hidden_size), (hidden_size, width))
    ]
    gradient = scale.draw(scale.tokens, hidden_size)

    def run(kernel: FeedForward) -> None:
        torch.autograd.grad(kernel(*inputs), inputs, gradient)

    by_torch = torch.compile(compute_plainly) if scale.on_gpu else compute_plainly
    name = "feed-forward: forward and backward, ms"
    yield Row(f"{name}, by torch", f"{scale.time(lambda: run(by_torch), 10):.2f}")
    if not scale.on_gpu:
        yield Row(f"{name}, by quack", "", verdict=NEEDS_GPU)
        return
    if importlib.util.find_spec("quack") is None:
        yield Row(f"{name}, by quack", "quack-kernels is not installed")
        return
    kernel = load_quack(scale.device, BF16)
    quack, tuned = torch.compile(kernel), torch.compile(partial(kernel, tuned=True))
    yield Row(
        f"{name}, by quack", f"{scale.time(lambda: run(quack), 10):.2f}", "less than by torch"
    )
    yield Row(f"{name}, by quack with tiles it chose", f"{scale.time(lambda: run(tuned), 10):.2f}")


def differentiate(outputs: Any, inputs: list[Tensor], gradients: list[Tensor]) -> None:
    torch.autograd.grad(outputs, inputs, gradients, allow_unused=True)


def describe(scale: Scale, name: str, step: Callable[[], None], expected: str) -> Iterator[Row]:
    yield Row(f"{name}: forward and backward, ms", f"{scale.time(step, 10):.2f}", expected)
    if not scale.on_gpu:
        yield Row(f"{name}: kernels", "", verdict=NEEDS_GPU)
        return
    kernels = scale.profile(step)
    yield Row(f"{name}: kernels", f"{len(kernels)}; ms by kind: {format_kinds(kernels)}")
