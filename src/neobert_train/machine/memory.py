"""The memory that an experiment takes on a GPU, estimated without one; imports no torch."""

from neobert_train.accounting import (
    compute_model_size,
    compute_state_bytes,
    estimate_activation_bytes,
)
from neobert_train.config.derived import compute_masking_rate, find_divisors, wants_compilation
from neobert_train.config.schema import Precision, TrainConfig

# The rest is for the driver, for kernels' own needs, and for what lies between tensors.
USABLE_MEMORY = 0.95


def plans_bf16(config: TrainConfig) -> bool:
    """Return whether an experiment trains in bf16 on a GPU; all that the plan knows have it."""
    precision = config.trainer.precision
    chosen_by_zero = precision is Precision.auto and config.deepspeed.zero_stage > 0
    return precision is Precision.bf16 or chosen_by_zero


def estimate_memory(
    config: TrainConfig, vocab_size: int, zero_stage: int, num_devices: int, tokens: int
) -> tuple[float, float]:
    """Return the bytes of state and of activations on one GPU, for micro-batches of so many tokens."""
    bf16 = plans_bf16(config)
    compiled = wants_compilation(config, zero_stage, on_gpu=True)
    parameters = compute_model_size(config.model, vocab_size).parameters
    masked_share = max(sample_masking_rates(config))
    return (
        compute_state_bytes(parameters, zero_stage, num_devices, bf16),
        estimate_activation_bytes(config.model, vocab_size, tokens, masked_share, bf16, compiled),
    )


def find_largest_micro_batch(
    config: TrainConfig, vocab_size: int, zero_stage: int, num_devices: int, memory_bytes: float
) -> int | None:
    """Return the largest `batch.micro_batch_tokens` that fits and gives lanes for all devices.

    Returns:
        None when not even a micro-batch of one context fits.
    """
    share = config.batch.global_batch_tokens // num_devices
    for tokens in reversed(find_divisors(share)):
        if tokens < config.batch.context_length:
            break
        needed = sum(estimate_memory(config, vocab_size, zero_stage, num_devices, tokens))
        if needed <= USABLE_MEMORY * memory_bytes:
            return tokens
    return None


def sample_masking_rates(config: TrainConfig) -> list[float]:
    """Return the masking rate from the first step to the last, evenly."""
    steps = (config.trainer.max_steps * index // 100 for index in range(101))
    return [compute_masking_rate(config, step) for step in steps]
