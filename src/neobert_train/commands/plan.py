"""What an experiment needs before any of it is spent; imports neither torch nor deepspeed."""

from neobert_train.accounting import (
    DEVICES,
    compute_model_size,
    compute_state_bytes,
    estimate_activation_bytes,
)
from neobert_train.config.derived import (
    compute_feed_forward_width,
    compute_num_lanes,
    find_divisors,
)
from neobert_train.config.schema import PlanConfig, Precision
from neobert_train.data.tokenization import load_tokenizer
from neobert_train.errors import InputError
from neobert_train.world import World


def run(config: PlanConfig, world: World) -> None:
    """Print the plan.

    Raises:
        InputError: an unknown device, or a number of devices that does not divide the lanes.
    """
    print(format_plan(config))


def format_plan(config: PlanConfig) -> str:
    """The plan as text; every figure is derived from the configuration."""
    if config.device not in DEVICES:
        raise InputError(f"device={config.device} is not known: choose among {', '.join(DEVICES)}")
    lanes = compute_num_lanes(config)
    if lanes % config.num_devices:
        sizes = ", ".join(map(str, find_divisors(lanes)))
        raise InputError(
            f"num_devices={config.num_devices} does not divide {lanes} lanes: one of {sizes}"
        )
    device, batch = DEVICES[config.device], config.batch
    size = compute_model_size(config.model, load_tokenizer(config.tokenizer.path).vocab_size)
    bf16 = config.trainer.precision is Precision.bf16
    peak = device.get_flops(bf16)
    # Documents that fill the context are the most expensive ones; shorter ones cost less attention.
    flops = size.flops_per_token(batch.context_length, config.masking.rate)
    tokens = config.trainer.max_steps * batch.global_batch_tokens
    speed = config.mfu * peak / flops
    hours = tokens / (speed * config.num_devices) / 3600
    activations = estimate_activation_bytes(
        size,
        compute_feed_forward_width(config.model),
        batch.micro_batch_tokens,
        config.masking.rate,
        bf16,
    )
    memory = [
        f"  ZeRO {stage}: {_gigabytes(state := _state_bytes(config, size.parameters, stage, bf16))} "
        f"state + {_gigabytes(activations)} activations (estimate) = "
        f"{_gigabytes(state + activations)} of {_gigabytes(device.memory_bytes)}"
        + ("" if state + activations < device.memory_bytes else "  DOES NOT FIT")
        for stage in range(1 if bf16 else 0, 4)
    ]
    return "\n".join(
        [
            f"model       {size.parameters:,} parameters, {size.block_parameters:,} of them in blocks",
            f"compute     {flops / 1e9:.3f} GFLOP a token, forward and backward, documents of "
            f"{batch.context_length} tokens, {config.masking.rate:.0%} of them predicted",
            f"data        {config.trainer.max_steps:,} steps x {batch.global_batch_tokens:,} = "
            f"{tokens:,} tokens",
            f"step        {lanes} lanes on {config.num_devices} devices: "
            f"{lanes // config.num_devices} micro-batches of {batch.micro_batch_tokens:,} tokens each",
            f"time        {hours:,.1f} hours, {hours * config.num_devices:,.1f} device hours, at "
            f"{speed:,.0f} tokens/s a device (mfu={config.mfu:g} of {peak / 1e12:,.0f} "
            f"TFLOP/s, {device.name})",
            f"memory of one device by ZeRO stage (deepspeed=zero{config.deepspeed.zero_stage} is set)",
            *memory,
            f"devices     {', '.join(DEVICES)}",
        ]
    )


def _state_bytes(config: PlanConfig, parameters: int, stage: int, bf16: bool) -> float:
    return compute_state_bytes(parameters, stage, config.num_devices, bf16)


def _gigabytes(number: float) -> str:
    return f"{number / 1e9:.1f} GB"
