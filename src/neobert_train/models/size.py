"""Parameters and floating-point operations of an encoder, and the bytes of its training state."""

from dataclasses import dataclass


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
        norms = (2 * self.num_layers + 1) * self.hidden_size
        products = (self.block_parameters - norms) * tokens
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


def compute_state_bytes(
    size: ModelSize, num_moments: int, zero_stage: int, num_devices: int, bf16: bool
) -> float:
    """Return the bytes of weights, gradients and optimiser state on one device.

    In bf16 training a parameter has a bf16 copy (2), an fp32 gradient sum (4), an fp32 weight (4) and
    its fp32 moments (4 each); in fp32 training the weight is its own copy. Stage 1 divides optimiser
    state (the fp32 weight included), stage 2 gradients too, stage 3 everything.

    Args:
        size: of the model.
        num_moments: tensors that the optimiser keeps of each parameter.
        zero_stage: of DeepSpeed.
        num_devices: that share the state.
        bf16: whether the model is trained in bf16, or else in fp32.
    """
    moments = 4 * num_moments
    copy, optimiser = (2, 4 + moments) if bf16 else (4, moments)
    gradient = 4
    shared = [copy, gradient, optimiser]
    divided = {0: 0, 1: 1, 2: 2, 3: 3}[zero_stage]
    whole = sum(shared[: 3 - divided])
    return size.parameters * (whole + sum(shared[3 - divided :]) / num_devices)
