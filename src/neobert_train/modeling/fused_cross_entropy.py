"""The loss over a vocabulary on a GPU: one kernel for everything between the matrix products.

It is imported by `cross_entropy.find_steps` where there is a GPU, and needs Triton.
"""

from functools import lru_cache

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from .cross_entropy import Steps, Sums

_BLOCK = 4096
# Columns to which rows of scores are padded in memory. Rows of 30,522 bf16 numbers begin at addresses
# that are no multiples of 16 bytes, which the fast loads of matrix products ask for.
_ALIGNMENT = 64


class FusedSteps(Steps):
    """Reads scores twice and writes their gradient once, in float32 between."""

    def score(self, hidden: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """Return scores without the bias, whose rows lie a multiple of `_ALIGNMENT` numbers apart."""
        width = -(-len(weight) // _ALIGNMENT) * _ALIGNMENT
        scores = hidden.new_empty(len(hidden), width)[:, : len(weight)]
        return torch.mm(hidden, weight.T, out=scores)

    def differentiate(self, scores: Tensor, bias: Tensor, labels: Tensor, sums: Sums) -> None:
        """Count in the loss of some rows, and the bias's gradient; scores become their gradient."""
        (num_rows, vocab_size), width = scores.shape, scores.stride(0)
        padded_bias = F.pad(bias, (0, width - vocab_size))
        results = torch.empty(2, num_rows, dtype=torch.float32, device=scores.device)
        _differentiate[(num_rows,)](
            scores, padded_bias, labels, results, vocab_size, width,
            WITH_GRADIENTS=sums.with_gradients, BLOCK=_BLOCK, num_warps=8,
        )  # fmt: skip
        losses, are_correct = results
        sums.loss += losses.sum()
        sums.num_correct += are_correct.sum().long()
        if sums.with_gradients:
            sums.bias += scores.sum(0, dtype=torch.float32)

    def add_product(self, total: Tensor, a: Tensor, b: Tensor) -> None:
        """Add a @ b to a float32 total, without rounding the product or writing it down by itself."""
        if a.dtype is torch.float32:
            total.addmm_(a, b)
        elif _can_add(total.device, a.dtype):
            torch.addmm(total, a, b, out_dtype=torch.float32, out=total)
        else:
            total += torch.mm(a, b, out_dtype=torch.float32)


@lru_cache(maxsize=8)
def _can_add(device: torch.device, dtype: torch.dtype) -> bool:
    """Return whether torch adds a product of 16-bit matrices to a float32 total; not every version does."""
    total, a = torch.zeros(8, 8, device=device), torch.zeros(8, 8, dtype=dtype, device=device)
    try:
        torch.addmm(total, a, a, out_dtype=torch.float32, out=total)
    except RuntimeError:
        return False
    return True


@triton.jit
def _differentiate(  # type: ignore[no-untyped-def]  # Triton reads annotations as its own
    scores, bias, labels, results, vocab_size, width,
    WITH_GRADIENTS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Compute the gradient of one row in place of its scores; results are its loss, and 1 if right.

    Rows and bias are `width` numbers long, a multiple of `_ALIGNMENT`, so that loads are of 16 bytes.
    """
    row = tl.program_id(0)
    scores += row.to(tl.int64) * width
    label = tl.load(labels + row)
    at_label = tl.load(scores + label).to(tl.float32) + tl.load(bias + label).to(tl.float32)
    columns = tl.arange(0, BLOCK)
    # The largest score so far, and the sum of exp(score - largest), of every BLOCK-th column.
    largest = tl.full([BLOCK], -1e38, tl.float32)
    total = tl.zeros([BLOCK], tl.float32)
    for start in range(0, width, BLOCK):
        at = start + columns
        values = tl.load(scores + at, mask=at < width, other=0.0).to(tl.float32)
        values += tl.load(bias + at, mask=at < width, other=0.0).to(tl.float32)
        values = tl.where(at < vocab_size, values, -1e38)
        larger = tl.maximum(largest, values)
        total = total * tl.exp(largest - larger) + tl.exp(values - larger)
        largest = larger
    row_largest = tl.max(largest, 0)
    row_total = tl.sum(total * tl.exp(largest - row_largest), 0)
    results += row
    tl.store(results, row_largest + tl.log(row_total) - at_label)
    tl.store(results + tl.num_programs(0), (at_label >= row_largest).to(tl.float32))
    if WITH_GRADIENTS:
        for start in range(0, width, BLOCK):
            at = start + columns
            values = tl.load(scores + at, mask=at < width, other=0.0).to(tl.float32)
            values += tl.load(bias + at, mask=at < width, other=0.0).to(tl.float32)
            gradients = tl.exp(values - row_largest) / row_total
            gradients = tl.where(at == label, gradients - 1.0, gradients)
            tl.store(scores + at, gradients.to(scores.dtype.element_ty), mask=at < width)
