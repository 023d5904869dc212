"""What an experiment needs before any of it is spent; imports neither torch nor deepspeed."""

import statistics

from neobert_train.config.command_schema import PlanConfig
from neobert_train.config.derived import (
    compute_num_lanes,
    wants_compilation,
)
from neobert_train.config.divisors import find_divisors
from neobert_train.config.model_schema import has_quack
from neobert_train.errors import InputError
from neobert_train.machine.peak import DEVICES, format_flops
from neobert_train.models.cost import build_cost
from neobert_train.models.memory import (
    USABLE_MEMORY,
    estimate_memory,
    find_largest_micro_batch,
    plans_bf16,
    sample_masking_rates,
)
from neobert_train.models.size import ModelSize
from neobert_train.terminal import print_output
from neobert_train.tokenizers.loading import build_tokenizer
from neobert_train.tokenizers.text_tokenizer import TextTokenizer
from neobert_train.world import World


def run(config: PlanConfig, world: World) -> None:
    """Print the plan.

    Raises:
        InputError: an unknown device, or a number of devices that does not divide the lanes.
    """
    print_output(format_plan(config))


def format_plan(config: PlanConfig) -> str:
    """Return the plan as text; every figure is derived from the configuration."""
    if config.device not in DEVICES:
        raise InputError(f"device={config.device} is not known: choose among {', '.join(DEVICES)}")
    lanes = compute_num_lanes(config)
    if lanes % config.num_devices:
        sizes = ", ".join(map(str, find_divisors(lanes)))
        raise InputError(
            f"num_devices={config.num_devices} does not divide {lanes} lanes: write num_devices=N with one "
            f"of {sizes}"
        )
    device, batch = DEVICES[config.device], config.batch
    tokenizer = build_tokenizer(config.tokenizer)
    vocab_size = tokenizer.vocab_size
    size = build_cost(config.model, vocab_size).size
    bf16 = plans_bf16(config)
    peak = device.get_flops(bf16)
    rate = statistics.fmean(sample_masking_rates(config))
    # Documents that fill the context are the most expensive ones; shorter ones cost less attention.
    flops = size.compute_flops_per_token(batch.context_length, rate)
    tokens = config.trainer.max_steps * batch.global_batch_tokens
    speed = config.mfu * peak / flops
    hours = tokens / (speed * config.num_devices) / 3600
    return "\n".join(
        [
            f"model       {size.parameters:,} parameters, {size.block_parameters:,} of them in blocks",
            f"compute     {flops / 1e9:.3f} GFLOP a token, forward and backward, documents of "
            f"{batch.context_length} tokens, {rate:.0%} of them predicted",
            f"data        {config.trainer.max_steps:,} steps x {batch.global_batch_tokens:,} = "
            f"{tokens:,} tokens",
            f"step        {lanes} lanes on {config.num_devices} devices: "
            f"{lanes // config.num_devices} micro-batches of {batch.micro_batch_tokens:,} tokens each",
            f"time        {_format_hours(hours)}, {_format_hours(hours * config.num_devices, 'device ')}, at "
            f"{speed:,.0f} tokens/s a device (mfu={config.mfu:g} of {format_flops(peak)}, "
            f"{device.name})",
            *_format_assumption(config),
            *_format_probes(config, tokenizer, size, tokens * flops),
            f"memory of one device by ZeRO stage (deepspeed=zero{config.deepspeed.zero_stage} is set)",
            *(
                ["            model.feed_forward=quack runs on Hopper and Blackwell GPUs only"]
                if has_quack(config.model)
                else []
            ),
            *(
                _format_memory(config, vocab_size, stage, device.memory_bytes)
                for stage in ([0] if config.optimizer.needs_whole_matrices else range(4))
            ),
            f"devices     {', '.join(DEVICES)}",
        ]
    )


def _format_assumption(config: PlanConfig) -> list[str]:
    """Return what the hours rest on, unless a share was given."""
    if config.mfu != PlanConfig.mfu:
        return []
    return [
        f"            mfu={config.mfu:g} is an estimate that has not been measured on a GPU; "
        f"write mfu=SHARE, as train/mfu of a run"
    ]


def _format_probes(
    config: PlanConfig, tokenizer: TextTokenizer, size: ModelSize, flops: float
) -> list[str]:
    """Return what the probes cost, by the operations of encoding their texts; none without probes.

    Args:
        config: of the run.
        tokenizer: of the model.
        size: of the model.
        flops: of the training steps of the whole run.
    """
    if not config.evaluation.probes:
        return []
    # Reading tables takes half a second to load.
    from neobert_train.evaluation.state_of_the_union import list_paragraphs

    every, max_steps = config.evaluation.probe_every_steps, config.trainer.max_steps
    # One before the first step, and one after the last, whatever number that is.
    rounds = 1 + (-(-max_steps // every) if every else 1)
    most = config.batch.context_length
    lengths = [min(len(ids) + 2, most) for ids in tokenizer.encode(list_paragraphs().texts)]
    tokens = sum(lengths)
    # A third of a training step's operations are those of its forward pass.
    encoding = size.compute_flops(tokens, sum(n * n for n in lengths), 0) / 3
    share = 100 * rounds * encoding / flops
    return [
        f"probes      {rounds:,} times {tokens:,} tokens to encode: {share:.2g} % of the run's operations "
        f"(fitting the linear models, seconds each time on the CPU, is not counted)"
    ]


def _format_memory(
    config: PlanConfig, vocab_size: int, zero_stage: int, memory_bytes: float
) -> str:
    arguments = config, vocab_size, zero_stage, config.num_devices
    state, activations = estimate_memory(*arguments, config.batch.micro_batch_tokens)
    largest = find_largest_micro_batch(*arguments, memory_bytes)
    fits = state + activations <= USABLE_MEMORY * memory_bytes
    form = "compiled" if wants_compilation(config, zero_stage, on_gpu=True) else "uncompiled"
    if has_quack(config.model):
        form += ", with torch's feed-forward layers" if zero_stage == 3 else ", with quack's"
    return (
        f"  ZeRO {zero_stage}: {_format_bytes(state)} state + {_format_bytes(activations)} activations "
        f"(estimate, {form}) = {_format_bytes(state + activations)} of {_format_bytes(memory_bytes)}"
        + ("" if fits else "  DOES NOT FIT")
        + (f"; the largest that fits: batch.micro_batch_tokens={largest}" if largest else "")
    )


def _format_bytes(number: float) -> str:
    return f"{number / 1e9:.1f} GB" if number >= 1e9 else f"{number / 1e6:.1f} MB"


def _format_hours(hours: float, kind: str = "") -> str:
    return f"{hours:,.1f} {kind}hours" if hours >= 1 else f"{3600 * hours:,.3g} {kind}seconds"
