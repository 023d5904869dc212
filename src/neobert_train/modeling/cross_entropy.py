"""Cross-entropy over a vocabulary whose scores never exist for all tokens at once."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

# Rows scored at a time: 2,048 x 30,522 scores are 125 MB in bf16.
CHUNK_ROWS = 2048
# Rows of these that become probabilities at a time, in fp32; on a CPU so few that they stay in its
# cache, which halves the time.
BLOCK_ROWS = 512
_BLOCK_ROWS_ON_CPU = 8


def sum_cross_entropy(
    hidden: Tensor, weight: Tensor, bias: Tensor, labels: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the summed loss of predicting `labels` from `hidden`; computes the gradient on the way.

    The gradient of the scores, softmax minus one-hot, is known as soon as the scores are; so each
    chunk's part of the gradients is taken at once and its scores are dropped.

    Args:
        hidden: [M, hidden_size].
        weight: [vocab_size, hidden_size].
        bias: [vocab_size].
        labels: [M] int64.

    Returns:
        The summed cross-entropy (nats, float32) and the number of labels whose score is the largest.
    """
    sums: tuple[Tensor, Tensor] = _SumCrossEntropy.apply(hidden, weight, bias, labels)
    return sums


class _SumCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor, labels: Tensor
    ) -> tuple[Tensor, Tensor]:
        loss = torch.zeros((), dtype=torch.float32, device=hidden.device)
        num_correct = torch.zeros((), dtype=torch.int64, device=hidden.device)
        grads = _Gradients(hidden, weight, bias) if any(ctx.needs_input_grad) else None
        block = _BLOCK_ROWS_ON_CPU if hidden.device.type == "cpu" else BLOCK_ROWS
        for start in range(0, len(hidden), CHUNK_ROWS):
            rows = slice(start, start + CHUNK_ROWS)
            scores = torch.addmm(bias, hidden[rows], weight.T)
            parts = zip(scores.split(block), labels[rows].split(block), strict=True)
            for part, at in parts:
                values, at = part.float(), at[:, None]
                largest, at_label = values.amax(-1), values.gather(-1, at)[:, 0]
                probabilities = values.softmax(-1)
                # The largest probability is at least 1 / vocab_size, so that its logarithm is exact.
                loss += (largest - probabilities.amax(-1).log() - at_label).sum()
                num_correct += (at_label >= largest).sum()
                if grads is not None:
                    probabilities.scatter_add_(-1, at, probabilities.new_full(at.shape, -1.0))
                    grads.bias += probabilities.sum(0)
                    part.copy_(probabilities)
            if grads is not None:
                grads.add(rows, scores)
        if grads is not None:
            ctx.save_for_backward(grads.hidden, grads.weight, grads.bias)
            ctx.dtypes = hidden.dtype, weight.dtype, bias.dtype
        ctx.mark_non_differentiable(num_correct)
        return loss, num_correct

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_loss: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        pairs = zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        return *((grad * grad_loss).to(dtype) for grad, dtype in pairs), None


class _Gradients:
    """Sums over chunks; in float32 where there are several, which bf16 would round away."""

    def __init__(self, hidden: Tensor, weight: Tensor, bias: Tensor) -> None:
        self._inputs = hidden, weight
        self.hidden = torch.empty_like(hidden)
        self._is_whole = len(hidden) <= CHUNK_ROWS
        dtype = weight.dtype if self._is_whole else torch.float32
        self.weight = torch.zeros_like(weight, dtype=dtype)
        self.bias = torch.zeros_like(bias, dtype=torch.float32)

    def add(self, rows: slice, scores: Tensor) -> None:
        """Count in the gradient of the scores of some rows, but for the bias."""
        hidden, weight = self._inputs
        torch.mm(scores, weight, out=self.hidden[rows])
        if self._is_whole:
            torch.mm(scores.T, hidden[rows], out=self.weight)
        else:
            self.weight += scores.T @ hidden[rows]
