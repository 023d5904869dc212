"""The DeepSpeed engine: its configuration, its set-up, and its state by parameter name."""

import collections
import contextlib
import io
import logging
import math
import os
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from neobert_train.batch import Batch
from neobert_train.config.derived import compute_accumulation_steps
from neobert_train.config.schema import Precision, TrainConfig
from neobert_train.objectives.objective import Objective, Outcome
from neobert_train.optim.optimizers import build_optimizer
from neobert_train.optim.schedules import compute_learning_rate
from neobert_train.world import World

# Elements. DeepSpeed's own choice is ten times as many, which takes a buffer on every device of 1 GB at
# ZeRO 2 in bf16, and of 2 GB at ZeRO 3 and in fp32.
REDUCE_BUCKET = 50_000_000


def import_deepspeed(device: torch.device) -> Any:
    """Return DeepSpeed, set up for an accelerator and to compile nothing on a CPU.

    On a CPU it would build a shared-memory extension at the first start (44 s, or an error without
    a compiler); gloo is enough.
    """
    os.environ.setdefault("DS_ACCELERATOR", device.type)
    import deepspeed

    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    if device.type == "cpu":
        deepspeed.ops.__dict__["__compatible_ops__"] = collections.defaultdict(bool)
    return deepspeed


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
    return {
        # DeepSpeed counts samples; a micro-batch is one.
        "train_batch_size": accumulation * world.world_size,
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": accumulation,
        # Without ZeRO `Engine.step` clips.
        "gradient_clipping": config.optimizer.max_grad_norm if config.deepspeed.zero_stage else 0.0,
        "zero_optimization": {
            "stage": config.deepspeed.zero_stage,
            # All-reduce bucket, in elements.
            "reduce_bucket_size": max(REDUCE_BUCKET, largest_parameter),
        },
        "zero_allow_untested_optimizer": True,
        "bf16": {"enabled": config.trainer.precision is Precision.bf16},
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

    def forward(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
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
        self._network = objective.encoder.network
        self._moments = [moment.name for moment in config.optimizer.moments]
        deepspeed = import_deepspeed(device)
        os.environ.setdefault("LOCAL_RANK", str(world.local_rank))  # it insists, launcher or not
        deepspeed.init_distributed(dist_backend="nccl" if device.type == "cuda" else "gloo")
        forward = _Forward(objective).to(device)
        largest = max(parameter.numel() for parameter in forward.parameters())
        roles = objective.encoder.list_roles()
        with contextlib.redirect_stdout(io.StringIO()):  # it prints its memory use
            self._deepspeed: Any
            self._deepspeed, *_ = deepspeed.initialize(
                model=forward,
                optimizer=build_optimizer(config.optimizer, self._network, roles),
                config=build_deepspeed_config(config, world, largest),
            )

    def compute(self, batch: Batch) -> Outcome:
        """Return the objective's sums over a batch, which may lie on another device."""
        loss_sum, sums = self._deepspeed(batch.to(self.device))
        return Outcome(loss_sum, sums)

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
        is_last = self._deepspeed.is_gradient_accumulation_boundary()
        if not self._is_plain:
            self._deepspeed.step()
            if not is_last or not self._deepspeed.was_step_applied():
                return math.nan  # DeepSpeed keeps the norm of the step before
            return float(self._deepspeed.get_global_grad_norm())
        norm = math.nan
        if is_last:
            norm = self._clip_gradients(self._config.optimizer.max_grad_norm)
            if not math.isfinite(norm):
                # An optimiser skips parameters without a gradient, and so the whole step.
                for parameter in self._network.parameters():
                    parameter.grad = None
        self._deepspeed.step()
        return norm

    def read_state(self, updates: int, keep: bool) -> EngineState | None:
        """Collect weights and moments from all processes.

        Every process has to call this; only those with `keep` get the result.

        Args:
            updates: made by the optimiser.
            keep: whether this process wants the state.
        """
        from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

        if updates:
            self._link_moments()
        weights, moments = {}, {}
        for name, parameter in self._network.named_parameters():
            weight = safe_get_full_fp32_param(parameter)
            # A plain torch optimiser (ZeRO 0 in fp32) has no fp32 copies; the parameter is the weight.
            values = {name: parameter.data if weight is None else weight}
            for moment in self._moments if updates else ():
                value = self._find_plain_moment(parameter, moment)
                if value is None:
                    value = safe_get_full_optimizer_state(parameter, moment)
                values[f"{moment}.{name}"] = value
            if keep:
                copies = {
                    key: value.detach().float().cpu().clone() for key, value in values.items()
                }
                weights[name] = copies.pop(name)
                moments.update(copies)
        return EngineState(weights, moments, updates) if keep else None

    def continue_from(self, state: EngineState) -> None:
        """Continue an optimiser where it was; the weights are already in the network.

        The moments are created by one step with a learning rate of zero and then overwritten, together
        with the fp32 weights, which that step may have rounded, and the step count.
        """
        from deepspeed.utils import safe_set_full_fp32_param, safe_set_full_optimizer_state

        self._create_moments()
        self._link_moments()
        for name, parameter in self._network.named_parameters():
            for moment in self._moments:
                value = state.moments[f"{moment}.{name}"].to(self.device)
                plain = self._find_plain_moment(parameter, moment)
                if plain is None:
                    safe_set_full_optimizer_state(parameter, value, moment)
                else:
                    plain.copy_(value)
            weight = state.weights[name].to(self.device)
            if self._is_plain:
                parameter.data.copy_(weight)
            else:
                safe_set_full_fp32_param(parameter, weight)
        optimizer = self._deepspeed.optimizer
        for values in getattr(optimizer, "optimizer", optimizer).state.values():
            if "step" in values:
                count = torch.as_tensor(values["step"], dtype=torch.float32)
                values["step"] = torch.full_like(count, state.updates)

    def restore(self, state: EngineState) -> None:
        """Put the weights and moments of another step into an engine that has trained since."""
        import deepspeed

        self.continue_from(state)
        for name, parameter in self._network.named_parameters():
            # The low-precision copies; of ZeRO 3 every process holds a part.
            with deepspeed.zero.GatheredParameters([parameter], modifier_rank=0):
                if parameter.numel() == state.weights[name].numel():
                    parameter.data.copy_(state.weights[name])

    @property
    def _is_plain(self) -> bool:
        """Whether the optimiser is torch's own, as in fp32 without ZeRO."""
        return isinstance(self._deepspeed.optimizer, torch.optim.Optimizer)

    def _clip_gradients(self, max_norm: float) -> float:
        """Clip as ZeRO does, and return the norm before.

        DeepSpeed's own clipping of a plain optimiser keeps no norm, and adds squares up in fp32, which
        was 0.05 % off on an embedding of two million weights.
        """
        gradients = [p.grad for p in self._network.parameters() if p.grad is not None]
        squares = [torch.linalg.vector_norm(g, dtype=torch.float64) ** 2 for g in gradients]
        norm = float(torch.stack(squares).sum().sqrt())
        if 0 < max_norm < norm + 1e-6:
            for gradient in gradients:
                gradient.mul_(max_norm / (norm + 1e-6))
        return norm

    def _find_plain_moment(self, parameter: nn.Parameter, moment: str) -> Tensor | None:
        if not self._is_plain:
            return None
        value: Tensor | None = self._deepspeed.optimizer.state.get(parameter, {}).get(moment)
        return value

    def _link_moments(self) -> None:
        """Let ZeRO 1 and 2 find the moments of every parameter group.

        DeepSpeed links moments to parameters once, after the step of the first group, when the other
        groups have none yet (seen in 0.19.8).
        """
        optimizer = self._deepspeed.optimizer
        if hasattr(optimizer, "_hp_optimizer_states_linked"):
            optimizer._hp_optimizer_states_linked = False
            optimizer._lazy_init_hp_params_optimizer_state()

    def _create_moments(self) -> None:
        """Take one step with zero gradients and learning rate, in which ZeRO 3 takes part too."""
        for group in self._deepspeed.optimizer.param_groups:
            group["lr"] = 0.0
        batch = _build_smallest_batch()
        with torch.compiler.set_stance("force_eager"):  # no other batch has this size
            for _ in range(self._deepspeed.gradient_accumulation_steps()):
                self.backward(self.compute(batch).loss_sum * 0.0)
                self._deepspeed.step()


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
