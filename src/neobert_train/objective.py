"""Masked language modelling on one packed micro-batch, as the module that DeepSpeed runs."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from neobert_train.batch import Batch
from neobert_train.modeling.modeling_neobert import NeoBERTLMHead


class MaskedLanguageModelling(nn.Module):
    """Sums over masked tokens, from which losses of any batch can be put together."""

    def __init__(self, model: NeoBERTLMHead) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The summed cross-entropy (nats, float32) and the number of right predictions."""
        output = self.model(
            input_ids=batch.input_ids,
            position_ids=batch.position_ids,
            cu_seqlens=batch.cu_seqlens,
            max_seqlen=batch.max_seqlen,
            masked_positions=batch.masked_positions,
        )
        logits = output.logits
        loss = F.cross_entropy(logits.float(), batch.labels, reduction="sum")
        with torch.no_grad():
            # A label that reaches the largest logit; several times faster than argmax on a CPU.
            label_logits = logits.gather(-1, batch.labels[:, None])[:, 0]
            num_correct = (label_logits >= logits.amax(dim=-1)).sum()
        return loss, num_correct
