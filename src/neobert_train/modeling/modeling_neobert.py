"""NeoBERT: pre-norm transformer encoder with rotary positions and SwiGLU (arXiv 2502.19587)."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

from .attention import choose_backend
from .configuration_neobert import NeoBERTConfig
from .layouts import Layout, PackedLayout, build_packed_layout, build_padded_layout, close_documents

ROPE_THETA = 10_000.0
# Inference on a CPU takes so many tokens through the encoder at a time, and through a feed-forward layer.
_INFERENCE_TOKENS = 2048
_INFERENCE_ROWS = 1024
# Which backends the names mean that `from_pretrained(attn_implementation=...)` takes.
_BACKENDS_BY_IMPLEMENTATION = {
    "sdpa": "torch",
    "flash_attention_2": "flash_attn",
    "flash_attention_3": "flash_attn",
}


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
    if not _is_traced():  # one product instead of six
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


def _is_traced() -> bool:
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
    """Feed-forward layer `w3(silu(a) * b)` with `a, b = w12(x)` (arXiv 2002.05202)."""

    def __init__(self, hidden_size: int, width: int) -> None:
        super().__init__()
        self.w12 = nn.Linear(hidden_size, 2 * width, bias=False)
        self.w3 = nn.Linear(width, hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return [..., hidden_size] of the same shape."""
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
        x = x + self.wo(attended.flatten(-2))
        output: Tensor = x + self.ffn(self.ffn_norm(x))
        return output


class NeoBERTPreTrainedModel(PreTrainedModel):
    """What all NeoBERT models share: their configuration, and how weights are initialised."""

    config_class = NeoBERTConfig
    base_model_prefix = "model"
    _no_split_modules = ["EncoderBlock"]  # noqa: RUF012
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn_2 = True  # of transformers 4
    _supports_flash_attn = True
    # Losses are divided by `num_items_in_batch` where transformers' Trainer gives it.
    accepts_loss_kwargs = True

    def _init_weights(self, module: nn.Module) -> None:
        config = self.config
        if isinstance(module, nn.Linear):
            nn.init.uniform_(module.weight, -config.decoder_init_range, config.decoder_init_range)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            bound = config.embedding_init_range
            nn.init.uniform_(module.weight, -bound, bound)
            # transformers marks what it has loaded, and keeps only the functions above from it (5.3).
            is_loaded = getattr(module.weight, "_is_hf_initialized", False)
            if module.padding_idx is not None and not is_loaded:
                with torch.no_grad():
                    module.weight[module.padding_idx].zero_()
        elif isinstance(module, nn.RMSNorm):
            nn.init.ones_(module.weight)


class NeoBERT(NeoBERTPreTrainedModel):
    """The encoder: token ids to hidden states.

    Attributes:
        attention_backend: see `choose_backend`; None follows `attn_implementation`: `sdpa` (the
            default) takes torch's own kernels, packed where there are packed ones, `flash_attention_2`
            and `flash_attention_3` the package, `eager` computes probabilities by themselves.
    """

    attention_backend: str | None = None

    def __init__(self, config: NeoBERTConfig) -> None:
        super().__init__(config)
        self.encoder = nn.Embedding(
            config.vocab_size, config.hidden_size, padding_idx=config.pad_token_id
        )
        self.transformer_encoder = nn.ModuleList(
            EncoderBlock(config) for _ in range(config.num_hidden_layers)
        )
        self.layer_norm = nn.RMSNorm(config.hidden_size, config.norm_eps)
        self.gradient_checkpointing = False
        self.post_init()

    def get_input_embeddings(self) -> nn.Embedding:
        """Return the token embeddings, under the name transformers looks for."""
        return self.encoder

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        """Replace the token embeddings."""
        self.encoder = value

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
        max_seqlen: int | None = None,
        cu_seq_lens_q: Tensor | None = None,
        cu_seq_lens_k: Tensor | None = None,
        max_length_q: int | None = None,
        max_length_k: int | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
    ) -> BaseModelOutput | tuple[Any, ...]:
        """Encode padded sequences, or documents packed one after the other.

        Args:
            input_ids: [B, S] padded; with `cu_seqlens` packed as [T] or [1, T].
            attention_mask: [B, S], nonzero at tokens; all tokens when absent. Or [B, 1, S, S] for
                pairs of tokens: boolean, or numbers to add to the scores.
            position_ids: of the same shape; counted from the start of each document when absent. Rows
                without padding that count from 0 several times hold as many documents.
            inputs_embeds: [..., hidden_size] in place of `input_ids`.
            token_type_ids: not used, since this model knows no types; tokenizers of BERT give them.
            cu_seqlens: [num_documents + 1], where packed documents begin and the last one ends.
            max_seqlen: tokens of the longest packed document, or of the padding behind them where
                that is longer; read from `cu_seqlens` when absent, which waits for a GPU.
            cu_seq_lens_q, cu_seq_lens_k, max_length_q, max_length_k: transformers' names for the same.
            output_hidden_states: also return the embeddings and the output of every block; the last
                one is normalised, and so the same as `last_hidden_state`.
            output_attentions: also return attention probabilities [B, heads, S, S] of every block.
            return_dict: False returns a tuple.

        Returns:
            `last_hidden_state` of the shape of the ids with `hidden_size` behind; zero at padding.

        Raises:
            ValueError: not exactly one of the two inputs, or shapes that do not fit.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give exactly one of input_ids and inputs_embeds")
        want_states = _or_config(output_hidden_states, self.config.output_hidden_states)
        want_attentions = _or_config(output_attentions, self.config.output_attentions)
        cu_seqlens = cu_seq_lens_q if cu_seqlens is None else cu_seqlens
        max_seqlen = max_length_q if max_seqlen is None else max_seqlen
        x = self.encoder(input_ids) if inputs_embeds is None else inputs_embeds
        layout = self._build_layout(
            x, attention_mask, position_ids, cu_seqlens, max_seqlen, want_attentions
        )
        x = layout.enter(x)
        attentions: tuple[Tensor, ...] = ()
        if isinstance(layout, PackedLayout) and self._is_plain_inference(x):
            states = self._infer(x, layout, want_states)
        else:
            states, attentions = self._encode(x, layout, want_states, want_attentions)
        output = BaseModelOutput(
            last_hidden_state=layout.leave(states[-1]),
            hidden_states=tuple(map(layout.leave, states)) if want_states else None,
            attentions=attentions if want_attentions else None,
        )
        return output if _or_config(return_dict, self.config.return_dict) else output.to_tuple()

    def _encode(
        self, x: Tensor, layout: Layout, want_states: bool, want_attentions: bool
    ) -> tuple[list[Tensor], tuple[Tensor, ...]]:
        """Return hidden states, the normalised ones last, and attention probabilities as wanted."""
        turns = rotary_factors(layout.position_ids, self.config.dim_head)
        states: list[Tensor] = []
        attentions: list[Tensor] = []
        for block in self.transformer_encoder:
            states += [x] if want_states else []
            if want_attentions:
                q, k, _ = block.project(x, turns)  # type: ignore[operator]
                attentions.append(layout.compute_weights(q, k))  # type: ignore[union-attr]
            if self.gradient_checkpointing and self.training:
                x = self._gradient_checkpointing_func(block.__call__, x, turns, layout)
            else:
                x = block(x, turns, layout)
        return [*states, self.layer_norm(x)], tuple(attentions)

    def _infer(self, x: Tensor, layout: PackedLayout, want_states: bool) -> list[Tensor]:
        """Return what `_encode` does, for `_is_plain_inference`: some documents after the others."""
        parts = [
            self._infer_part(x[tokens], part, want_states)
            for tokens, part in layout.split(_INFERENCE_TOKENS)
        ]
        return parts[0] if len(parts) == 1 else [torch.cat(p) for p in zip(*parts, strict=True)]

    def _infer_part(self, x: Tensor, layout: PackedLayout, want_states: bool) -> list[Tensor]:
        turns = rotary_factors(layout.position_ids, self.config.dim_head)
        states: list[Tensor] = []
        for block in self.transformer_encoder:
            states += [x] if want_states else []
            x = block.infer(x, turns, layout)  # type: ignore[operator]
        return [*states, self.layer_norm(x)]

    def _is_plain_inference(self, x: Tensor) -> bool:
        """Return whether a CPU computes without a gradient, and blocks are no more than their weights.

        Adapters, quantised weights and hooks need every layer to be called as a whole. So do graphs, and
        feed-forward layers whose width is no multiple of 64: a CPU rounds the end of their rows number
        by number, so that the halves would differ from the whole in the last bit.
        """
        return not (
            x.device.type != "cpu"
            or torch.is_grad_enabled()
            or torch.is_autocast_enabled("cpu")
            or self.config.feed_forward_width % 64
            or nn.modules.module._has_any_global_hook()
            or _is_traced()
        ) and _is_plain(self.transformer_encoder)

    def _build_layout(
        self,
        x: Tensor,
        attention_mask: Tensor | None,
        position_ids: Tensor | None,
        cu_seqlens: Tensor | None,
        max_seqlen: int | None,
        want_attentions: bool,
    ) -> Layout:
        """Return the form in which to compute a call; errors as those of `forward`."""
        shape = x.shape[:-1]
        if attention_mask is not None and cu_seqlens is not None:
            raise ValueError("give attention_mask (padded form) or cu_seqlens (packed), not both")
        documents = None
        if cu_seqlens is not None:
            documents = close_documents(shape, cu_seqlens, max_seqlen)
        elif len(shape) != 2:
            raise ValueError(f"padded input has the shape [B, S], not {list(shape)}")
        if position_ids is not None:
            if position_ids.shape[-1] != shape[-1]:
                raise ValueError(
                    f"position_ids has the shape {list(position_ids.shape)}, the input {list(shape)}"
                )
            position_ids = position_ids.view(-1, shape[-1])
        has_pairs = attention_mask is not None and attention_mask.dim() == 4
        if attention_mask is not None and not has_pairs and attention_mask.shape != shape:
            raise ValueError(
                f"attention_mask has the shape {list(attention_mask.shape)}, the input {list(shape)}"
            )
        implementation = getattr(self.config, "_attn_implementation", None) or "sdpa"
        is_eager = self.attention_backend is None and implementation == "eager"
        arguments = shape, x.device, attention_mask, position_ids, documents
        if want_attentions or is_eager or has_pairs or (_is_traced() and documents is None):
            return build_padded_layout(*arguments, is_eager=want_attentions or is_eager)
        wanted = self.attention_backend or _BACKENDS_BY_IMPLEMENTATION.get(implementation, "torch")
        return build_packed_layout(*arguments, choose_backend(wanted, x.device, _compute_dtype(x)))


# What is called for each kind of module that `infer` passes over; somebody may have replaced it since.
_PLAIN: dict[type[nn.Module], Any] = {
    kind: kind.forward for kind in (nn.ModuleList, nn.Linear, nn.RMSNorm, EncoderBlock, SwiGLU)
}


def _is_plain(module: nn.Module) -> bool:
    """Return whether a module is of this file or a layer of torch's, with nothing added inside it."""
    state = vars(module)
    if state["_forward_hooks"] or state["_forward_pre_hooks"] or "forward" in state:
        return False
    if _PLAIN.get(type(module)) is not type(module).forward or module._compiled_call_impl:
        return False
    if state["_modules"]:
        return all(map(_is_plain, state["_modules"].values()))
    weights = [type(weight) for weight in state["_parameters"].values() if weight is not None]
    return weights == [nn.Parameter]


def _compute_dtype(x: Tensor) -> torch.dtype:
    """Return the dtype that linear layers give for x, which autocast may change."""
    if torch.is_autocast_enabled(x.device.type):
        return torch.get_autocast_dtype(x.device.type)
    return x.dtype


def _or_config(value: bool | None, default: bool) -> bool:
    return default if value is None else value
