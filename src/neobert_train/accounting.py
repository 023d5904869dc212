"""Parameters, floating-point operations and bytes of a NeoBERT, from its shape alone."""

import re
from dataclasses import dataclass

from neobert_train.config.derived import compute_feed_forward_width
from neobert_train.config.schema import ModelConfig


@dataclass(frozen=True)
class Device:
    """What a device can do.

    Attributes:
        name: as the vendor calls it.
        bf16_flops: peak dense rate of bf16 products summed up in fp32, in FLOP/s.
        fp32_flops: peak rate of fp32 products, without TF32, which torch does not use by itself.
        memory_bytes: memory.
        words: those by which a driver's name for a device is known to mean this one.
    """

    name: str
    bf16_flops: float
    fp32_flops: float
    memory_bytes: float
    words: tuple[str, ...]

    def get_flops(self, bf16: bool) -> float:
        """The peak rate of training in bf16, or else in fp32."""
        return self.bf16_flops if bf16 else self.fp32_flops


# Dense rates, half of what data sheets give "with sparsity". From NVIDIA's data sheets of A10, A30,
# A40, A100, H100 (SXM, PCIe, NVL), H200 (SXM, NVL), GH200, HGX B200, GB200 NVL72, L4, L40, L40S,
# RTX A6000 and RTX 6000 Ada; its white papers on the architectures of GA102 (3090), Ada (4090) and
# RTX Blackwell (5090), in the rows "with FP32 accumulate", which are half of the others; and AMD's
# data sheets of MI300X and MI325X.
# A name is looked for from above, so that the more special of two comes first.
DEVICES = {
    "a100-40": Device("NVIDIA A100 40 GB", 312e12, 19.5e12, 40e9, ("a100", "40gb")),
    "a100": Device("NVIDIA A100 80 GB", 312e12, 19.5e12, 80e9, ("a100",)),
    "h100-pcie": Device("NVIDIA H100 PCIe", 756e12, 51.2e12, 80e9, ("h100", "pcie")),
    "h100-nvl": Device("NVIDIA H100 NVL", 835.5e12, 60e12, 94e9, ("h100", "nvl")),
    "h100": Device("NVIDIA H100 SXM", 989.4e12, 66.9e12, 80e9, ("h100",)),
    "h200-nvl": Device("NVIDIA H200 NVL", 835.5e12, 60e12, 141e9, ("h200", "nvl")),
    "h200": Device("NVIDIA H200 SXM", 989.4e12, 66.9e12, 141e9, ("h200",)),
    "gh200": Device("NVIDIA GH200", 989.4e12, 66.9e12, 96e9, ("gh200",)),
    "b200": Device("NVIDIA B200", 2250e12, 75e12, 180e9, ("b200",)),
    "gb200": Device("NVIDIA GB200", 2500e12, 80e12, 186e9, ("gb200",)),
    "a10": Device("NVIDIA A10", 125e12, 31.2e12, 24e9, ("a10",)),
    "a10g": Device("NVIDIA A10G", 70e12, 35e12, 24e9, ("a10g",)),
    "a30": Device("NVIDIA A30", 165e12, 10.3e12, 24e9, ("a30",)),
    "a40": Device("NVIDIA A40", 149.7e12, 37.4e12, 48e9, ("a40",)),
    "a6000": Device("NVIDIA RTX A6000", 154.8e12, 38.7e12, 48e9, ("a6000",)),
    "l4": Device("NVIDIA L4", 121e12, 30.3e12, 24e9, ("l4",)),
    "l40": Device("NVIDIA L40", 181e12, 90.5e12, 48e9, ("l40",)),
    "l40s": Device("NVIDIA L40S", 362e12, 91.6e12, 48e9, ("l40s",)),
    "rtx6000-ada": Device("NVIDIA RTX 6000 Ada", 364.2e12, 91.1e12, 48e9, ("6000", "ada")),
    "rtx3090ti": Device("NVIDIA RTX 3090 Ti", 80e12, 40e12, 24e9, ("3090", "ti")),
    "rtx3090": Device("NVIDIA RTX 3090", 71e12, 35.6e12, 24e9, ("3090",)),
    "rtx4090": Device("NVIDIA RTX 4090", 165.2e12, 82.6e12, 24e9, ("4090",)),
    "rtx5090": Device("NVIDIA RTX 5090", 209.5e12, 104.8e12, 32e9, ("5090",)),
    "mi300x": Device("AMD Instinct MI300X", 1307.4e12, 163.4e12, 192e9, ("mi300x",)),
    "mi325x": Device("AMD Instinct MI325X", 1307.4e12, 163.4e12, 256e9, ("mi325x",)),
}
# Parts of a device and slower ones of the same name: the table does not hold for them.
_OTHER_KINDS = {"mig", "laptop", "mobile", "max", "d"}


def find_known_device(name: str) -> Device | None:
    """The entry for a device as its driver calls it, such as `NVIDIA A100-SXM4-80GB`."""
    words = set(re.findall(r"[a-z0-9]+", name.lower()))
    if words & _OTHER_KINDS:
        return None
    return next((device for device in DEVICES.values() if words.issuperset(device.words)), None)


def format_flops(rate: float) -> str:
    """Such as `989 TFLOP/s` or `67.1 GFLOP/s`."""
    factor, unit = (1e12, "TFLOP/s") if rate >= 1e12 else (1e9, "GFLOP/s")
    digits = 0 if rate >= 100 * factor else 1
    return f"{rate / factor:,.{digits}f} {unit}"


# Rows that the loss scores at a time, and of these those that it turns into probabilities at a time:
# CHUNK_ROWS and BLOCK_ROWS of modeling.cross_entropy, which needs torch.
LOSS_CHUNK_ROWS = 2048
LOSS_BLOCK_ROWS = 512


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

    def compute_flops(self, tokens: float, squared_lengths: float, masked_tokens: float) -> float:
        """Forward and backward operations of training on whole documents.

        A matrix product costs 2 operations a weight and token forward, and twice that backward;
        scores and sums of attention cost 2 products of n x n x hidden_size a layer for a document
        of n tokens. The vocabulary projection is computed at masked tokens only; norms, rotary
        positions and activations are left out:

            6 (products tokens + hidden_size vocab_size masked_tokens
               + 2 hidden_size num_layers squared_lengths)

        Args:
            tokens: of documents, padding not counted.
            squared_lengths: sum of the squared lengths of the documents, in tokens.
            masked_tokens: those predicted.

        Returns:
            A whole number of operations for whole numbers.
        """
        norms = (2 * self.num_layers + 1) * self.hidden_size
        products = (self.block_parameters - norms) * tokens
        products_head = self.hidden_size * self.vocab_size * masked_tokens
        attention = 2 * self.hidden_size * self.num_layers * squared_lengths
        return 6 * (products + products_head + attention)

    def flops_per_token(self, attended: float, masked_share: float) -> float:
        """Forward and backward operations of one trained token.

        Args:
            attended: mean number of tokens that a token attends to.
            masked_share: predicted tokens among all.
        """
        return self.compute_flops(1, attended, masked_share)


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


def list_block_tensors(model: ModelConfig, bf16: bool, compiled: bool) -> dict[str, int]:
    """Bytes a token of what a block keeps on a GPU for its backward pass.

    Two names for one storage count once, and a part of a storage keeps the whole: the values lie
    among what `qkv` gives, the gate and its value among what `w12` gives. Compiled code computes the
    activation of the gate again.
    """
    hidden, width = model.hidden_size, compute_feed_forward_width(model)
    element = 2 if bf16 else 4
    tensors = {
        "input of the block and its norm": element * hidden,
        "normalised input of qkv": element * hidden,
        "queries, keys and values as qkv gives them": element * 3 * hidden,
        "turned queries and keys": element * 2 * hidden,
        "output of attention, input of wo": element * hidden,
        "log-sums of attention": 4 * model.num_attention_heads,
        "residual stream between the halves": element * hidden,
        "normalised input of w12": element * hidden,
        "gate and value as w12 gives them": element * 2 * width,
        "silu of the gate": 0 if compiled else element * width,
        "its product with the value, input of w3": element * width,
        "scales of both norms": 2 * 4,
    }
    if not bf16:  # no packed kernel takes fp32, so documents are attended to one by one
        tensors["outputs of the documents before they are joined"] = element * hidden
    return tensors


def compute_kept_bytes(
    model: ModelConfig, vocab_size: int, tokens: int, masked_tokens: int, bf16: bool, compiled: bool
) -> int:
    """Bytes that one micro-batch keeps on a GPU for its backward pass.

    With `activation_checkpointing` that is only the input of every block, and the most that is there
    at a time, the tensors of one block as well, comes with `estimate_activation_bytes`.
    """
    element = 2 if bf16 else 4
    head_size = model.hidden_size // model.num_attention_heads
    block = sum(list_block_tensors(model, bf16, compiled).values())
    if model.activation_checkpointing:
        block = element * model.hidden_size
    last_norm = element * model.hidden_size + 4
    rotary = 4 * head_size  # cosine and sine in fp32, once for all blocks
    # The loss keeps gradients in the place of scores: of the masked tokens, the weight and the bias.
    weight_element = element if masked_tokens <= LOSS_CHUNK_ROWS else 4
    loss = element * masked_tokens * model.hidden_size
    loss += vocab_size * (weight_element * model.hidden_size + 4)
    return tokens * (model.num_hidden_layers * block + last_norm + rotary) + loss


def estimate_activation_bytes(
    model: ModelConfig,
    vocab_size: int,
    tokens: int,
    masked_share: float,
    bf16: bool,
    compiled: bool,
) -> float:
    """Bytes that one micro-batch takes on a GPU beside the training state; an estimate.

    To what is kept comes the larger of two that are never there together: the scores of one chunk of
    the loss and the probabilities of one block of it, and the gradients of one feed-forward layer (four
    of its width, two of the hidden one), with the tensors of a block that is computed again.
    """
    element = 2 if bf16 else 4
    masked = round(masked_share * tokens)
    scores = min(masked, LOSS_CHUNK_ROWS) * vocab_size * element
    scores += min(masked, LOSS_BLOCK_ROWS) * vocab_size * 2 * 4
    width = compute_feed_forward_width(model)
    gradients = tokens * element * (4 * width + 2 * model.hidden_size)
    if model.activation_checkpointing:
        gradients += tokens * sum(list_block_tensors(model, bf16, compiled).values())
    kept = compute_kept_bytes(model, vocab_size, tokens, masked, bf16, compiled)
    return kept + max(scores, gradients)
