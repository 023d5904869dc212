"""NeoBERT: pre-norm transformer encoder with rotary positions and SwiGLU (arXiv 2502.19587)."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

from .attention import choose_backend
from .blocks import EncoderBlock, is_plain, is_traced, rotary_factors
from .configuration_neobert import NeoBERTConfig
from .layouts import Layout, PackedLayout, build_packed_layout, build_padded_layout, close_documents

# Inference on a CPU takes so many tokens through the encoder at a time.
_INFERENCE_TOKENS = 2048
# Which backends the names mean that `from_pretrained(attn_implementation=...)` takes.
_BACKENDS_BY_IMPLEMENTATION = {
    "sdpa": "torch",
    "flash_attention_2": "flash_attn",
    "flash_attention_3": "flash_attn",
}


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
        run_blocks: computes all blocks of hidden states, rotary factors and a layout in one call, in
            which hooks of blocks are passed over. Where the outputs of blocks are wanted, or
            activations are checkpointed, blocks are called one by one.
    """

    attention_backend: str | None = None
    run_blocks: Callable[[Tensor, Tensor, Layout], Tensor] | None = None

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
        is_checkpointed = self.gradient_checkpointing and self.training
        if self.run_blocks is not None and not (want_states or want_attentions or is_checkpointed):
            return [self.layer_norm(self.run_blocks(x, turns, layout))], ()
        states: list[Tensor] = []
        attentions: list[Tensor] = []
        for block in self.transformer_encoder:
            states += [x] if want_states else []
            if want_attentions:
                q, k, _ = block.project(x, turns)  # type: ignore[operator]
                attentions.append(layout.compute_weights(q, k))  # type: ignore[union-attr]
            if is_checkpointed:
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
            or is_traced()
        ) and is_plain(self.transformer_encoder)

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
        if want_attentions or is_eager or has_pairs or (is_traced() and documents is None):
            return build_padded_layout(*arguments, is_eager=want_attentions or is_eager)
        wanted = self.attention_backend or _BACKENDS_BY_IMPLEMENTATION.get(implementation, "torch")
        return build_packed_layout(*arguments, choose_backend(wanted, x.device, _compute_dtype(x)))


def _compute_dtype(x: Tensor) -> torch.dtype:
    """Return the dtype that linear layers give for x, which autocast may change."""
    if torch.is_autocast_enabled(x.device.type):
        return torch.get_autocast_dtype(x.device.type)
    return x.dtype


def _or_config(value: bool | None, default: bool) -> bool:
    return default if value is None else value
