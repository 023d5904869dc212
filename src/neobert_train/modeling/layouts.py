"""The two forms in which a batch passes through the encoder.

Packed, documents lie flat one after the other, and a packed kernel lets each attend to itself: no work
is spent on padding. Padded, the batch keeps the form of the call and attends by a mask, in plain
operations that can be traced into a graph and differentiated twice.
"""

import itertools
import math

import torch
import torch.nn.functional as F
from torch import Tensor

from .attention import attend
from .documents import Documents

_ROWS_OF_BLOCK = 64


class PackedLayout:
    """Flat: hidden states are [T, width].

    Attributes:
        position_ids: [T] integers.
    """

    def __init__(
        self,
        shape: torch.Size,
        indices: Tensor | None,
        position_ids: Tensor,
        documents: Documents,
        backend: str,
    ) -> None:
        """Take where tokens lie.

        Args:
            shape: of the ids in the call.
            indices: [T] int64, which of them are tokens; None for all.
            position_ids: [T] integers.
            documents: of the T tokens.
            backend: see `attend`.
        """
        self._shape, self._indices, self.position_ids = shape, indices, position_ids
        self._documents, self._backend = documents, backend

    def enter(self, x: Tensor) -> Tensor:
        """Bring [..., width] in the shape of the call into this form."""
        flat = x.reshape(-1, x.shape[-1])
        return flat if self._indices is None else flat[self._indices]

    def leave(self, x: Tensor) -> Tensor:
        """Bring hidden states back into the shape of the call, zero at padding."""
        if self._indices is not None:
            padded = x.new_zeros(self._shape.numel(), x.shape[-1])
            x = padded.index_copy(0, self._indices, x)
        return x.view(*self._shape, x.shape[-1])

    def split(self, num_tokens: int) -> list[tuple[slice, "PackedLayout"]]:
        """Return batches of whole documents and about `num_tokens` tokens, each with its place.

        They are cut where products on a CPU begin a block of rows, and so round as they do for all.
        """
        if len(self.position_ids) <= num_tokens:
            return [(slice(None), self)]
        bounds = self._documents.derive("bounds", lambda bounds: bounds)
        cuts = [0]
        for begin, end in itertools.pairwise(bounds):
            if end - cuts[-1] > num_tokens and begin > cuts[-1] and begin % _ROWS_OF_BLOCK == 0:
                cuts.append(begin)
        places = itertools.starmap(slice, itertools.pairwise([*cuts, bounds[-1]]))
        return [(place, self._take(place.start, place.stop)) for place in places]

    def _take(self, begin: int, end: int) -> "PackedLayout":
        """Return the layout of the tokens from `begin` to `end`, where documents begin and end."""
        bounds = self._documents.cu_seqlens
        inside = bounds[(bounds >= begin) & (bounds <= end)] - begin
        documents = Documents(inside, self._documents.max_seqlen)
        positions = self.position_ids[begin:end]
        return PackedLayout(positions.shape, None, positions, documents, self._backend)

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Let every document attend to itself; [T, num_heads, head_size] each."""
        return attend(q, k, v, self._documents, self._backend)


class PaddedLayout:
    """As in the call: hidden states are [B, S, width].

    Attributes:
        position_ids: [B or 1, S] integers.
    """

    def __init__(
        self, shape: torch.Size, position_ids: Tensor, allowed: Tensor | None, is_token: Tensor | None,
        is_eager: bool,
    ) -> None:  # fmt: skip
        """Take who may attend to whom.

        Args:
            shape: of the ids in the call; [T] and [1, T] are one row.
            position_ids: [B or 1, S] integers.
            allowed: [B, 1, 1 or S, S], boolean, or numbers to add to the scores; None for all.
            is_token: [B, S] boolean, False at padding; None for tokens only.
            is_eager: whether to compute probabilities by themselves and not by torch's kernel.
        """
        self._shape, self.position_ids, self._is_token = shape, position_ids, is_token
        self._allowed, self._is_eager = allowed, is_eager

    def enter(self, x: Tensor) -> Tensor:
        """Bring [..., width] in the shape of the call into this form."""
        return x if x.dim() == 3 else x[None]

    def leave(self, x: Tensor) -> Tensor:
        """Bring hidden states back into the shape of the call, zero at padding."""
        if self._is_token is not None:
            x = x * self._is_token[..., None].to(x.dtype)
        return x.view(*self._shape, x.shape[-1])

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Let tokens attend to those that they may; [B, S, num_heads, head_size] each."""
        if self._is_eager:
            return (self.compute_weights(q, k) @ v.transpose(1, 2)).transpose(1, 2)
        queries, keys, values = (x.transpose(1, 2) for x in (q, k, v))
        bias = self._build_bias(q.dtype)
        return F.scaled_dot_product_attention(queries, keys, values, bias).transpose(1, 2)

    def compute_weights(self, q: Tensor, k: Tensor) -> Tensor:
        """Return attention probabilities, [B, num_heads, S, S]; zero for and at padding."""
        scores = q.transpose(1, 2) @ k.permute(0, 2, 3, 1) / math.sqrt(q.shape[-1])
        bias = self._build_bias(scores.dtype)
        weights = (scores if bias is None else scores + bias).float().softmax(-1).to(q.dtype)
        if self._is_token is not None:
            weights = weights * self._is_token[:, None, :, None].to(weights.dtype)
        return weights

    def _build_bias(self, dtype: torch.dtype) -> Tensor | None:
        """Return what to add to the scores; finite, so that a row of nothing but padding gives no NaN."""
        if self._allowed is None:
            return None
        if self._allowed.dtype is not torch.bool:
            return self._allowed.to(dtype)
        bias = torch.zeros_like(self._allowed, dtype=dtype)
        return bias.masked_fill(~self._allowed, torch.finfo(dtype).min)


Layout = PackedLayout | PaddedLayout


def build_packed_layout(
    shape: torch.Size,
    device: torch.device,
    attention_mask: Tensor | None,
    position_ids: Tensor | None,
    documents: Documents | None,
    backend: str,
) -> PackedLayout:
    """Return the flat form of a call.

    Args:
        shape: of the ids, [B, S]; [T] or [1, T] where `documents` are given.
        device: of the hidden states.
        attention_mask: [B, S], nonzero at tokens; None for tokens only.
        position_ids: of this shape, or [1, S]; counted from the start of every document when absent.
            Without a mask, rows that count from 0 several times hold several documents.
        documents: of a call that is packed already.
        backend: see `attend`.
    """
    if documents is not None:
        if position_ids is None:
            position_ids = _count_positions(documents.cu_seqlens, shape[-1])
        return PackedLayout(shape, None, position_ids.reshape(-1), documents, backend)
    batch, length = shape
    positions = torch.arange(length, device=device) if position_ids is None else position_ids
    positions, indices = positions.expand(batch, length).flatten(), None
    if attention_mask is not None:
        indices = attention_mask.flatten().nonzero().squeeze(-1)
        positions = positions[indices]
        lengths = (attention_mask != 0).sum(dim=-1, dtype=torch.int32)
        bounds = F.pad(lengths.cumsum(0, dtype=torch.int32), (1, 0))
    elif position_ids is None:
        bounds = torch.arange(batch + 1, device=device, dtype=torch.int32) * length
    else:
        begins = _find_begins(position_ids).expand(batch, length).flatten().nonzero().squeeze(-1)
        bounds = F.pad(begins, (0, 1), value=batch * length).int()
    return PackedLayout(shape, indices, positions, Documents(bounds, length), backend)


def build_padded_layout(
    shape: torch.Size,
    device: torch.device,
    attention_mask: Tensor | None,
    position_ids: Tensor | None,
    documents: Documents | None,
    is_eager: bool,
) -> PaddedLayout:
    """Return the form of the call itself.

    Args:
        shape, device, position_ids, documents: as in `build_packed_layout`.
        attention_mask: [B, S], nonzero at tokens, or [B, 1, S, S] for pairs of tokens: boolean, or
            numbers to add to the scores.
        is_eager: whether to compute attention probabilities by themselves.
    """
    if documents is not None:
        if position_ids is None:
            position_ids = _count_positions(documents.cu_seqlens, shape[-1])
        number = _find_document(documents.cu_seqlens, shape[-1])[None]
        return PaddedLayout(shape, position_ids.view(1, -1), _compare(number), None, is_eager)
    if attention_mask is not None and attention_mask.dim() == 4:
        positions = _expand_positions(position_ids, shape, device)
        return PaddedLayout(shape, positions, attention_mask, None, is_eager)
    allowed = is_token = None
    if attention_mask is not None:
        is_token = attention_mask != 0
        allowed = is_token[:, None, None, :]
    elif position_ids is not None:
        allowed = _compare(_find_begins(position_ids).cumsum(dim=-1))
    positions = _expand_positions(position_ids, shape, device)
    return PaddedLayout(shape, positions, allowed, is_token, is_eager)


def _compare(number: Tensor) -> Tensor:
    """Return which tokens have the same number, [B, 1, S, S] boolean of [B, S]."""
    return number[:, None, :, None] == number[:, None, None, :]


def _find_begins(position_ids: Tensor) -> Tensor:
    """Return where documents begin in rows without padding, [B, S] boolean.

    Each row begins one. Others begin at a position 0, as packing collators give them, if everything
    between counts by ones.
    """
    returns = position_ids[:, 1:] == 0
    counts = (returns | (position_ids.diff(dim=-1) == 1)).all(dim=-1, keepdim=True)
    return F.pad(returns & counts, (1, 0), value=True)


def _expand_positions(
    position_ids: Tensor | None, shape: torch.Size, device: torch.device
) -> Tensor:
    return torch.arange(shape[-1], device=device)[None] if position_ids is None else position_ids


def _find_document(bounds: Tensor, num_tokens: int) -> Tensor:
    """Return the number of the document that each token belongs to, [T] int64."""
    tokens = torch.arange(num_tokens, device=bounds.device)
    return torch.searchsorted(bounds, tokens, right=True) - 1


def _count_positions(bounds: Tensor, num_tokens: int) -> Tensor:
    """Return positions from the start of each document, [T] int64."""
    document = _find_document(bounds, num_tokens)
    return torch.arange(num_tokens, device=bounds.device) - bounds[document]


def close_documents(shape: torch.Size, cu_seqlens: Tensor, max_seqlen: int | None) -> Documents:
    """Return the documents of a packed call, with the padding behind them as one more.

    Kernels leave rows that no document covers undefined, and their gradients too.

    Args:
        shape: of the ids, [T] or [1, T].
        cu_seqlens: [num_documents + 1], where documents begin and the last one ends.
        max_seqlen: tokens of the longest document, or of the padding where that is longer; read from
            `cu_seqlens` when absent, which waits for a GPU.

    Raises:
        ValueError: another shape.
    """
    if len(shape) == 2 and shape[0] != 1:
        raise ValueError(f"packed input has the shape [T] or [1, T], not {list(shape)}")
    end = cu_seqlens.new_full((1,), shape[-1])
    bounds = torch.cat((cu_seqlens, end)).int()
    return Documents(bounds, int(bounds.diff().max()) if max_seqlen is None else max_seqlen)
