"""Parameters and floating-point operations of an encoder, and the bytes of its training state."""

from dataclasses import dataclass

from neobert_train.config.choices import OptimizerConfig, Role


@dataclass(frozen=True)
class ModelSize:
    """Counts that follow from a model's shape.

    Attributes:
        block_parameters: of all transformer blocks and the final norm.
        parameters: of the whole model with its vocabulary projection.
        hidden_size, num_layers, vocab_size: as in the configuration.
    """

    block_parameters: int
    parameters: int
    hidden_size: int
    num_layers: int
    vocab_size: int

    @property
    def matrix_parameters(self) -> int:
        """Of the blocks, without norms: what is multiplied with every token."""
        return self.block_parameters - (2 * self.num_layers + 1) * self.hidden_size

    def compute_flops(self, tokens: float, squared_lengths: float, num_targets: float) -> float:
        """Return the forward and backward operations of training on whole documents.

        A matrix product costs 2 operations per weight and token forward, and twice that backward;
        scores and sums of attention cost 2 products of n x n x hidden_size per layer for a document
        of n tokens. The vocabulary projection is computed at these only; norms, rotary
        positions and activations are left out:

            6 (products tokens + hidden_size vocab_size num_targets
               + 2 hidden_size num_layers squared_lengths)

        Args:
            tokens: of documents, padding not counted.
            squared_lengths: sum of the squared lengths of the documents, in tokens.
            num_targets: tokens that are predicted.

        Returns:
            A whole number of operations for whole numbers.
        """
        products = self.matrix_parameters * tokens
        products_head = self.hidden_size * self.vocab_size * num_targets
        attention = 2 * self.hidden_size * self.num_layers * squared_lengths
        return 6 * (products + products_head + attention)

    def compute_flops_per_token(self, attended: float, target_share: float) -> float:
        """Return the forward and backward operations of one trained token.

        Args:
            attended: mean number of tokens that a token attends to.
            target_share: of the tokens that is predicted.
        """
        return self.compute_flops(1, attended, target_share)


def count_moments(optimizer: OptimizerConfig, size: ModelSize) -> int:
    """Return the numbers that an optimiser keeps of a model.

    One per row is a thousandth of one per weight and not counted.
    """
    of_matrices, of_others = (
        sum(not moment.per_row for moment in optimizer.list_moments(role))
        for role in (Role.hidden_matrix, Role.vector)
    )
    others = size.parameters - size.matrix_parameters
    return size.matrix_parameters * of_matrices + others * of_others


def compute_state_bytes(
    size: ModelSize, num_moments: int, zero_stage: int, num_devices: int, bf16: bool
) -> float:
    """Return the bytes of weights, gradients and optimiser state on one device.

    In bf16 training a parameter has a bf16 copy (2), an fp32 gradient sum (4), an fp32 weight (4) and
    its fp32 moments (4 each); in fp32 training the weight is its own copy. Stage 1 divides optimiser
    state (the fp32 weight included), stage 2 gradients too, stage 3 everything; 0 divides nothing.

    Args:
        size: of the model.
        num_moments: numbers that the optimiser keeps in all.
        zero_stage: of DeepSpeed.
        num_devices: that share the state.
        bf16: whether the model is trained in bf16, or else in fp32.
    """
    copies, weights = (2, 4) if bf16 else (4, 0)
    gradients = 4
    shares = [
        size.parameters * copies,
        size.parameters * gradients,
        size.parameters * weights + 4 * num_moments,
    ]
    return sum(shares[: 3 - zero_stage]) + sum(shares[3 - zero_stage :]) / num_devices


def compute_reduction_bytes(size: ModelSize, zero_stage: int, bf16: bool) -> float:
    """Return the bytes for summing gradients over devices, when activations are gone again.

    DeepSpeed copies all fp32 gradients into one buffer in bf16 at stage 1 and in fp32 at stage 0, also
    on one device. In bf16 stage 0 sums in place, and the others have small buffers.

    Args:
        size, zero_stage, bf16: as of `compute_state_bytes`.
    """
    copies_all = zero_stage == 1 if bf16 else zero_stage == 0
    return 4.0 * size.parameters if copies_all else 0.0
