"""What a network of transformers costs, counted on one without memory; imports torch when asked only."""

from dataclasses import dataclass
from functools import cached_property

from neobert_train.config.model_schema import HuggingFaceModelConfig
from neobert_train.models.size import ModelSize

# Tensors of the hidden width, and of the feed-forward width, that a block keeps of a token for its
# backward pass: inputs of four products and two norms, queries, keys and values, and the residual
# stream; input and output of the activation.
_HIDDEN_TENSORS, _WIDE_TENSORS = 10, 2


@dataclass(frozen=True)
class HuggingFaceCost:
    """The size of a network of transformers, and about what a micro-batch takes.

    Attributes:
        model: which one.
        vocab_size: entries of the tokenizer's vocabulary.
    """

    model: HuggingFaceModelConfig
    vocab_size: int

    @cached_property
    def size(self) -> ModelSize:
        """Parameters, in all and in blocks."""
        return self._measured[0]

    @cached_property
    def _measured(self) -> tuple[ModelSize, int]:
        """The size, and the width of the feed-forward layers."""
        import torch

        from neobert_train.models.encoder import measure_size
        from neobert_train.models.hugging_face import HuggingFaceEncoder, build_network
        from neobert_train.models.hugging_face_config import make_network_config

        config = make_network_config(self.model, self.vocab_size, None, None)
        with torch.device("meta"):
            encoder = HuggingFaceEncoder(build_network(config, self.model))
        width = getattr(config, "intermediate_size", None) or 4 * config.hidden_size
        return measure_size(encoder), width

    def estimate_activation_bytes(
        self, tokens: int, target_share: float, bf16: bool, compiled: bool
    ) -> float:
        """Return about how many bytes one micro-batch takes on a GPU beside the training state.

        An estimate for any architecture, of packed documents; padded rows take about an eighth more.
        """
        (size, width), element = self._measured, 2 if bf16 else 4
        block = _HIDDEN_TENSORS * size.hidden_size + _WIDE_TENSORS * width
        recomputed = self.model.activation_checkpointing
        kept = size.num_layers * size.hidden_size + block if recomputed else size.num_layers * block
        targets = target_share * tokens
        loss = element * targets * size.hidden_size + 4 * size.vocab_size * size.hidden_size
        return element * tokens * kept + loss
