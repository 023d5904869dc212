"""What DeepSpeed adds to a step: the engine against the bare model, in one interleaved run.

    python scripts/bench_engine.py                      # one process, then two
    python scripts/bench_engine.py --processes 2 --stages 1 2 3 model=neobert_base

Every process holds the model twice. In each round it takes one optimiser step with each, on the same
micro-batches: `bare` is forward, backward and AdamW on fp32 copies of bf16 weights, one sum of the
gradients over all processes in between, and nothing else; the engine is what trains a run. The table
shows medians over the rounds, of the slowest process.
"""

import argparse
import dataclasses
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import torch
import torch.distributed as dist

from neobert_train.batch import Batch
from neobert_train.config.derived import compute_accumulation_steps
from neobert_train.config.schema import Precision, TrainConfig
from neobert_train.config.store import compose_config, to_typed
from neobert_train.distributed import Collectives, find_device
from neobert_train.models.compilation import decide_compilation
from neobert_train.models.encoder import DTYPES, Encoder
from neobert_train.models.families import build_encoder
from neobert_train.objectives.masked_lm import MaskedLM
from neobert_train.optim.optimizers import build_optimizer
from neobert_train.tokenizers.loading import build_tokenizer
from neobert_train.training.engine import Engine
from neobert_train.world import World

SETTINGS = [
    "+experiment=smoke", "model=neobert_small", "trainer.precision=bf16",
    "batch.context_length=1024", "batch.micro_batch_tokens=2048", "batch.global_batch_tokens=16384",
]  # fmt: skip
DOCUMENT_TOKENS = 256


def make_config(overrides: list[str]) -> TrainConfig:
    config = to_typed("train", compose_config("train", [*SETTINGS, *overrides]))
    assert isinstance(config, TrainConfig)
    return config


def make_batch(config: TrainConfig, vocab_size: int, seed: int) -> Batch:
    """Random tokens in equal documents, 20 % of them masked."""
    generator = torch.Generator().manual_seed(seed)
    tokens = config.batch.micro_batch_tokens
    ids = torch.randint(vocab_size, (tokens,), generator=generator)
    masked = torch.randperm(tokens, generator=generator)[: tokens // 5].sort().values
    return Batch(
        input_ids=ids,
        position_ids=(torch.arange(tokens) % DOCUMENT_TOKENS).int(),
        cu_seqlens=torch.arange(0, tokens + 1, DOCUMENT_TOKENS, dtype=torch.int32),
        max_seqlen=DOCUMENT_TOKENS,
        masked_positions=masked,
        labels=ids[masked],
        lane=0,
        lane_state={},
    )


def build_training_encoder(config: TrainConfig, device: torch.device) -> Encoder:
    """Return the encoder of a run, with the attention kernel and the compiler that it would use."""
    encoder = build_encoder(config, build_tokenizer(config.tokenizer))
    dtype = DTYPES[config.trainer.precision]
    encoder.settle_kernels(config.model, device, dtype)
    if decide_compilation(config, device):
        encoder.compile(device)
    return encoder


class BareStep:
    """A training step without an engine."""

    def __init__(self, config: TrainConfig, device: torch.device) -> None:
        encoder = build_training_encoder(config, device)
        self._objective, network = MaskedLM(encoder), encoder.network.to(device)
        # The optimiser's fp32 weights; in bf16 the model computes with copies of them.
        masters = build_training_encoder(config, device).network.to(device)
        weights = dict(masters.named_parameters())
        roles, layouts = encoder.list_roles(), encoder.list_layouts()
        self._optimizer = build_optimizer(config.optimizer, weights, roles, layouts)
        if config.trainer.precision is Precision.bf16:
            network.bfloat16()
        self._pairs = list(zip(masters.parameters(), network.parameters(), strict=True))

    def __call__(self, batches: list[Batch]) -> None:
        for batch in batches:
            (self._objective.compute(batch).loss_sum / batch.num_targets).backward()
        flat = torch.cat([parameter.grad.float().flatten() for _, parameter in self._pairs])
        if dist.get_world_size() > 1:
            dist.all_reduce(flat)
        torch.nn.utils.get_total_norm([flat])
        parts = flat.split([parameter.numel() for _, parameter in self._pairs])
        for (master, parameter), gradient in zip(self._pairs, parts, strict=True):
            master.grad, parameter.grad = gradient.view_as(master), None
        self._optimizer.step()
        with torch.no_grad():
            for master, parameter in self._pairs:
                parameter.copy_(master)


class EngineStep:
    """The same step by DeepSpeed, as the trainer takes it."""

    def __init__(self, config: TrainConfig, world: World, device: torch.device) -> None:
        encoder = build_training_encoder(config, device)
        self._engine = Engine(config, MaskedLM(encoder), world, device)

    def __call__(self, batches: list[Batch]) -> None:
        for batch in batches:
            self._engine.backward(self._engine.compute(batch).loss_sum / batch.num_targets)
            self._engine.step()


def measure(stages: list[int], rounds: int, overrides: list[str]) -> None:
    """Compare on the processes that a launcher started; the main one prints a row per stage."""
    world = World.from_environment()
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // world.local_world_size))
    device = find_device(world)
    collectives = Collectives(world, device)
    config = make_config(overrides)
    vocab_size = build_tokenizer(config.tokenizer).vocab_size
    micro_steps = compute_accumulation_steps(config, world.world_size)
    batches = [make_batch(config, vocab_size, seed).to(device) for seed in range(micro_steps)]
    steps: dict[str, Callable[[list[Batch]], None]] = {"bare": BareStep(config, device)}
    for stage in stages:
        staged = dataclasses.replace(
            config, deepspeed=dataclasses.replace(config.deepspeed, zero_stage=stage)
        )
        steps[f"ZeRO {stage}"] = EngineStep(staged, world, device)
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(rounds + 1):
        for name, step in steps.items():
            collectives.sum([0])  # all begin together
            start = time.perf_counter()
            step(batches)
            if device.type == "cuda":
                torch.cuda.synchronize()
            slowest = max(collectives.gather(time.perf_counter() - start))
            if number:  # the first round warms up
                seconds[name].append(slowest)
    if world.is_main:
        print(f"\n{world.world_size} processes, {micro_steps} micro-batches of "
              f"{config.batch.micro_batch_tokens} tokens each, {device.type}")  # fmt: skip
        for name, times in seconds.items():
            ratios = [a / b for a, b in zip(times, seconds["bare"], strict=True)]
            print(f"  {name:8} {statistics.median(times):8.3f} s   "
                  f"{statistics.median(ratios) - 1:+7.1%}", flush=True)  # fmt: skip
    collectives.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--processes", type=int, nargs="*", default=[1, 2])
    parser.add_argument("--stages", type=int, nargs="*", default=[1, 2, 3])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--launched", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument(
        "overrides", nargs="*", help="settings of the run, as in model=neobert_base"
    )
    arguments = parser.parse_args()
    if arguments.launched:
        measure(arguments.stages, arguments.rounds, arguments.overrides)
        return
    for processes in arguments.processes:
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone",
                   f"--nproc-per-node={processes}", __file__, "--launched",
                   f"--rounds={arguments.rounds}", "--stages", *map(str, arguments.stages),
                   "--", *arguments.overrides]  # fmt: skip
        subprocess.run(command, check=True, env={**os.environ, "PYTHONWARNINGS": "ignore"})


if __name__ == "__main__":
    main()
