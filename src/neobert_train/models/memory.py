"""The memory that an experiment takes on a GPU, estimated without one; imports no torch."""

from dataclasses import replace

from neobert_train.config.derived import compute_masking_rate, wants_compilation
from neobert_train.config.divisors import find_divisors
from neobert_train.config.model_schema import FeedForwardKernel, NeoBERTModelConfig
from neobert_train.config.schema import Precision, TrainConfig
from neobert_train.models.cost import build_cost
from neobert_train.models.size import compute_reduction_bytes, compute_state_bytes, count_moments

# The rest is for the driver, for kernels' own needs, and for what lies between tensors.
USABLE_MEMORY = 0.95


def plans_bf16(config: TrainConfig) -> bool:
    """Return whether an experiment trains in bf16 on a GPU; all that the plan knows have it."""
    return config.trainer.precision is not Precision.fp32


def estimate_memory(
    config: TrainConfig, vocab_size: int, zero_stage: int, num_devices: int, tokens: int
) -> tuple[float, float]:
    """Return the bytes of state, and of what comes and goes beside it, on one GPU.

    Activations of micro-batches of so many `tokens`, and buffers that sum gradients, are not there at
    the same time.
    """
    bf16 = plans_bf16(config)
    compiled = wants_compilation(config, zero_stage, on_gpu=True)
    model = config.model
    if zero_stage == 3 and isinstance(model, NeoBERTModelConfig):  # as `config.checks` asks for
        model = replace(model, feed_forward=FeedForwardKernel.torch)
    cost = build_cost(model, vocab_size)
    num_moments = count_moments(config.optimizer, cost.size)
    target_share = max(sample_masking_rates(config))
    return (
        compute_state_bytes(cost.size, num_moments, zero_stage, num_devices, bf16),
        max(
            cost.estimate_activation_bytes(tokens, target_share, bf16, compiled),
            compute_reduction_bytes(cost.size, zero_stage, bf16),
        ),
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
