"""Heads on the encoder: masked language modelling, and the tasks that users of encoders fine-tune."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.modeling_outputs import (
    MaskedLMOutput,
    MultipleChoiceModelOutput,
    QuestionAnsweringModelOutput,
    SequenceClassifierOutput,
    TokenClassifierOutput,
)

from .configuration_neobert import NeoBERTConfig
from .cross_entropy import sum_cross_entropy
from .modeling_neobert import NeoBERT, NeoBERTPreTrainedModel


class VocabularyProjection(nn.Linear):
    """Hidden states to scores of the vocabulary, or straight to the loss of given labels."""

    def forward(self, hidden: Tensor, labels: Tensor | None = None) -> Any:
        """Return scores [..., vocab_size]; with labels what `sum_cross_entropy` gives of [M, hidden]."""
        if labels is None:
            return super().forward(hidden)
        return sum_cross_entropy(hidden, self.weight, self.bias, labels)


class NeoBERTForMaskedLM(NeoBERTPreTrainedModel):
    """The encoder with a vocabulary projection: predicts masked tokens."""

    _tied_weights_keys = {"decoder.weight": "model.encoder.weight"}  # noqa: RUF012

    def __init__(self, config: NeoBERTConfig) -> None:
        super().__init__(config)
        self.model = NeoBERT(config)
        self.decoder = VocabularyProjection(config.hidden_size, config.vocab_size)
        self.post_init()

    def get_output_embeddings(self) -> nn.Linear:
        """Return the vocabulary projection, tied to the embeddings by `tie_word_embeddings` only."""
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
        num_items_in_batch: Tensor | int | None = None,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> MaskedLMOutput | tuple[Any, ...]:
        """Score the vocabulary at every token, or only at the masked ones.

        Args:
            input_ids, attention_mask, position_ids, inputs_embeds: see `NeoBERT.forward`, which takes
                the other keywords as well.
            labels: of the shape of the ids with -100 where nothing is predicted; [M] beside
                `masked_positions`.
            masked_positions: [M] indices into the flattened ids; only these are projected.
            num_items_in_batch: labels to divide the summed loss by; those given when absent.
            return_dict: False returns a tuple.

        Returns:
            `logits` of the shape of the ids, or [M], with the vocabulary behind; with labels `loss`,
            their mean cross-entropy in nats.
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
            loss = _average_cross_entropy(logits, labels, num_items_in_batch)
        result = MaskedLMOutput(loss, logits, output.hidden_states, output.attentions)
        return _to_returned(result, self.config, return_dict)


# The name that the published configuration gives.
NeoBERTLMHead = NeoBERTForMaskedLM


class ClassificationHead(nn.Linear):
    """Dropout, a dense layer, tanh, dropout, and the classifier itself, whose weights are its own.

    One module under one name, so that libraries that keep a new `classifier` keep all of it.
    """

    def __init__(self, config: NeoBERTConfig) -> None:
        super().__init__(config.hidden_size, config.num_labels)
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.dropout = nn.Dropout(config.classifier_dropout)

    def forward(self, hidden: Tensor) -> Tensor:
        """Return scores [B, num_labels] of [B, hidden_size]."""
        hidden = torch.tanh(self.dense(self.dropout(hidden)))
        return super().forward(self.dropout(hidden))


class _WithHead(NeoBERTPreTrainedModel):
    """The encoder with a new head."""

    head_name = "classifier"

    def __init__(self, config: NeoBERTConfig) -> None:
        super().__init__(config)
        self.num_labels = config.num_labels
        self.model = NeoBERT(config)
        setattr(self, self.head_name, self.build_head(config))
        self.post_init()

    @staticmethod
    def build_head(config: NeoBERTConfig) -> nn.Module:
        """Return the head for a configuration."""
        raise NotImplementedError

    def _drop_out(self, hidden: Tensor) -> Tensor:
        return F.dropout(hidden, self.config.classifier_dropout, self.training)

    def _init_weights(self, module: nn.Module) -> None:
        head = getattr(self, self.head_name, None)
        if isinstance(module, nn.Linear) and head is not None and module in (*head.modules(),):
            nn.init.normal_(module.weight, std=self.config.classifier_init_range)
            nn.init.zeros_(module.bias)
        else:
            super()._init_weights(module)


class NeoBERTForSequenceClassification(_WithHead):
    """The encoder with a classifier on the hidden state of the first token, [CLS].

    Weights are stored under the published names, `dense` beside `classifier`.
    """

    def __init__(self, config: NeoBERTConfig) -> None:
        super().__init__(config)
        self._register_load_state_dict_pre_hook(_rename_published_head)
        self._register_state_dict_hook(_publish_head)

    @staticmethod
    def build_head(config: NeoBERTConfig) -> nn.Module:
        """Return the head for a configuration."""
        return ClassificationHead(config)

    @property
    def dense(self) -> nn.Linear:
        """The dense layer, where loaders look for the published name."""
        dense = self.classifier.dense
        assert isinstance(dense, nn.Linear)
        return dense

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        num_items_in_batch: Tensor | int | None = None,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> SequenceClassifierOutput | tuple[Any, ...]:
        """Score the classes for each sequence.

        Args:
            input_ids, attention_mask, position_ids, inputs_embeds: see `NeoBERT.forward`, which takes
                the other keywords as well. Packed input gives one row of scores per document.
            labels: [B] class ids, [B] or [B, num_labels] floats; `config.problem_type` decides, or
                else their dtype and `num_labels`.
            num_items_in_batch: labels to divide the summed loss by; those given when absent.
            return_dict: False returns a tuple.

        Returns:
            `logits` [B, num_labels], and `loss` when labels are given.
        """
        output = self.model(
            input_ids, attention_mask, position_ids, inputs_embeds, return_dict=True, **kwargs
        )
        bounds = kwargs.get("cu_seqlens", kwargs.get("cu_seq_lens_q"))
        logits = self.classifier(_first_tokens(output.last_hidden_state, attention_mask, bounds))
        loss = None if labels is None else self._compute_loss(logits, labels, num_items_in_batch)
        result = SequenceClassifierOutput(loss, logits, output.hidden_states, output.attentions)
        return _to_returned(result, self.config, return_dict)

    def _compute_loss(
        self, logits: Tensor, labels: Tensor, num_items: Tensor | int | None
    ) -> Tensor:
        problem = self.config.problem_type
        if problem is None:
            integral = not labels.is_floating_point()
            single = "single_label_classification" if integral else "multi_label_classification"
            problem = "regression" if self.num_labels == 1 else single
        if problem == "single_label_classification":
            return _average_cross_entropy(logits, labels, num_items)
        compute = F.mse_loss if problem == "regression" else F.binary_cross_entropy_with_logits
        scores, targets = logits.squeeze(-1).float(), labels.squeeze(-1).float()
        if num_items is None:
            return compute(scores, targets)
        return compute(scores, targets, reduction="sum") / num_items


def _rename_published_head(state: dict[str, Tensor], prefix: str, *_: Any) -> None:
    for name in ("weight", "bias"):
        if f"{prefix}dense.{name}" in state:
            state[f"{prefix}classifier.dense.{name}"] = state.pop(f"{prefix}dense.{name}")


def _publish_head(module: nn.Module, state: dict[str, Tensor], prefix: str, _: Any) -> None:
    for name in ("weight", "bias"):
        if f"{prefix}classifier.dense.{name}" in state:
            state[f"{prefix}dense.{name}"] = state.pop(f"{prefix}classifier.dense.{name}")


class NeoBERTForTokenClassification(_WithHead):
    """The encoder with a classifier on every token."""

    @staticmethod
    def build_head(config: NeoBERTConfig) -> nn.Module:
        """Return the head for a configuration."""
        return nn.Linear(config.hidden_size, config.num_labels)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        num_items_in_batch: Tensor | int | None = None,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> TokenClassifierOutput | tuple[Any, ...]:
        """Score the classes for each token.

        Args:
            input_ids, attention_mask, position_ids, inputs_embeds, num_items_in_batch, return_dict: see
                `NeoBERTForSequenceClassification.forward`.
            labels: of the shape of the ids, -100 where a token has none.

        Returns:
            `logits` of the shape of the ids with `num_labels` behind, and `loss` when labels are given.
        """
        output = self.model(
            input_ids, attention_mask, position_ids, inputs_embeds, return_dict=True, **kwargs
        )
        logits = self.classifier(self._drop_out(output.last_hidden_state))
        loss = None
        if labels is not None:
            loss = _average_cross_entropy(logits, labels, num_items_in_batch)
        result = TokenClassifierOutput(loss, logits, output.hidden_states, output.attentions)
        return _to_returned(result, self.config, return_dict)


class NeoBERTForQuestionAnswering(_WithHead):
    """The encoder with scores of every token to begin or to end an answer."""

    head_name = "qa_outputs"

    @staticmethod
    def build_head(config: NeoBERTConfig) -> nn.Module:
        """Return the head for a configuration."""
        return nn.Linear(config.hidden_size, 2)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        start_positions: Tensor | None = None,
        end_positions: Tensor | None = None,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> QuestionAnsweringModelOutput | tuple[Any, ...]:
        """Score tokens as the ends of an answer.

        Args:
            input_ids, attention_mask, position_ids, inputs_embeds, return_dict: see
                `NeoBERTForSequenceClassification.forward`.
            start_positions, end_positions: [B], of the answer; beyond the sequence for none.

        Returns:
            `start_logits` and `end_logits` [B, S]; `loss`, the mean of both, when positions are given.
        """
        output = self.model(
            input_ids, attention_mask, position_ids, inputs_embeds, return_dict=True, **kwargs
        )
        logits = self.qa_outputs(output.last_hidden_state)
        start_logits, end_logits = (scores.contiguous() for scores in logits.unbind(-1))
        loss = None
        if start_positions is not None and end_positions is not None:
            length = start_logits.shape[1]
            losses = [
                F.cross_entropy(scores.float(), at.flatten().clamp(0, length), ignore_index=length)
                for scores, at in ((start_logits, start_positions), (end_logits, end_positions))
            ]
            loss = (losses[0] + losses[1]) / 2
        result = QuestionAnsweringModelOutput(
            loss, start_logits, end_logits, output.hidden_states, output.attentions
        )
        return _to_returned(result, self.config, return_dict)


class NeoBERTForMultipleChoice(_WithHead):
    """The encoder with one score for each of several choices."""

    @staticmethod
    def build_head(config: NeoBERTConfig) -> nn.Module:
        """Return the head for a configuration."""
        return nn.Linear(config.hidden_size, 1)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        num_items_in_batch: Tensor | int | None = None,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> MultipleChoiceModelOutput | tuple[Any, ...]:
        """Score the choices.

        Args:
            input_ids, attention_mask, position_ids: [B, num_choices, S].
            inputs_embeds: [B, num_choices, S, hidden_size] in place of the ids.
            labels: [B], which choice is right.
            num_items_in_batch, return_dict: see `NeoBERTForSequenceClassification.forward`.

        Returns:
            `logits` [B, num_choices], and `loss` when labels are given.
        """
        num_choices = (inputs_embeds if input_ids is None else input_ids).shape[1]  # type: ignore[union-attr]
        flat = [
            None if value is None else value.flatten(0, 1)
            for value in (input_ids, attention_mask, position_ids, inputs_embeds)
        ]
        if kwargs.get("token_type_ids") is not None:
            kwargs["token_type_ids"] = kwargs["token_type_ids"].flatten(0, 1)
        output = self.model(*flat, return_dict=True, **kwargs)
        hidden = _first_tokens(output.last_hidden_state, flat[1], None)
        logits = self.classifier(self._drop_out(hidden)).view(-1, num_choices)
        loss = None
        if labels is not None:
            loss = _average_cross_entropy(logits, labels, num_items_in_batch)
        result = MultipleChoiceModelOutput(loss, logits, output.hidden_states, output.attentions)
        return _to_returned(result, self.config, return_dict)


def _average_cross_entropy(
    logits: Tensor, labels: Tensor, num_items: Tensor | int | None
) -> Tensor:
    """Average over labels that are not -100, or divide the sum by a number of items."""
    scores, targets = logits.flatten(0, -2).float(), labels.flatten()
    if num_items is None:
        return F.cross_entropy(scores, targets)
    return F.cross_entropy(scores, targets, reduction="sum") / num_items


def _first_tokens(
    hidden: Tensor, attention_mask: Tensor | None, cu_seqlens: Tensor | None
) -> Tensor:
    """Take the hidden state of the first token of every sequence, left padding passed over."""
    if cu_seqlens is not None:
        return hidden.reshape(-1, hidden.shape[-1])[cu_seqlens[:-1].long()]
    if attention_mask is None or attention_mask.dim() == 4:
        return hidden[:, 0]
    # Without the number of sequences, which tracing would take for fixed.
    first = (attention_mask != 0).int().argmax(dim=-1)[:, None, None]
    return hidden.gather(1, first.expand(-1, 1, hidden.shape[-1]))[:, 0]


def _to_returned(result: Any, config: NeoBERTConfig, return_dict: bool | None) -> Any:
    wants_names = config.return_dict if return_dict is None else return_dict
    return result if wants_names else result.to_tuple()
