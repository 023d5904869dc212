"""The parts of NeoBERT: rotary positions, SwiGLU, and the block that has both (arXiv 2502.19587)."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .configuration_neobert import NeoBERTConfig
from .layouts import Layout, PackedLayout

ROPE_THETA = 10_000.0
# Inference on a CPU takes so many tokens through a feed-forward layer at a time.
_INFERENCE_ROWS = 1024


def rotary_factors(position_ids: Tensor, head_size: int) -> Tensor:
    """Compute the rotary cosine and sine of each position (RoFormer, equation 15).

    Args:
        position_ids: [...] integers.
        head_size: channels of a head.

    Returns:
        [..., 1, 1, head_size / 2, 2] float32. They are computed at every forward, since a buffer would be
        left uninitialised when the model is built on the meta device.
    """
    channels = torch.arange(0, head_size, 2, device=position_ids.device, dtype=torch.float32)
    frequencies = ROPE_THETA ** (-channels / head_size)
    angles = (position_ids.float()[..., None] * frequencies)[..., None, None, :]
    return torch.stack((angles.cos(), angles.sin()), dim=-1)


def rotate(x: Tensor, turns: Tensor) -> Tensor:
    """Turn interleaved channel pairs (x0, x1), (x2, x3), ... of x [..., num_heads, 2, head_size]."""
    pairs = x.float().unflatten(-1, (-1, 2))
    if not is_traced():  # one product instead of six
        turned = torch.view_as_real(torch.view_as_complex(pairs) * torch.view_as_complex(turns))
    elif x.device.type == "cuda":
        turned = turn_with_flip(pairs, turns)
    else:  # compilers fuse real operations, and have no complex ones
        (even, odd), (cos, sin) = pairs.unbind(-1), turns.unbind(-1)
        turned = torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1)
    return turned.flatten(-2).to(x.dtype)


def turn_with_flip(pairs: Tensor, turns: Tensor) -> Tensor:
    """Turn pairs [..., 2] by (cosine, sine), and give the same bits as by their halves.

    Of a stack of halves the compiler makes loads of all that may be needed, with masks: 10 in the kernel
    forward and 23 in those backward, in place of 6 and 16. A CPU is slower this way.
    """
    cos, sin = turns.split(1, dim=-1)
    signs = torch.arange(-1, 2, 2, device=pairs.device)
    turned: Tensor = pairs * cos + pairs.flip(-1) * (sin * signs)
    return turned


def add(x: Tensor, y: Tensor) -> Tensor:
    """Add to the residual stream.

    The compiler makes of a product and a sum one call of cuBLAS, which copies the stream first; it does
    not where the sum is in float32, rounds the same way, and joins what follows in one kernel.
    """
    if is_traced() and x.device.type == "cuda":
        return (x.float() + y.float()).to(x.dtype)
    return x + y


def is_traced() -> bool:
    """Return whether a graph is made of what is computed, or torch.func transforms it."""
    return (
        torch.compiler.is_compiling()
        or torch._C._get_tracing_state() is not None
        or torch._C._functorch.peek_interpreter_stack() is not None
    )


def normalise(x: Tensor, norm: nn.RMSNorm) -> Tensor:
    """Compute what `norm(x)` gives in fewer steps where x is float32; x stays as it is."""
    if x.dtype is not torch.float32 or norm.eps is None:
        normalised: Tensor = norm(x)
        return normalised
    scale = (x * x).mean(-1, keepdim=True).add_(norm.eps).rsqrt_()
    return (x * scale).mul_(norm.weight)


class SwiGLU(nn.Module):
    """Feed-forward layer `w3(silu(a) * b)` with `a, b = w12(x)` (arXiv 2002.05202).

    Attributes:
        kernel: computes the layer from x and the weights of `w12` and `w3` in place of these modules.
    """

    kernel: Callable[[Tensor, Tensor, Tensor], Tensor] | None = None

    def __init__(self, hidden_size: int, width: int) -> None:
        super().__init__()
        self.w12 = nn.Linear(hidden_size, 2 * width, bias=False)
        self.w3 = nn.Linear(width, hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return [..., hidden_size] of the same shape."""
        if self.kernel is not None:
            return self.kernel(x, self.w12.weight, self.w3.weight)
        gate, value = self.w12(x).chunk(2, dim=-1)
        output: Tensor = self.w3(F.silu(gate) * value)
        return output

    def infer(self, x: Tensor) -> Tensor:
        """Compute the same of [T, hidden_size] as two narrower products, in place and in pieces."""
        halves = self.w12.weight.chunk(2)
        pieces = []
        for piece in x.split(_INFERENCE_ROWS):
            gate, value = (F.linear(piece, half) for half in halves)
            pieces.append(F.linear(F.silu(gate, inplace=True).mul_(value), self.w3.weight))
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces)


class EncoderBlock(nn.Module):
    """Attention and feed-forward, each on a normalised copy of the residual stream."""

    def __init__(self, config: NeoBERTConfig) -> None:
        super().__init__()
        self.num_heads = config.num_attention_heads
        self.qkv = nn.Linear(config.hidden_size, 3 * config.hidden_size, bias=False)
        self.wo = nn.Linear(config.hidden_size, config.hidden_size, bias=False)
        self.ffn = SwiGLU(config.hidden_size, config.feed_forward_width)
        self.attention_norm = nn.RMSNorm(config.hidden_size, config.norm_eps)
        self.ffn_norm = nn.RMSNorm(config.hidden_size, config.norm_eps)

    def forward(self, x: Tensor, turns: Tensor, layout: Layout) -> Tensor:
        """Return [..., hidden_size] of the same shape, in the form of the layout."""
        q, k, v = self.project(x, turns)
        return self.combine(x, layout.attend(q, k, v))

    def infer(self, x: Tensor, turns: Tensor, layout: PackedLayout) -> Tensor:
        """Compute the same of [T, hidden_size] without a gradient on a CPU.

        Fewer steps, memory that is used again, and pieces that fit into what the allocator keeps save
        some 5 % of the time and half of the memory.
        """
        heads = F.linear(normalise(x, self.attention_norm), self.qkv.weight)
        attended = layout.attend(*self.turn(heads, turns))
        x = F.linear(attended.flatten(-2), self.wo.weight).add_(x)
        return self.ffn.infer(normalise(x, self.ffn_norm)).add_(x)

    def project(self, x: Tensor, turns: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Compute queries, keys and values [..., num_heads, head_size], the first two turned."""
        return self.turn(self.qkv(self.attention_norm(x)), turns)

    def turn(self, heads: Tensor, turns: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Split what `qkv` gives into q, k and v of head 0, then of head 1, ..., and turn q and k."""
        heads = heads.unflatten(-1, (self.num_heads, 3, -1))
        q, k = rotate(heads[..., :2, :], turns).unbind(-2)
        return q, k, heads[..., 2, :]

    def combine(self, x: Tensor, attended: Tensor) -> Tensor:
        """Add what was attended to, and then the feed-forward layer, to the residual stream."""
        x = add(x, self.wo(attended.flatten(-2)))
        return add(x, self.ffn(self.ffn_norm(x)))


# What is called for each kind of module that `infer` passes over; somebody may have replaced it since.
_PLAIN: dict[type[nn.Module], Any] = {
    kind: kind.forward for kind in (nn.ModuleList, nn.Linear, nn.RMSNorm, EncoderBlock, SwiGLU)
}


def is_plain(module: nn.Module) -> bool:
    """Return whether a module is of this file or a layer of torch's, with nothing added inside it."""
    state = vars(module)
    if state["_forward_hooks"] or state["_forward_pre_hooks"] or "forward" in state:
        return False
    if _PLAIN.get(type(module)) is not type(module).forward or module._compiled_call_impl:
        return False
    if state["_modules"]:
        return all(map(is_plain, state["_modules"].values()))
    weights = [type(weight) for weight in state["_parameters"].values() if weight is not None]
    return weights == [nn.Parameter]
