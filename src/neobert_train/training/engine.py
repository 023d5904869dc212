"""The DeepSpeed engine: its configuration, its set-up, and its state by parameter name."""

import collections
import contextlib
import importlib
import io
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from neobert_train.batch import Batch
from neobert_train.config.derived import compute_accumulation_steps
from neobert_train.config.schema import Precision, TrainConfig
from neobert_train.models.encoder import Encoder
from neobert_train.objectives.objective import Objective, Outcome
from neobert_train.optim.optimizers import build_optimizer
from neobert_train.optim.schedules import compute_learning_rate
from neobert_train.training.sharded import ShardedState
from neobert_train.training.whole import WholeState
from neobert_train.world import World

# Elements. DeepSpeed's own choice is ten times as many, which takes a buffer on every device of 1 GB at
# ZeRO 2 in bf16, and of 2 GB at ZeRO 3 and in fp32.
REDUCE_BUCKET = 50_000_000


def import_deepspeed(device: torch.device) -> Any:
    """Return DeepSpeed, set up for an accelerator and to compile nothing that is not used.

    On a CPU it would build a shared-memory extension at the first start (44 s, or an error without
    a compiler); gloo is enough.
    """
    os.environ.setdefault("DS_ACCELERATOR", device.type)
    import deepspeed

    with contextlib.suppress(Exception):  # of other releases, which then start as they do
        _import_its_muon()
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    if device.type == "cpu":
        deepspeed.ops.__dict__["__compatible_ops__"] = collections.defaultdict(bool)
    return deepspeed


def _import_its_muon() -> None:
    """Import what every optimiser of DeepSpeed imports and nothing here uses, without the compiler.

    Its decorators would load torch's compiler, which takes a second of every start.
    """
    compiler = importlib.import_module("deepspeed.runtime.compiler")
    compile_function = compiler.compile
    compiler.compile = lambda: lambda function: function  # type: ignore[attr-defined]
    try:
        importlib.import_module("deepspeed.runtime.zero.muon.original_muon")
    finally:
        compiler.compile = compile_function  # type: ignore[attr-defined]


def build_deepspeed_config(
    config: TrainConfig, world: World, largest_parameter: int
) -> dict[str, Any]:
    """Return DeepSpeed's settings; everything about batches follows from the lanes.

    Args:
        config: of the run.
        world: this process among all.
        largest_parameter: its number of elements.
    """
    accumulation = compute_accumulation_steps(config, world.world_size)
    stage, is_bf16 = config.deepspeed.zero_stage, config.trainer.precision is Precision.bf16
    return {
        # DeepSpeed counts samples; a micro-batch is one.
        "train_batch_size": accumulation * world.world_size,
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": accumulation,
        # Without ZeRO `WholeState` clips, and has the bf16 copies.
        "gradient_clipping": config.optimizer.max_grad_norm if stage else 0.0,
        "zero_optimization": {
            "stage": stage,
            # All-reduce bucket, in elements.
            "reduce_bucket_size": max(REDUCE_BUCKET, largest_parameter),
        },
        "zero_allow_untested_optimizer": True,
        # A gradient in bf16 is added to the fp32 sum and freed as soon as it is there (of stage 1).
        "bf16": {"enabled": is_bf16 and stage > 0, "immediate_grad_update": True},
        # Gradients are added up in fp32, over micro-batches and over processes.
        "data_types": {"grad_accum_dtype": "fp32"},
        "communication_data_type": "fp32",
        "steps_per_print": None,
        "wall_clock_breakdown": False,
        # Its clock waits for the device twice in every micro-step.
        "timers": {"throughput": {"enabled": False}},
    }


@dataclass
class EngineState:
    """Everything that training changes in the network and the optimiser, in fp32 on the CPU.

    Attributes:
        weights: by parameter name, as in the network's state dict.
        moments: what the optimiser keeps, by `MOMENT.PARAMETER`; empty before the first update.
        updates: made by the optimiser, the t of AdamW's bias correction.
    """

    weights: dict[str, Tensor]
    moments: dict[str, Tensor]
    updates: int


class _Forward(nn.Module):
    """What DeepSpeed runs. It returns tensors in plain containers, among which ZeRO 3 finds them."""

    def __init__(self, objective: Objective) -> None:
        super().__init__()
        self.network = objective.encoder.network
        self._objective = objective

    def forward(
        self, batch: Batch, encodes: bool = False
    ) -> Tensor | tuple[Tensor, dict[str, Tensor]]:
        if encodes:
            return self._objective.encoder.encode(batch)
        outcome = self._objective.compute(batch)
        return outcome.loss_sum, outcome.sums


class Engine:
    """Trains an objective with DeepSpeed, and knows its state by parameter name.

    Attributes:
        device: on which it computes.
        objective: what it trains.
    """

    def __init__(
        self, config: TrainConfig, objective: Objective, world: World, device: torch.device
    ) -> None:
        """Build the optimiser and hand both to DeepSpeed.

        Args:
            config: of the run.
            objective: with its fp32 weights in place, since the low-precision copies are made here.
            world: this process among all.
            device: on which to train.
        """
        self.device, self.objective = device, objective
        self._config = config
        deepspeed = import_deepspeed(device)
        os.environ.setdefault("LOCAL_RANK", str(world.local_rank))  # it insists, launcher or not
        deepspeed.init_distributed(dist_backend="nccl" if device.type == "cuda" else "gloo")
        forward = _Forward(objective).to(device)
        largest = max(parameter.numel() for parameter in forward.parameters())
        self._state = _build_state(config, objective.encoder)
        with contextlib.redirect_stdout(io.StringIO()):  # it prints its memory use
            self._deepspeed: Any
            self._deepspeed, *_ = deepspeed.initialize(
                model=forward,
                optimizer=self._state.optimizer,
                config=build_deepspeed_config(config, world, largest),
            )
        self._state.attach(self._deepspeed)

    def compute(self, batch: Batch) -> Outcome:
        """Return the objective's sums over a batch, which may lie on another device."""
        loss_sum, sums = self._deepspeed(batch.to(self.device))
        return Outcome(loss_sum, sums)

    def encode(self, batch: Batch) -> Tensor:
        """Return the hidden states [T, hidden_size] of a batch; with ZeRO 3 all processes take part."""
        hidden: Tensor = self._deepspeed(batch.to(self.device), True)
        return hidden

    def train(self, mode: bool = True) -> None:
        """Switch between training and evaluation."""
        self._deepspeed.train(mode)

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of a loss to those of the micro steps before; processes are averaged."""
        self._deepspeed.backward(loss, scale_wrt_gas=False)

    def set_learning_rate(self, step: int) -> None:
        """Set the learning rates of optimiser step `step`, counted from 1."""
        for group in self._deepspeed.optimizer.param_groups:
            group["lr"] = compute_learning_rate(
                self._config.scheduler, step, self._config.trainer.max_steps, group["base_lr"]
            )

    def step(self) -> float:
        """End a micro step; at the last one of a step, update the weights.

        Returns:
            Norm of the global batch's gradient before clipping; NaN before the last micro step, and
            where the weights were not updated because the gradient is not finite.
        """
        return self._state.step()

    def read_state(self, updates: int, keep: bool) -> EngineState | None:
        """Collect weights and moments from all processes.

        Every process has to call this; only those with `keep` get the result.

        Args:
            updates: made by the optimiser.
            keep: whether this process wants the state.
        """
        weights, moments = {}, {}
        for name, weight, kept in self._state.iter_state(with_moments=updates > 0):
            if keep:
                weights[name] = _copy(weight)
                moments.update({f"{moment}.{name}": _copy(value) for moment, value in kept.items()})
        return EngineState(weights, moments, updates) if keep else None

    def restore(self, state: EngineState) -> None:
        """Continue where another optimiser was, at a start or in place of the steps taken since.

        The moments are created by one step with a learning rate of zero and then overwritten, together
        with the weights, which that step may have rounded, and the step count.
        """
        self._create_moments()
        self._state.write(state.weights, state.moments)
        for values in self._state.optimizer.state.values():
            if "step" in values:
                count = torch.as_tensor(values["step"], dtype=torch.float32)
                values["step"] = torch.full_like(count, state.updates)

    def _create_moments(self) -> None:
        """Take one step with zero gradients and learning rate, in which ZeRO 3 takes part too."""
        for group in self._deepspeed.optimizer.param_groups:
            group["lr"] = 0.0
        batch = _build_smallest_batch()
        with torch.compiler.set_stance("force_eager"):  # no other batch has this size
            for _ in range(self._deepspeed.gradient_accumulation_steps()):
                self.backward(self.compute(batch).loss_sum * 0.0)
                self.step()


def _build_state(config: TrainConfig, encoder: Encoder) -> WholeState | ShardedState:
    """Return the weights of an encoder with the optimiser over them, as the ZeRO stage holds them."""
    roles, layouts = encoder.list_roles(), encoder.list_layouts()
    moments = {
        name: [moment.name for moment in config.optimizer.list_moments(role)]
        for name, role in roles.items()
    }

    def build(weights: Mapping[str, nn.Parameter]) -> torch.optim.Optimizer:
        return build_optimizer(config.optimizer, weights, roles, layouts)

    if config.deepspeed.zero_stage:
        return ShardedState(encoder.network, build, moments)
    is_bf16 = config.trainer.precision is Precision.bf16
    return WholeState(encoder.network, build, moments, is_bf16, config.optimizer.max_grad_norm)


def _copy(value: Tensor) -> Tensor:
    """Return a copy in fp32 on the CPU, which training does not change."""
    return value.detach().float().cpu().clone()


def _build_smallest_batch() -> Batch:
    return Batch(
        input_ids=torch.zeros(2, dtype=torch.int64),
        position_ids=torch.arange(2, dtype=torch.int32),
        cu_seqlens=torch.tensor([0, 2], dtype=torch.int32),
        max_seqlen=2,
        masked_positions=torch.ones(1, dtype=torch.int64),
        labels=torch.zeros(1, dtype=torch.int64),
        lane=0,
        lane_state={},
    )
