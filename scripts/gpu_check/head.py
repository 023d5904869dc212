"""The product with the vocabulary: does it pay to align the rows of its scores to 16 bytes?"""

from collections.abc import Iterator

import torch
from torch import Tensor

from gpu_check.measuring import BF16, Scale, format_rate
from gpu_check.table import Row
from neobert_train.modeling.cross_entropy import CHUNK_ROWS

# Bytes of a row that matrix units load at once, in bf16 elements.
_ALIGNED = 8


def run(scale: Scale) -> Iterator[Row]:
    rows = CHUNK_ROWS if scale.on_gpu else 64
    vocab = scale.shape.vocab_size
    padded = -(-vocab // _ALIGNED) * _ALIGNED
    yield measure(scale, f"{vocab} columns", empty_scores(scale, rows, vocab))
    yield measure(scale, f"{padded} columns", empty_scores(scale, rows, padded))
    strided = empty_scores(scale, rows, padded)[:, :vocab]
    yield measure(scale, f"{vocab} columns in rows of {padded}", strided)


def empty_scores(scale: Scale, rows: int, columns: int) -> Tensor:
    return torch.empty(rows, columns, device=scale.device, dtype=BF16)


def measure(scale: Scale, form: str, scores: Tensor) -> Row:
    """Return the rates of the three products of a chunk of the loss, with a buffer for its scores."""
    rows, vocab = scores.shape
    hidden, weight = scale.draw(rows, scale.shape.width), scale.draw(vocab, scale.shape.width)
    scores.copy_(scale.draw(rows, vocab))
    products = (
        lambda: torch.mm(hidden, weight.T, out=scores),
        lambda: scores @ weight,
        lambda: scores.T @ hidden,
    )
    operations = 2 * rows * vocab * scale.shape.width
    # The first one last, since it writes the scores that the others read.
    backward = [scale.time(product) for product in products[1:]]
    times = [scale.time(products[0]), *backward]
    rates = " / ".join(format_rate(operations, time) for time in times)
    return Row(f"[{rows}, {scale.shape.width}] -> {form}: forward / input / weight, TFLOP/s", rates,
               "more where rows are aligned (estimate)")  # fmt: skip
