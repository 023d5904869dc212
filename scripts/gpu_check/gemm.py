"""The rates of matrix products: a large square one, those of a block, and of copying memory."""

from collections.abc import Iterator

import torch

from gpu_check.measuring import Scale, format_rate
from gpu_check.table import Row


def run(scale: Scale) -> Iterator[Row]:
    size = 8192 if scale.on_gpu else 64
    a, b = scale.draw(size, size), scale.draw(size, size)
    rate = format_rate(2 * size**3, scale.time(lambda: a @ b))
    yield Row(f"product of {size} x {size}, TFLOP/s", rate, "700 to 800 on an H100")
    yield from measure_copy(scale)
    config = scale.shape.to_neobert()
    width, inner = scale.shape.width, config.feed_forward_width
    layers = {"qkv": (width, 3 * width), "wo": (width, width), "w12": (width, 2 * inner),
              "w3": (inner, width)}  # fmt: skip
    for name, (columns, rows) in layers.items():
        yield measure_layer(scale, name, columns, rows)
    x, weight, added = (scale.draw(n, width) for n in (scale.tokens, width, scale.tokens))
    together = scale.time(lambda: torch.addmm(added, x, weight.T))
    alone = scale.time(lambda: x @ weight.T)
    yield Row("addmm of a matrix against mm, ms", f"{together:.3f} / {alone:.3f}",
              "0.07 ms more where it copies first (estimate)")  # fmt: skip


def measure_copy(scale: Scale) -> Iterator[Row]:
    size = 2**30 if scale.on_gpu else 2**16
    source = torch.zeros(size, dtype=torch.uint8, device=scale.device)
    target = torch.empty_like(source)
    rate = 2 * size / scale.time(lambda: target.copy_(source)) / 1e9
    yield Row("copy, read and written, TB/s", f"{rate:.2f}", "about 3.0 on an H100")


def measure_layer(scale: Scale, name: str, columns: int, rows: int) -> Row:
    """Return the rates of a linear layer: forward, gradient of its input, gradient of its weight."""
    x, weight = scale.draw(scale.tokens, columns), scale.draw(rows, columns)
    gradient = scale.draw(scale.tokens, rows)
    products = (lambda: x @ weight.T, lambda: gradient @ weight, lambda: gradient.T @ x)
    operations = 2 * scale.tokens * columns * rows
    rates = [format_rate(operations, scale.time(product)) for product in products]
    check = f"{name} [{scale.tokens}, {columns}] -> {rows}: forward / input / weight, TFLOP/s"
    return Row(check, " / ".join(rates), "650 / 650 / 570 (estimate)")
