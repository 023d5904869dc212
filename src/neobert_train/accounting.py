"""Parameters, floating-point operations and bytes of a NeoBERT, from its shape alone."""

from dataclasses import dataclass

from neobert_train.config.derived import compute_feed_forward_width
from neobert_train.config.schema import ModelConfig


@dataclass(frozen=True)
class Device:
    """What a device can do.

    Attributes:
        name: as the vendor calls it.
        flops: peak dense bf16 multiply-adds with fp32 accumulation, in FLOP/s.
        memory_bytes: memory.
    """

    name: str
    flops: float
    memory_bytes: float


# Dense rates (no sparsity) from the vendors' data sheets.
DEVICES = {
    "a100": Device("NVIDIA A100 80 GB", 312e12, 80e9),
    "a100-40": Device("NVIDIA A100 40 GB", 312e12, 40e9),
    "l40s": Device("NVIDIA L40S", 362e12, 48e9),
    "h100": Device("NVIDIA H100 SXM", 989.4e12, 80e9),
    "h200": Device("NVIDIA H200 SXM", 989.4e12, 141e9),
    "b200": Device("NVIDIA B200", 2250e12, 180e9),
    "mi300x": Device("AMD Instinct MI300X", 1307e12, 192e9),
    "rtx3090": Device("NVIDIA RTX 3090", 71e12, 24e9),
    "rtx4090": Device("NVIDIA RTX 4090", 165e12, 24e9),
}


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

    def flops_per_token(self, attended: float, masked_share: float) -> float:
        """Forward and backward operations of one trained token.

        A matrix product costs 2 operations a weight forward and twice that backward. Attention to
        `attended` tokens costs 2 x 2 x attended x hidden_size a layer forward (scores and sums).
        The vocabulary projection is computed at masked tokens only; norms, rotary positions and
        activations are left out.

        Args:
            attended: mean number of tokens that a token attends to.
            masked_share: predicted tokens among all.
        """
        norms = (2 * self.num_layers + 1) * self.hidden_size
        products = self.block_parameters - norms
        products_head = masked_share * self.hidden_size * self.vocab_size
        attention = 2 * attended * self.hidden_size * self.num_layers
        return 3 * 2 * (products + products_head + attention)


def compute_model_size(model: ModelConfig, vocab_size: int) -> ModelSize:
    """The counts of a model with this shape."""
    hidden, width = model.hidden_size, compute_feed_forward_width(model)
    block = 4 * hidden * hidden + 3 * hidden * width + 2 * hidden
    blocks = model.num_hidden_layers * block + hidden
    embeddings = 2 * vocab_size * hidden + vocab_size
    return ModelSize(blocks, blocks + embeddings, hidden, model.num_hidden_layers, vocab_size)


def compute_state_bytes(parameters: int, zero_stage: int, num_devices: int, bf16: bool) -> float:
    """Bytes of weights, gradients and optimiser state on one device.

    In bf16 training a parameter has a bf16 copy (2), an fp32 gradient sum (4), fp32 weight (4) and
    two fp32 moments (8); in fp32 training the weight is its own copy. Stage 1 divides optimiser
    state (the fp32 weight included), stage 2 gradients too, stage 3 everything.
    """
    copy, optimiser = (2, 12) if bf16 else (4, 8)
    gradient = 4
    shared = [copy, gradient, optimiser]
    divided = {0: 0, 1: 1, 2: 2, 3: 3}[zero_stage]
    whole = sum(shared[: 3 - divided])
    return parameters * (whole + sum(shared[3 - divided :]) / num_devices)


def estimate_activation_bytes(
    size: ModelSize,
    feed_forward_width: int,
    micro_batch_tokens: int,
    masked_share: float,
    bf16: bool,
) -> float:
    """Bytes kept for the backward pass of one micro-batch; an estimate.

    A block keeps, per token, eight tensors of the hidden width (its input, both normalised inputs,
    queries, keys, values, the attention's output and the residual between its halves) and four of
    the feed-forward width (both halves of the gate's input, its activation and their product). The
    logits are kept in the training precision and once more in fp32 with their gradient.
    """
    element = 2 if bf16 else 4
    block = element * (8 * size.hidden_size + 4 * feed_forward_width)
    logits = masked_share * size.vocab_size * (element + 8)
    return micro_batch_tokens * (size.num_layers * block + logits)
