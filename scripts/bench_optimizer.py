"""What an optimiser adds to a step: Muon and NorMuon against AdamW, in one interleaved run.

    python scripts/bench_optimizer.py                                  # 6 blocks of width 384
    python scripts/bench_optimizer.py --rounds 1 --kinds adamw muon model=neobert_base

Every optimiser has an engine of its own without ZeRO, and in each round takes one step on the same
micro-batches. The table shows medians over the rounds; the operations of Newton-Schulz by formula, and
what share they are of a step's forward and backward pass, of the tokens here and of 2,097,152. The
optimisers' own time is what a step takes beyond its micro-batches. On a CPU seconds are those that the
process had of it, so that other programs do not count.
"""

import argparse
import statistics
import time
from dataclasses import replace

import torch
from bench_engine import SETTINGS, make_batch

from neobert_train.batch import Batch
from neobert_train.config.choices import CHOICES
from neobert_train.config.derived import compute_num_lanes
from neobert_train.config.schema import BatchConfig, Precision, TrainConfig
from neobert_train.config.store import compose_config, to_typed
from neobert_train.distributed import Collectives, find_device
from neobert_train.machine.devices import choose_precision
from neobert_train.models.cost import build_cost
from neobert_train.models.families import build_encoder
from neobert_train.models.size import compute_state_bytes, count_moments
from neobert_train.objectives.masked_lm import MaskedLM
from neobert_train.optim.muon import Muon
from neobert_train.tokenizers.loading import build_tokenizer
from neobert_train.training.engine import Engine
from neobert_train.world import World


class OptimizerStep:
    """Steps of an engine with one optimiser, and how long its last micro-batch took to be applied."""

    def __init__(self, config: TrainConfig, world: World, device: torch.device) -> None:
        encoder = build_encoder(config, build_tokenizer(config.tokenizer))
        self.config = config
        self._engine = Engine(config, MaskedLM(encoder), world, device)
        self._device = device
        self.own_seconds = 0.0

    def __call__(self, batches: list[Batch]) -> None:
        for batch in batches:
            self._engine.backward(self._engine.compute(batch).loss_sum / batch.num_targets)
            start = read_clock(self._device)
            self._engine.step()
            self.own_seconds = read_clock(self._device) - start

    def count_flops(self) -> int:
        """Return the operations of Newton-Schulz in a step; none without it."""
        optimizer = self._engine._state.optimizer
        return optimizer.count_flops() if isinstance(optimizer, Muon) else 0


def read_clock(device: torch.device) -> float:
    """Return seconds: of the clock once a GPU is done, or of this process's use of the CPU."""
    if device.type == "cpu":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def measure(kinds: list[str], rounds: int, overrides: list[str]) -> None:
    """Compare on one process."""
    world = World.from_environment()
    device = find_device(world)
    collectives = Collectives(world, device)
    settings = [*SETTINGS, "trainer.precision=auto", "deepspeed=zero0", *overrides]
    config = to_typed("train", compose_config("train", settings))
    precision = choose_precision(config.trainer.precision, device)
    config = replace(config, trainer=replace(config.trainer, precision=precision))
    steps = {
        kind: OptimizerStep(replace(config, optimizer=CHOICES["optimizer"][kind]()), world, device)
        for kind in kinds
    }
    vocab_size = build_tokenizer(config.tokenizer).vocab_size
    batches = [
        make_batch(config, vocab_size, seed).to(device) for seed in range(compute_num_lanes(config))
    ]
    seconds: dict[str, list[tuple[float, float]]] = {kind: [] for kind in kinds}
    for number in range(rounds + 1):
        for kind, step in steps.items():
            start = read_clock(device)
            step(batches)
            if number:  # the first round warms up
                seconds[kind].append((read_clock(device) - start, step.own_seconds))
    size, tokens = build_cost(config.model, vocab_size).size, config.batch.global_batch_tokens
    per_token = size.compute_flops_per_token(config.batch.context_length, config.masking.rate)
    print(f"\n{size.parameters:,} parameters, {len(batches)} micro-batches of "
          f"{config.batch.micro_batch_tokens} tokens, {precision.value}, {device.type}")  # fmt: skip
    for kind, step in steps.items():
        whole, own = (statistics.median(column) for column in zip(*seconds[kind], strict=True))
        ratio = statistics.median(
            a / b for (a, _), (b, _) in zip(seconds[kind], seconds[kinds[0]], strict=True)
        )
        flops, moments = step.count_flops(), count_moments(step.config.optimizer, size)
        state = compute_state_bytes(size, moments, 0, 1, precision is Precision.bf16)
        shares = [
            flops / (number * per_token) for number in (tokens, BatchConfig().global_batch_tokens)
        ]
        print(f"  {kind:8} {whole:8.2f} s a step ({ratio:5.3f} x {kinds[0]}), {own:7.3f} s its own, "
              f"{flops / 1e12:6.3f} TFLOP = {shares[0]:.2%} of this step, {shares[1]:.3%} of one of "
              f"2,097,152 tokens; {state / size.parameters:.1f} bytes of state a parameter",
              flush=True)  # fmt: skip
    collectives.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kinds", nargs="*", default=list(CHOICES["optimizer"]))
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument(
        "overrides", nargs="*", help="settings of the run, as in model=neobert_base"
    )
    arguments = parser.parse_intermixed_args()
    measure(arguments.kinds, arguments.rounds, arguments.overrides)


if __name__ == "__main__":
    main()
