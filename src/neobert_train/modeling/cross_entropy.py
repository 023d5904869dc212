"""Cross-entropy over a vocabulary whose scores never exist for all tokens at once."""

import importlib.util
import logging
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

logger = logging.getLogger(__name__)

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
        steps = find_steps(hidden.device, hidden.dtype)
        sums = Sums(hidden, weight, bias, with_gradients=any(ctx.needs_input_grad))
        add_chunks(steps, sums, hidden, weight, bias, labels)
        if sums.with_gradients:
            ctx.save_for_backward(sums.hidden, sums.weight, sums.bias)
            ctx.dtypes = hidden.dtype, weight.dtype, bias.dtype
        ctx.mark_non_differentiable(sums.num_correct)
        return sums.loss, sums.num_correct

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_loss: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        pairs = zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        return *((grad * grad_loss).to(dtype) for grad, dtype in pairs), None


class Sums:
    """Sums over chunks; gradients in float32 where there are several, which bf16 would round away.

    Attributes:
        loss, num_correct: scalars, float32 and int64.
        with_gradients: whether the following are there.
        hidden, weight, bias: gradients of the loss, of the shapes of these.
    """

    def __init__(self, hidden: Tensor, weight: Tensor, bias: Tensor, with_gradients: bool) -> None:
        self.loss = torch.zeros((), dtype=torch.float32, device=hidden.device)
        self.num_correct = torch.zeros((), dtype=torch.int64, device=hidden.device)
        self.with_gradients = with_gradients
        if with_gradients:
            dtype = weight.dtype if len(hidden) <= CHUNK_ROWS else torch.float32
            self.hidden = torch.empty_like(hidden)
            self.weight = torch.zeros_like(weight, dtype=dtype)
            self.bias = torch.zeros_like(bias, dtype=torch.float32)


class Steps:
    """What is done with each chunk of rows, in operations that every device has."""

    def score(self, hidden: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """Return scores [rows, vocab_size], to which `differentiate` need not add the bias."""
        return torch.addmm(bias, hidden, weight.T)

    def differentiate(self, scores: Tensor, bias: Tensor, labels: Tensor, sums: Sums) -> None:
        """Count in the loss of some rows, and the bias's gradient; scores become their gradient."""
        block = _BLOCK_ROWS_ON_CPU if scores.device.type == "cpu" else BLOCK_ROWS
        for part, at in zip(scores.split(block), labels.split(block), strict=True):
            values, at = part.float(), at[:, None]
            largest, at_label = values.amax(-1), values.gather(-1, at)[:, 0]
            probabilities = values.softmax(-1)
            # The largest probability is at least 1 / vocab_size, so that its logarithm is exact.
            sums.loss += (largest - probabilities.amax(-1).log() - at_label).sum()
            sums.num_correct += (at_label >= largest).sum()
            if sums.with_gradients:
                probabilities.scatter_add_(-1, at, probabilities.new_full(at.shape, -1.0))
                sums.bias += probabilities.sum(0)
                part.copy_(probabilities)

    def add_product(self, total: Tensor, a: Tensor, b: Tensor) -> None:
        """Add a @ b to a float32 total."""
        total += a @ b


def add_chunks(
    steps: Steps, sums: Sums, hidden: Tensor, weight: Tensor, bias: Tensor, labels: Tensor
) -> None:
    """Add loss and gradients of all rows, chunk by chunk; arguments as of `sum_cross_entropy`."""
    for start in range(0, len(hidden), CHUNK_ROWS):
        rows = slice(start, start + CHUNK_ROWS)
        scores = steps.score(hidden[rows], weight, bias)
        steps.differentiate(scores, bias, labels[rows], sums)
        if not sums.with_gradients:
            continue
        torch.mm(scores, weight, out=sums.hidden[rows])
        if len(hidden) <= CHUNK_ROWS:
            torch.mm(scores.T, hidden[rows], out=sums.weight)
        else:
            steps.add_product(sums.weight, scores.T, hidden[rows])


@lru_cache(maxsize=8)
def find_steps(device: torch.device, dtype: torch.dtype) -> Steps:
    """Return the fastest steps that work on a device; on GPUs with Triton those with a kernel for it.

    They are tried out, since a kernel may be compiled for this GPU by this version of Triton or not; a
    warning says when it fails.
    """
    if device.type != "cuda":
        return Steps()
    if not __package__ or importlib.util.find_spec("triton") is None:
        return Steps()
    try:
        module = importlib.import_module(f"{__package__}.fused_cross_entropy")
        fused: Steps = module.FusedSteps()
        try_out_steps(fused, device, dtype)
    except ModuleNotFoundError:  # the code of an exported model
        return Steps()
    except Exception as error:  # compilers and drivers raise anything
        logger.warning(
            "the kernel for the loss over the vocabulary does not work here (%s: %s): it is computed "
            "in several operations, which takes longer", type(error).__name__, error,
        )  # fmt: skip
        return Steps()
    return fused


def try_out_steps(steps: Steps, device: torch.device, dtype: torch.dtype) -> None:
    """Compute loss and gradients of two small chunks.

    Raises:
        ValueError: they differ from those of `Steps`.
        Exception: whatever the steps raise by themselves.
    """
    num_rows, vocab_size, size = CHUNK_ROWS + 24, 1_003, 64
    values = torch.linspace(-1, 1, (num_rows + vocab_size) * size, device=device).mul(1e4).cos()
    hidden, weight = values.to(dtype).view(-1, size).split((num_rows, vocab_size))
    # Scores of a few units: the rounding of larger ones to 16 bits moves probabilities far.
    hidden = hidden / 16
    bias, labels = weight[:, 0].contiguous(), torch.arange(num_rows, device=device) % vocab_size
    found, expected = (Sums(hidden, weight, bias, with_gradients=True) for _ in range(2))
    add_chunks(steps, found, hidden, weight, bias, labels)
    add_chunks(Steps(), expected, hidden, weight, bias, labels)
    for name in ("loss", "hidden", "weight", "bias"):
        right = getattr(expected, name).float()
        difference = (getattr(found, name).float() - right).norm() / right.norm()
        if not difference < 0.02:
            raise ValueError(f"its {name} differs by {difference:.2g}")
