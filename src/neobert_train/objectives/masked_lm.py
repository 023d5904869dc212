"""Masked language modelling: predict the tokens that were replaced."""

from neobert_train.batch import Batch
from neobert_train.models.encoder import Encoder
from neobert_train.objectives.objective import Outcome


class MaskedLM:
    """The cross-entropy of the masked tokens; only these are scored."""

    name = "masked_lm"
    means: tuple[str, ...] = ("accuracy",)

    def __init__(self, encoder: Encoder) -> None:
        self.encoder = encoder

    def compute(self, batch: Batch) -> Outcome:
        """Return the summed cross-entropy (nats) and the number of right predictions."""
        hidden = self.encoder.encode(batch)
        # Going back, `hidden[positions]` would sort the positions, in case that one is there twice.
        masked = hidden.index_select(0, batch.masked_positions)
        loss_sum, num_correct = self.encoder.score(masked, batch.labels)
        return Outcome(loss_sum, {"accuracy": num_correct})
