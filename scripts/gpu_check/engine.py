"""What DeepSpeed adds to a step, by ZeRO stage and accumulation, and how often the host waits."""

import dataclasses
import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from unittest.mock import patch

import torch
from bench_engine import BareStep, EngineStep, make_batch, make_config

from gpu_check.measuring import Scale, guard
from gpu_check.table import NEEDS_GPU, Row, judge
from neobert_train.batch import Batch
from neobert_train.config.schema import TrainConfig
from neobert_train.distributed import Collectives
from neobert_train.tokenizers.loading import build_tokenizer
from neobert_train.training.engine import import_deepspeed
from neobert_train.world import World

_STAGES = (0, 1, 2)
_MICRO_BATCHES = 4
_ROUNDS = 6
_ON_GPU = ["model=neobert_base", "batch.context_length=1024", "batch.micro_batch_tokens=32768"]
_ON_CPU = ["model=neobert_tiny", "batch.context_length=128", "batch.micro_batch_tokens=256"]


def run(scale: Scale) -> Iterator[Row]:
    # Only torch's own process group is made here: each engine takes part in it.
    world = World()
    collectives = Collectives(world, scale.device)
    for micro_batches, stages in ((_MICRO_BATCHES, _STAGES), (1, (1,))):
        config = configure(scale, micro_batches)
        vocab_size = build_tokenizer(config.tokenizer).vocab_size
        batches = [
            make_batch(config, vocab_size, seed).to(scale.device) for seed in range(micro_batches)
        ]
        bare = time_steps(scale, BareStep(config, scale.device), batches)
        form = f"{micro_batches} micro-batches of {config.batch.micro_batch_tokens:,} tokens"
        yield Row(f"no engine, {form}: ms a step", f"{bare:.1f}")
        for stage in stages:
            check = f"ZeRO {stage}, {form}"
            staged = dataclasses.replace(
                config, deepspeed=dataclasses.replace(config.deepspeed, zero_stage=stage)
            )
            rows = measure(scale, check, staged, world, batches, bare)
            yield from guard(check, rows)
    collectives.close()


def configure(scale: Scale, micro_batches: int) -> TrainConfig:
    settings = _ON_GPU if scale.on_gpu else _ON_CPU
    tokens = micro_batches * int(settings[-1].partition("=")[2])
    return make_config([*settings, f"batch.global_batch_tokens={tokens}"])


def measure(
    scale: Scale, check: str, config: TrainConfig, world: World, batches: list[Batch], bare: float
) -> Iterator[Row]:  # fmt: skip
    step = EngineStep(config, world, scale.device)
    milliseconds = time_steps(scale, step, batches)
    more = (milliseconds - bare) / len(batches)
    yield Row(f"{check}: ms a step, more a micro-batch", f"{milliseconds:.1f}, {more:+.1f}",
              "2 to 4 more (estimate)")  # fmt: skip
    waits, reads = count_waits(scale, lambda: step(batches))
    yield Row(f"{check}: times that a step waits for the device", str(waits), "0", judge(not waits))
    expected = "1 without ZeRO, a few with it"
    if reads is None:
        yield Row(f"{check}: reads of the host in a step", "", expected, NEEDS_GPU)
    else:
        yield Row(f"{check}: reads of the host in a step", str(reads), expected)


def time_steps(
    scale: Scale, step: Callable[[list[Batch]], None], batches: list[Batch]
) -> float:  # fmt: skip
    """Return milliseconds of an optimiser step, once it has set up what it needs."""
    times = []
    for _ in range(2 + min(_ROUNDS, 3 * scale.repeats)):
        scale.synchronize()
        start = time.perf_counter()
        step(batches)
        scale.synchronize()
        times.append(1e3 * (time.perf_counter() - start))
    return statistics.median(times[2:])


def count_waits(scale: Scale, step: Callable[[], None]) -> tuple[int, int | None]:
    """Return how often a step synchronises the device, and how often it reads from a GPU."""
    import_deepspeed(scale.device)
    from deepspeed.accelerator import get_accelerator

    accelerator = get_accelerator()
    with patch.object(accelerator, "synchronize", wraps=accelerator.synchronize) as synchronize:
        if not scale.on_gpu:
            step()
            return synchronize.call_count, None
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                step()
            finally:
                torch.cuda.set_sync_debug_mode("default")
    return synchronize.call_count, sum("synchronizing" in str(w.message) for w in caught)
