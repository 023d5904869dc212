"""NeoBERT: pre-norm transformer encoder with rotary positions and SwiGLU (arXiv 2502.19587).

There is one way through the model, flat and packed: T tokens of several documents, each attending
to itself. The ordinary padded call [B, S] is unpadded on entry and padded again on exit.
"""

import itertools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import (
    BaseModelOutput,
    MaskedLMOutput,
    SequenceClassifierOutput,
)

from .attention import attend, attention_weights, choose_backend
from .configuration_neobert import NeoBERTConfig
from .cross_entropy import sum_cross_entropy

ROPE_THETA = 10_000.0


def rotary_factors(position_ids: Tensor, head_size: int) -> Tensor:
    """By what to turn pairs of channels for their position (RoFormer, equation 15).

    Args:
        position_ids: [T] integers.
        head_size: channels of a head.

    Returns:
        Cosine and sine, [T, 1, head_size / 2, 2] float32. They are computed at every forward,
        since a buffer would be left uninitialised when the model is built on the meta device.
    """
    channels = torch.arange(0, head_size, 2, device=position_ids.device, dtype=torch.float32)
    frequencies = ROPE_THETA ** (-channels / head_size)
    angles = (position_ids.float()[:, None] * frequencies)[:, None, :]
    return torch.stack((angles.cos(), angles.sin()), dim=-1)


def rotate(x: Tensor, turns: Tensor) -> Tensor:
    """Turn interleaved channel pairs (x0, x1), (x2, x3), ... of x [T, num_heads, head_size]."""
    pairs = x.float().unflatten(-1, (-1, 2))
    if torch.compiler.is_compiling():  # it fuses real operations, and has no complex ones
        (even, odd), (cos, sin) = pairs.unbind(-1), turns.unbind(-1)
        turned = torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1)
    else:  # one product instead of six
        turned = torch.view_as_real(torch.view_as_complex(pairs) * torch.view_as_complex(turns))
    return turned.flatten(-2).to(x.dtype)


class SwiGLU(nn.Module):
    """Feed-forward layer `w3(silu(a) * b)` with `a, b = w12(x)` (arXiv 2002.05202)."""

    def __init__(self, hidden_size: int, width: int) -> None:
        super().__init__()
        self.w12 = nn.Linear(hidden_size, 2 * width, bias=False)
        self.w3 = nn.Linear(width, hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[T, hidden_size] to the same shape."""
        gate, value = self.w12(x).chunk(2, dim=-1)
        return self.w3(F.silu(gate) * value)


class EncoderBlock(GradientCheckpointingLayer):
    """Attention and feed-forward, each on a normalised copy of the residual stream."""

    def __init__(self, config: NeoBERTConfig) -> None:
        super().__init__()
        self.num_heads = config.num_attention_heads
        self.qkv = nn.Linear(config.hidden_size, 3 * config.hidden_size, bias=False)
        self.wo = nn.Linear(config.hidden_size, config.hidden_size, bias=False)
        self.ffn = SwiGLU(config.hidden_size, config.feed_forward_width)
        self.attention_norm = nn.RMSNorm(config.hidden_size, config.norm_eps)
        self.ffn_norm = nn.RMSNorm(config.hidden_size, config.norm_eps)

    def forward(
        self, x: Tensor, turns: Tensor, cu_seqlens: Tensor, max_seqlen: int, backend: str
    ) -> Tensor:
        """[T, hidden_size] to the same shape; the other arguments as in `attend`."""
        q, k, v = self.project(x, turns)
        return self.combine(x, attend(q, k, v, cu_seqlens, max_seqlen, backend))

    def project(self, x: Tensor, turns: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values [T, num_heads, head_size], the first two with positions.

        The rows of the weight lie head by head: q, k and v of head 0, then of head 1, ...
        """
        heads = self.qkv(self.attention_norm(x)).unflatten(-1, (self.num_heads, -1))
        q, k, v = heads.chunk(3, dim=-1)
        return rotate(q, turns), rotate(k, turns), v

    def combine(self, x: Tensor, attended: Tensor) -> Tensor:
        """Add what was attended to, and the feed-forward layer, to the residual stream."""
        x = x + self.wo(attended.flatten(-2))
        return x + self.ffn(self.ffn_norm(x))


class NeoBERTPreTrainedModel(PreTrainedModel):
    """What all NeoBERT models share: configuration, initial weights, gradient checkpointing."""

    config_class = NeoBERTConfig
    base_model_prefix = "model"
    _no_split_modules = ["EncoderBlock"]  # noqa: RUF012
    supports_gradient_checkpointing = True
    # The heads return means, so the Trainer has to divide by its accumulation steps.
    accepts_loss_kwargs = False

    def _init_weights(self, module: nn.Module) -> None:
        config = self.config
        if isinstance(module, nn.Linear):
            nn.init.uniform_(module.weight, -config.decoder_init_range, config.decoder_init_range)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            bound = config.embedding_init_range
            nn.init.uniform_(module.weight, -bound, bound)
            if module.padding_idx is not None:
                with torch.no_grad():
                    module.weight[module.padding_idx].zero_()
        elif isinstance(module, nn.RMSNorm):
            nn.init.ones_(module.weight)


class NeoBERT(NeoBERTPreTrainedModel):
    """The encoder: token ids to hidden states.

    Attributes:
        attention_backend: see `choose_backend`; `auto` decides at every call by device and dtype.
    """

    attention_backend = "auto"

    def __init__(self, config: NeoBERTConfig) -> None:
        super().__init__(config)
        self.encoder = nn.Embedding(
            config.vocab_size, config.hidden_size, padding_idx=config.pad_token_id
        )
        self.transformer_encoder = nn.ModuleList(
            EncoderBlock(config) for _ in range(config.num_hidden_layers)
        )
        self.layer_norm = nn.RMSNorm(config.hidden_size, config.norm_eps)
        self.post_init()

    def get_input_embeddings(self) -> nn.Embedding:
        """The token embeddings, under the name transformers looks for."""
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
        cu_seqlens: Tensor | None = None,
        max_seqlen: int | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> BaseModelOutput | tuple[Any, ...]:
        """Encode padded sequences, or documents packed one after the other.

        Args:
            input_ids: [B, S] padded; with `cu_seqlens` packed as [T] or [1, T].
            attention_mask: [B, S], nonzero at tokens; all tokens when absent. Padded form only.
            position_ids: of the same shape; counts from the start of each sequence when absent.
            inputs_embeds: [..., hidden_size] in place of `input_ids`.
            cu_seqlens: [num_documents + 1], where packed documents begin and the last one ends.
            max_seqlen: tokens of the longest packed document, or of the padding behind them where
                that is longer; read from `cu_seqlens` when absent, which waits for a GPU.
            output_hidden_states: also return the embeddings and the output of every block.
            output_attentions: also return attention probabilities [B, heads, S, S] of every block;
                padded form only.
            return_dict: False returns a tuple.

        Returns:
            `last_hidden_state` of the shape of the ids with `hidden_size` behind; zero at padding.

        Raises:
            ValueError: not exactly one of the two inputs, or options that exclude each other.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give exactly one of input_ids and inputs_embeds")
        want_states = _or_config(output_hidden_states, self.config.output_hidden_states)
        want_attentions = _or_config(output_attentions, self.config.output_attentions)
        if want_attentions and cu_seqlens is not None:
            raise ValueError("output_attentions needs the padded form: leave out cu_seqlens")
        if attention_mask is not None and cu_seqlens is not None:
            raise ValueError("give attention_mask (padded form) or cu_seqlens (packed), not both")

        x = self.encoder(input_ids) if inputs_embeds is None else inputs_embeds
        packing = _Packing.build(x, attention_mask, position_ids, cu_seqlens, max_seqlen)
        x = packing.flatten(x)
        turns = rotary_factors(packing.position_ids, self.config.dim_head)
        backend = choose_backend(self.attention_backend, x.device, _compute_dtype(x))

        states, attentions = [x], []
        for block in self.transformer_encoder:
            if want_attentions:
                q, k, _ = block.project(x, turns)  # type: ignore[operator]
                attentions.append(packing.attention_weights(q, k))
            x = block(x, turns, packing.cu_seqlens, packing.max_seqlen, backend)
            if want_states:
                states.append(x)
        output = BaseModelOutput(
            last_hidden_state=packing.restore(self.layer_norm(x)),
            hidden_states=tuple(map(packing.restore, states)) if want_states else None,
            attentions=tuple(attentions) if want_attentions else None,
        )
        return output if _or_config(return_dict, self.config.return_dict) else output.to_tuple()


def _compute_dtype(x: Tensor) -> torch.dtype:
    """The dtype that linear layers give for x, which autocast may change."""
    if torch.is_autocast_enabled(x.device.type):
        return torch.get_autocast_dtype(x.device.type)
    return x.dtype


def _or_config(value: bool | None, default: bool) -> bool:
    return default if value is None else value


class _Packing:
    """How the tokens of a call lie in the flat form, and the way back."""

    def __init__(
        self, shape: torch.Size, indices: Tensor | None, position_ids: Tensor, cu_seqlens: Tensor,
        max_seqlen: int,
    ) -> None:  # fmt: skip
        self.shape, self.indices, self.position_ids = shape, indices, position_ids
        self.cu_seqlens, self.max_seqlen = cu_seqlens, max_seqlen

    @classmethod
    def build(
        cls,
        x: Tensor,
        attention_mask: Tensor | None,
        position_ids: Tensor | None,
        cu_seqlens: Tensor | None,
        max_seqlen: int | None,
    ) -> "_Packing":
        if cu_seqlens is not None:
            return cls._from_packed(x, position_ids, cu_seqlens, max_seqlen)
        return cls._from_padded(x, attention_mask, position_ids)

    @classmethod
    def _from_packed(
        cls, x: Tensor, position_ids: Tensor | None, cu_seqlens: Tensor, max_seqlen: int | None
    ) -> "_Packing":
        shape = x.shape[:-1]
        if x.dim() == 3 and x.shape[0] != 1:
            raise ValueError(f"packed input has the shape [T] or [1, T], not {list(shape)}")
        num_tokens = shape[-1]
        # Padding behind the last document becomes a document of its own: kernels leave rows that
        # no document covers undefined, and their gradients too.
        end = cu_seqlens.new_full((1,), num_tokens)
        cu_seqlens = torch.cat((cu_seqlens, end)).int()
        if max_seqlen is None:
            max_seqlen = int(cu_seqlens.diff().max())
        if position_ids is None:
            tokens = torch.arange(num_tokens, device=x.device)
            document = torch.searchsorted(cu_seqlens, tokens, right=True) - 1
            position_ids = tokens - cu_seqlens[document]
        return cls(shape, None, position_ids.reshape(-1), cu_seqlens, max_seqlen)

    @classmethod
    def _from_padded(
        cls, x: Tensor, attention_mask: Tensor | None, position_ids: Tensor | None
    ) -> "_Packing":
        shape = x.shape[:-1]
        if x.dim() != 3:
            raise ValueError(f"padded input has the shape [B, S], not {list(shape)}")
        batch, length = shape
        if attention_mask is None:
            attention_mask = torch.ones(shape, dtype=torch.bool, device=x.device)
        elif attention_mask.shape != shape:
            raise ValueError(
                f"attention_mask has the shape {list(attention_mask.shape)}, the input {list(shape)}"
            )
        if position_ids is None:
            position_ids = torch.arange(length, device=x.device)
        indices = attention_mask.flatten().nonzero().squeeze(-1)
        lengths = (attention_mask != 0).sum(dim=-1, dtype=torch.int32)
        cu_seqlens = F.pad(lengths.cumsum(0, dtype=torch.int32), (1, 0))
        positions = position_ids.expand(batch, length).flatten()[indices]
        return cls(shape, indices, positions, cu_seqlens, length)

    def flatten(self, x: Tensor) -> Tensor:
        """[B, S, width] or [1, T, width] to [T, width]."""
        flat = x.reshape(-1, x.shape[-1])
        return flat if self.indices is None else flat[self.indices]

    def restore(self, x: Tensor) -> Tensor:
        """[T, width] back to the shape of the call, zero at padding."""
        if self.indices is not None:
            padded = x.new_zeros(self.shape.numel(), x.shape[-1])
            x = padded.index_copy(0, self.indices, x)
        return x.view(*self.shape, x.shape[-1])

    def attention_weights(self, q: Tensor, k: Tensor) -> Tensor:
        """[B, num_heads, S, S] of the padded form, zero where a row or column is padding."""
        assert self.indices is not None
        batch, length = self.shape
        weights = q.new_zeros(batch, q.shape[1], length, length)
        bounds = self.cu_seqlens.tolist()
        for row, (start, stop) in enumerate(itertools.pairwise(bounds)):
            columns = self.indices[start:stop] - row * length
            probabilities = attention_weights(q[start:stop], k[start:stop], stop - start)
            weights[row][:, columns[:, None], columns] = probabilities
        return weights


class VocabularyProjection(nn.Linear):
    """Hidden states to scores of the vocabulary, or straight to the loss of given labels."""

    def forward(self, hidden: Tensor, labels: Tensor | None = None) -> Any:
        """Scores [..., vocab_size]; with labels what `sum_cross_entropy` gives of [M, hidden]."""
        if labels is None:
            return super().forward(hidden)
        return sum_cross_entropy(hidden, self.weight, self.bias, labels)


class NeoBERTLMHead(NeoBERTPreTrainedModel):
    """The encoder with a vocabulary projection: predicts masked tokens."""

    def __init__(self, config: NeoBERTConfig) -> None:
        super().__init__(config)
        self.model = NeoBERT(config)
        self.decoder = VocabularyProjection(config.hidden_size, config.vocab_size)
        self.post_init()

    def get_output_embeddings(self) -> nn.Linear:
        """The vocabulary projection; its weights are not tied to the embeddings."""
        return self.decoder

    def set_output_embeddings(self, new_embeddings: VocabularyProjection) -> None:
        """Replace the vocabulary projection."""
        self.decoder = new_embeddings

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        masked_positions: Tensor | None = None,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> MaskedLMOutput | tuple[Any, ...]:
        """Scores of the vocabulary at every token, or at the masked ones alone.

        Args:
            input_ids, attention_mask, position_ids, inputs_embeds: see `NeoBERT.forward`, as are
                `cu_seqlens`, `max_seqlen` and the options for more outputs.
            labels: of the shape of the ids with -100 where nothing is predicted; [M] beside
                `masked_positions`.
            masked_positions: [M] indices into the flattened ids; only these are projected.
            return_dict: False returns a tuple.

        Returns:
            `logits` of the shape of the ids, or [M], with the vocabulary behind; `loss`, the mean
            cross-entropy over the labels in nats, when labels are given.
        """
        output = self.model(
            input_ids, attention_mask, position_ids, inputs_embeds, return_dict=True, **kwargs
        )
        hidden = output.last_hidden_state
        if masked_positions is not None:
            hidden = hidden.reshape(-1, hidden.shape[-1])[masked_positions]
        logits = self.decoder(hidden)
        loss = None
        if labels is not None:
            loss = F.cross_entropy(logits.flatten(0, -2).float(), labels.flatten())
        result = MaskedLMOutput(loss, logits, output.hidden_states, output.attentions)
        return result if _or_config(return_dict, self.config.return_dict) else result.to_tuple()


class NeoBERTForSequenceClassification(NeoBERTPreTrainedModel):
    """The encoder with a classifier on the hidden state of the first token, [CLS]."""

    def __init__(self, config: NeoBERTConfig) -> None:
        super().__init__(config)
        self.num_labels = config.num_labels
        self.model = NeoBERT(config)
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.dropout = nn.Dropout(config.classifier_dropout)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        if module in (self.dense, self.classifier):
            nn.init.normal_(module.weight, std=self.config.classifier_init_range)
            nn.init.zeros_(module.bias)
        else:
            super()._init_weights(module)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> SequenceClassifierOutput | tuple[Any, ...]:
        """Scores of the classes for each sequence.

        Args:
            input_ids, attention_mask, position_ids, inputs_embeds: see `NeoBERT.forward`. Packed
                input gives one row of scores per document.
            labels: [B] class ids, [B] or [B, num_labels] floats; `config.problem_type` decides, or
                else their dtype and `num_labels`.
            return_dict: False returns a tuple.

        Returns:
            `logits` [B, num_labels], and `loss` when labels are given.
        """
        output = self.model(
            input_ids, attention_mask, position_ids, inputs_embeds, return_dict=True, **kwargs
        )
        hidden = _first_tokens(output.last_hidden_state, attention_mask, kwargs.get("cu_seqlens"))
        hidden = torch.tanh(self.dense(self.dropout(hidden)))
        logits = self.classifier(self.dropout(hidden))
        loss = None if labels is None else self._compute_loss(logits, labels)
        result = SequenceClassifierOutput(loss, logits, output.hidden_states, output.attentions)
        return result if _or_config(return_dict, self.config.return_dict) else result.to_tuple()

    def _compute_loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        problem = self.config.problem_type
        if problem is None:
            integral = not labels.is_floating_point()
            single = "single_label_classification" if integral else "multi_label_classification"
            problem = "regression" if self.num_labels == 1 else single
        if problem == "regression":
            return F.mse_loss(logits.squeeze(-1).float(), labels.squeeze(-1).float())
        if problem == "single_label_classification":
            return F.cross_entropy(logits.float(), labels.flatten())
        return F.binary_cross_entropy_with_logits(logits.float(), labels.float())


def _first_tokens(
    hidden: Tensor, attention_mask: Tensor | None, cu_seqlens: Tensor | None
) -> Tensor:
    """Hidden state of the first token of every sequence, left padding passed over."""
    if cu_seqlens is not None:
        return hidden.reshape(-1, hidden.shape[-1])[cu_seqlens[:-1].long()]
    if attention_mask is None:
        return hidden[:, 0]
    first = (attention_mask != 0).int().argmax(dim=-1)
    return hidden[torch.arange(len(hidden), device=hidden.device), first]
