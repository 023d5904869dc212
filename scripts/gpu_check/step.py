"""A training step without an engine: tokens/s, share of the peak, memory against `plan`, and kernels."""

import gc
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from bench_step import Sample, Step, build_ours, make_sample, move, plan_bytes
from torch import nn

from gpu_check.measuring import BF16, Scale, format_kinds, guard, sum_times
from gpu_check.table import NEEDS_GPU, Row, judge
from neobert_train.machine.devices import find_peak_flops
from neobert_train.modeling.attention import choose_backend
from neobert_train.models.neobert_cost import NeoBERTCost

_SHOWN_KERNELS = 60


def run(scale: Scale) -> Iterator[Row]:
    backend = choose_backend("auto", scale.device, BF16)
    for compiled in (True, False):
        variant = f"{backend}{' compiled' if compiled else ''}"
        if compiled and not scale.on_gpu:
            yield Row(variant, "", verdict=NEEDS_GPU)
            continue
        yield from guard(variant, measure(scale, backend, compiled))


def measure(scale: Scale, backend: str, compiled: bool) -> Iterator[Row]:
    """Yield the rows of one model; only compiled ones are measured at every context."""
    model, step = build_ours(scale.shape, scale.device, BF16, backend, compiled)
    for context in scale.contexts if compiled else scale.contexts[:1]:
        sample = move(make_sample(scale.tokens, context, 4, scale.shape.vocab_size), scale.device)
        name = f"ours bf16 {backend}{' compiled' if compiled else ''}"
        check = f"{name}, context {context}"
        yield from guard(check, measure_context(scale, name, check, model, step, sample))
    del model, step
    gc.collect()


def measure_context(
    scale: Scale, name: str, check: str, model: nn.Module, step: Step, sample: Sample
) -> Iterator[Row]:
    def take() -> None:
        step(sample)
        model.zero_grad(set_to_none=True)

    batch, size = sample.packed, NeoBERTCost(scale.shape.to_config(), scale.shape.vocab_size).size
    milliseconds = scale.time(take, 3)
    speed = 1e3 * batch.num_tokens / milliseconds
    yield Row(f"{check}: ms, tokens/s", f"{milliseconds:.0f}, {speed:,.0f}",
              "241,000 tokens/s; 202,000 at 4,096 (estimate)")  # fmt: skip
    flops = size.compute_flops(batch.num_tokens, batch.squared_lengths, batch.num_targets)
    peak = find_peak_flops(scale.device, BF16)
    share = f"{1e3 * flops / milliseconds / peak:.1%}" if peak else "of an unknown peak"
    yield Row(f"{check}: MFU", share, "34 % (estimate)")
    if not scale.on_gpu:
        yield Row(f"{check}: memory against plan, GiB", "", verdict=NEEDS_GPU)
        yield Row(f"{check}: kernels", "", verdict=NEEDS_GPU)
        return
    taken, planned = scale.measure_peak_bytes(take), plan_bytes(name, scale.shape, batch)
    if planned is None:
        yield Row(f"{check}: memory, GiB", f"{taken / 2**30:.2f}", "plan knows packed kernels only")
    else:
        text = f"{taken / 2**30:.2f} / {planned / 2**30:.2f}"
        is_met = abs(taken / planned - 1) < 0.05
        yield Row(f"{check}: memory against plan, GiB", text, "within 5 %", judge(is_met))
    kernels = scale.profile(take)
    yield Row(f"{check}: ms on the GPU by kind of kernel", format_kinds(kernels),
              "products 125, attention 74, compiled 51 (estimate)")  # fmt: skip
    write_kernels(kernels, scale.out / f"kernels {check}.txt".replace(" ", "-").replace(",", ""))


def write_kernels(kernels: list[tuple[str, float]], file: Path) -> None:
    """Write the longest kernels with their times and numbers."""
    numbers = Counter(name for name, _ in kernels)
    longest = list(sum_times(kernels).items())[:_SHOWN_KERNELS]
    lines = [f"{ms:9.3f} ms {numbers[name]:5} x {name}\n" for name, ms in longest]
    file.write_text("".join(lines), encoding="utf-8")
