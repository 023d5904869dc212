"""Masked language modelling on one packed micro-batch, as the module that DeepSpeed runs."""

from torch import Tensor, nn

from neobert_train.batch import Batch
from neobert_train.modeling.heads import NeoBERTForMaskedLM


class MaskedLanguageModelling(nn.Module):
    """Sums over masked tokens, from which losses of any batch can be put together."""

    def __init__(self, model: NeoBERTForMaskedLM) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The summed cross-entropy (nats, float32) and the number of right predictions."""
        hidden = self.model.model(
            input_ids=batch.input_ids,
            position_ids=batch.position_ids,
            cu_seqlens=batch.cu_seqlens,
            max_seqlen=batch.max_seqlen,
        ).last_hidden_state
        return self.model.decoder(hidden[batch.masked_positions], batch.labels)
