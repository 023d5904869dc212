"""Attention within packed documents on a CPU, as batched matrix products.

torch's own CPU kernel is made for long sequences; up to `LONGEST_BATCHED` tokens plain products with
a softmax are faster, several times for short documents. Documents of up to 128 tokens share
products: those of similar lengths are padded to a multiple of 16 and stacked. Longer ones are
multiplied one by one, a few heads at a time, so that their scores stay in the cache.
"""

import itertools
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .documents import Documents

# Beyond these lengths torch's kernel is faster (Xeon with AMX, one thread, heads of 64 channels).
LONGEST_BATCHED = {torch.bfloat16: 1024, torch.float32: 256}
_LONGEST_PADDED = 128
_PADDING_MULTIPLE = 16
# Scores of so many pairs and their gradients fit into a second-level cache of 2 MB.
_PAIRS_IN_CACHE = 1 << 19


def attend_on_cpu(q: Tensor, k: Tensor, v: Tensor, documents: Documents) -> Tensor:
    """Return what `attend` does, for the dtypes of `LONGEST_BATCHED`.

    In bf16 the scores of batched documents are rounded to bf16 before the softmax; the output is
    then off by half a percent (norm of the error, scores up to 5) to one percent (up to 20).
    """
    longest = LONGEST_BATCHED[q.dtype]
    plan = documents.derive(longest, lambda bounds: plan_documents(bounds, longest))
    if torch.is_grad_enabled():
        output: Tensor = _PackedAttention.apply(q, k, v, plan)
        return output
    return _attend(q, k, v, plan, kept=None)


@dataclass(frozen=True)
class Group:
    """Documents that are multiplied together.

    Attributes:
        rows: flat index of every slot's token, [num_documents * length]; of padding any. A slice
            where the documents lie one after the other and need no padding.
        padding: [num_documents, length] true at padding; None where there is none.
        num_documents: of the group.
        length: of every document with its padding.
    """

    rows: Tensor | slice
    padding: Tensor | None
    num_documents: int
    length: int

    def gather(self, x: Tensor) -> Tensor:
        """Bring [T, heads, size] to [num_documents * heads, length, size], contiguous and never a view."""
        return self._stack(x).clone(memory_format=torch.contiguous_format).flatten(0, 1)

    def view(self, x: Tensor) -> Tensor:
        """Return what `gather` does, as a view of a single document."""
        return self._stack(x).flatten(0, 1)

    def _stack(self, x: Tensor) -> Tensor:
        stacked: Tensor = x[self.rows].unflatten(0, (self.num_documents, self.length))
        return stacked.transpose(1, 2)

    def mask(self, scores: Tensor) -> None:
        """Set the scores [num_documents * heads, length, length] of padded keys to -inf."""
        assert self.padding is not None
        by_document = scores.unflatten(0, (self.num_documents, -1))
        by_document.masked_fill_(self.padding[:, None, None], -torch.inf)

    def clear_padding(self, stacked: Tensor) -> None:
        """Set padded rows of [num_documents * heads, length, size] to zero."""
        assert self.padding is not None
        by_document = stacked.unflatten(0, (self.num_documents, -1))
        by_document.masked_fill_(self.padding[:, None, :, None], 0.0)

    def scatter(self, stacked: Tensor, target: Tensor) -> None:
        """Return the inverse of `gather`, into `target` [T, heads, size]; padding is left out."""
        by_document = stacked.unflatten(0, (self.num_documents, target.shape[1]))
        if isinstance(self.rows, slice):
            self._stack(target).copy_(by_document)
            return
        values = by_document.transpose(1, 2).flatten(0, 1)
        if self.padding is None:
            target[self.rows] = values
        else:
            slots = (~self.padding).flatten().nonzero()[:, 0]
            target[self.rows[slots]] = values[slots]


@dataclass(frozen=True)
class Plan:
    """How the documents of a micro-batch are computed.

    Attributes:
        groups: multiplied as batches.
        long: begin and end of each document that torch's kernel takes.
    """

    groups: Sequence[Group]
    long: Sequence[slice]


def plan_documents(bounds: Sequence[int], longest_batched: int) -> Plan:
    """Group documents by length.

    Args:
        bounds: where documents begin and the last one ends; documents of no tokens are passed over.
        longest_batched: tokens of the longest document that is not left to torch's kernel.
    """
    groups, long = [], []
    similar: dict[int, list[tuple[int, int]]] = defaultdict(list)
    for start, end in itertools.pairwise(bounds):
        length = end - start
        if length > longest_batched:
            long.append(slice(start, end))
        elif length > _LONGEST_PADDED:
            groups.append(Group(slice(start, end), None, 1, length))
        elif length:
            similar[-(-length // _PADDING_MULTIPLE) * _PADDING_MULTIPLE].append((start, end))
    for length, documents in similar.items():
        slots = torch.arange(length, device="cpu")
        first, total = documents[0][0], length * len(documents)
        if documents == [(at, at + length) for at in range(first, first + total, length)]:
            groups.append(Group(slice(first, first + total), None, len(documents), length))
            continue
        starts, ends = (
            torch.tensor(side, device="cpu")[:, None] for side in zip(*documents, strict=True)
        )
        rows = starts + slots
        padding = rows >= ends
        rows = rows.minimum(ends - 1).flatten()
        some = padding if padding.any() else None
        groups.append(Group(rows, some, len(documents), length))
    return Plan(groups, long)


def _attend(q: Tensor, k: Tensor, v: Tensor, plan: Plan, kept: list[Tensor] | None) -> Tensor:
    """Compute attention, and add to `kept` what its backward pass needs, where there will be one."""
    scale = q.shape[-1] ** -0.5
    output = torch.empty_like(q, memory_format=torch.contiguous_format)
    for group in plan.groups:
        if kept is None:
            queries, keys, values = group.view(q) * scale, group.view(k), group.view(v)
        else:
            queries, keys, values = group.gather(q).mul_(scale), group.gather(k), group.gather(v)
            kept += [queries, keys, values]
        attended = queries.new_empty(queries.shape)
        for part in _iter_heads(group, q.shape[1]):
            scores = torch.bmm(queries[part], keys[part].mT)
            if group.padding is not None:
                group.mask(scores)
            probabilities = scores.softmax(-1)
            torch.bmm(probabilities, values[part], out=attended[part])
            if kept is not None:
                kept.append(probabilities)
        group.scatter(attended, output)
    for document in plan.long:
        inputs = [x[document].transpose(0, 1)[None] for x in (q, k, v)]
        attended, log_sums = _flash_forward(*inputs)
        output[document] = attended[0].transpose(0, 1)
        if kept is not None:
            kept += [*inputs, attended, log_sums]
    return output


class _PackedAttention(torch.autograd.Function):
    """Keeps the probabilities of batched documents for the backward pass."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, plan: Plan) -> Tensor:
        kept = list[Tensor]() if any(ctx.needs_input_grad) else None
        output = _attend(q, k, v, plan, kept)
        if kept is not None:
            ctx.save_for_backward(*kept)
            ctx.plan, ctx.scale, ctx.shape = plan, q.shape[-1] ** -0.5, q.shape
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        kept, plan = iter(ctx.saved_tensors), ctx.plan
        grads = [grad_output.new_empty(ctx.shape) for _ in range(3)]
        for group in plan.groups:
            queries, keys, values = (next(kept) for _ in range(3))
            grad = group.gather(grad_output)
            if group.padding is not None:
                group.clear_padding(grad)
            grad_q, grad_k, grad_v = (torch.empty_like(values) for _ in range(3))
            for part in _iter_heads(group, ctx.shape[1]):
                probabilities = next(kept)
                torch.bmm(probabilities.mT, grad[part], out=grad_v[part])
                grad_p = torch.bmm(grad[part], values[part].mT)
                grad_s = torch._softmax_backward_data(grad_p, probabilities, -1, grad_p.dtype)
                torch.bmm(grad_s, keys[part], out=grad_q[part])
                torch.bmm(grad_s.mT, queries[part], out=grad_k[part])
            for stacked, target in zip(
                (grad_q.mul_(ctx.scale), grad_k, grad_v), grads, strict=True
            ):
                group.scatter(stacked, target)
        for document in plan.long:
            grad = grad_output[document].transpose(0, 1)[None]
            parts = _flash_backward(grad, *(next(kept) for _ in range(5)))
            for computed, target in zip(parts, grads, strict=True):
                target[document] = computed[0].transpose(0, 1)
        return *grads, None


def _iter_heads(group: Group, num_heads: int) -> Iterator[slice]:
    """Yield the heads of all documents of a group, so many at a time as fit into the cache."""
    total = group.num_documents * num_heads
    width = max(1, _PAIRS_IN_CACHE // group.length**2)
    if group.padding is not None:  # whole documents, for the mask
        width = total
    return (slice(start, min(start + width, total)) for start in range(0, total, width))


def _flash_forward(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    kept: tuple[Tensor, Tensor]
    kept = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, 0.0, False)
    return kept


def _flash_backward(grad: Tensor, *saved: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    gradients: tuple[Tensor, Tensor, Tensor]
    gradients = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
        grad, *saved, 0.0, False
    )
    return gradients
