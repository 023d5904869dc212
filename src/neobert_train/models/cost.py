"""What a model costs, by its kind; imports no torch, so that `plan` answers at once."""

from collections.abc import Callable
from typing import Any, Protocol

from neobert_train.config.model_schema import (
    HuggingFaceModelConfig,
    ModelConfig,
    NeoBERTModelConfig,
)
from neobert_train.models.hugging_face_cost import HuggingFaceCost
from neobert_train.models.neobert_cost import NeoBERTCost
from neobert_train.models.size import ModelSize


class ModelCost(Protocol):
    """The size of a model, and what a micro-batch of it takes."""

    @property
    def size(self) -> ModelSize:
        """Parameters and the shape that operations follow from."""

    def estimate_activation_bytes(
        self, tokens: int, target_share: float, bf16: bool, compiled: bool
    ) -> float:
        """Return about how many bytes one micro-batch takes on a GPU beside the training state.

        Args:
            tokens: of the micro-batch.
            target_share: share of them that is predicted.
            bf16: whether the forward pass is in bf16, or else in fp32.
            compiled: whether the blocks are compiled.
        """


COSTS: dict[type[ModelConfig], Callable[[Any, int], ModelCost]] = {
    NeoBERTModelConfig: NeoBERTCost,
    HuggingFaceModelConfig: HuggingFaceCost,
}


def build_cost(model: ModelConfig, vocab_size: int) -> ModelCost:
    """Return what a model with this many token ids costs."""
    return COSTS[type(model)](model, vocab_size)
