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
from neobert_train.objective import MaskedLanguageModelling
from neobert_train.optim.adamw import build_optimizer
from neobert_train.world import World

# Elements. DeepSpeed's own choice is ten times as many, which takes a buffer on every device of 1 GB at
# ZeRO 2 in bf16, and of 2 GB at ZeRO 3 and in fp32.
REDUCE_BUCKET = 50_000_000
MOMENTS = ("exp_avg", "exp_avg_sq")


def import_deepspeed(device: torch.device) -> Any:
    """DeepSpeed, told which accelerator to use and to compile nothing on a CPU.

    On a CPU it would build a shared-memory extension at the first start (44 s, or an error without
    a compiler); gloo alone serves.
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
    """The engine's settings; everything about batches follows from the lanes.

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
        # Without ZeRO `step_engine` clips.
        "gradient_clipping": config.optimizer.max_grad_norm if config.deepspeed.zero_stage else 0.0,
        "zero_optimization": {
            "stage": config.deepspeed.zero_stage,
            # Of gradients that are summed together.
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


def build_engine(
    config: TrainConfig, objective: MaskedLanguageModelling, world: World, device: torch.device
) -> Any:
    """A DeepSpeed engine around the objective.

    Args:
        config: of the run.
        objective: with its fp32 weights in place, since the low-precision copies are made here.
        world: this process among all.
        device: where to train.
    """
    deepspeed = import_deepspeed(device)
    os.environ.setdefault("LOCAL_RANK", str(world.local_rank))  # it insists, launcher or not
    deepspeed.init_distributed(dist_backend="nccl" if device.type == "cuda" else "gloo")
    objective.to(device)
    largest = max(parameter.numel() for parameter in objective.parameters())
    with contextlib.redirect_stdout(io.StringIO()):  # it prints its memory use
        engine, *_ = deepspeed.initialize(
            model=objective,
            optimizer=build_optimizer(config.optimizer, objective),
            config=build_deepspeed_config(config, world, largest),
        )
    return engine


@dataclass
class EngineState:
    """Everything that training changes in the model and the optimiser, in fp32 on the CPU.

    Attributes:
        weights: by parameter name, as in the state dict of `NeoBERTForMaskedLM`.
        moments: exp_avg and exp_avg_sq by `MOMENT.PARAMETER`; empty before the first step.
        step: updates made by the optimiser, the t of AdamW's bias correction.
    """

    weights: dict[str, Tensor]
    moments: dict[str, Tensor]
    step: int


def iter_parameters(engine: Any) -> list[tuple[str, nn.Parameter]]:
    """Parameters under their names in `NeoBERTForMaskedLM`."""
    return list(engine.module.model.named_parameters())


def read_engine_state(engine: Any, step: int, keep: bool) -> EngineState | None:
    """Collect weights and moments from all processes.

    Every process has to call this; only those with `keep` get the result.

    Args:
        engine: the DeepSpeed engine.
        step: updates made by the optimiser.
        keep: whether this process wants the state.
    """
    from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

    if step:
        _link_moments(engine)
    weights, moments = {}, {}
    for name, parameter in iter_parameters(engine):
        weight = safe_get_full_fp32_param(parameter)
        # A plain torch optimiser (ZeRO 0 in fp32) has no fp32 copies; the parameter is the weight.
        values = {name: parameter.data if weight is None else weight}
        for moment in MOMENTS if step else ():
            value = _find_plain_moment(engine, parameter, moment)
            if value is None:
                value = safe_get_full_optimizer_state(parameter, moment)
            values[f"{moment}.{name}"] = value
        if keep:
            copies = {key: value.detach().float().cpu().clone() for key, value in values.items()}
            weights[name] = copies.pop(name)
            moments.update(copies)
    return EngineState(weights, moments, step) if keep else None


def restore_engine(engine: Any, state: EngineState) -> None:
    """Put weights and moments of another step into an engine that has trained on."""
    import deepspeed

    write_optimizer_state(engine, state)
    for name, parameter in iter_parameters(engine):
        # The low-precision copies; of ZeRO 3 every process holds a part.
        with deepspeed.zero.GatheredParameters([parameter], modifier_rank=0):
            if parameter.numel() == state.weights[name].numel():
                parameter.data.copy_(state.weights[name])


def write_optimizer_state(engine: Any, state: EngineState) -> None:
    """Continue an optimiser where it was; the weights are already in the engine's module.

    The moments are created by one step with a learning rate of zero and then overwritten, together
    with the fp32 weights, which that step may have rounded, and the step count.
    """
    from deepspeed.utils import safe_set_full_fp32_param, safe_set_full_optimizer_state

    _create_moments(engine)
    _link_moments(engine)
    for name, parameter in iter_parameters(engine):
        plain = _find_plain_moment(engine, parameter, MOMENTS[0]) is not None
        for moment in MOMENTS:
            value = state.moments[f"{moment}.{name}"].to(engine.device)
            if plain:
                _find_plain_moment(engine, parameter, moment).copy_(value)
            else:
                safe_set_full_optimizer_state(parameter, value, moment)
        weight = state.weights[name].to(engine.device)
        if plain:
            parameter.data.copy_(weight)
        else:
            safe_set_full_fp32_param(parameter, weight)
    for optimizer_state in _inner_optimizer(engine).state.values():
        if "step" in optimizer_state:
            optimizer_state["step"] = torch.full_like(
                torch.as_tensor(optimizer_state["step"], dtype=torch.float32), state.step
            )


def set_learning_rate(engine: Any, learning_rate: float) -> None:
    """The learning rate of the next step, for all parameter groups."""
    for group in engine.optimizer.param_groups:
        group["lr"] = learning_rate


def step_engine(engine: Any, max_grad_norm: float) -> float:
    """End a micro step; at the last one of a step, update the weights.

    Args:
        engine: the DeepSpeed engine.
        max_grad_norm: as the engine was configured with; 0 is off.

    Returns:
        Norm of the global batch's gradient before clipping; NaN before the last micro step, and
        where the weights were not updated because the gradient is not finite.
    """
    is_last = engine.is_gradient_accumulation_boundary()
    if not isinstance(engine.optimizer, torch.optim.Optimizer):
        engine.step()
        if not is_last or not engine.was_step_applied():
            return math.nan  # DeepSpeed keeps the norm of the step before
        return float(engine.get_global_grad_norm())
    norm = math.nan
    if is_last:
        norm = _clip_gradients(engine, max_grad_norm)
        if not math.isfinite(norm):
            # An optimiser passes over parameters without a gradient, and so over the whole step.
            for _, parameter in iter_parameters(engine):
                parameter.grad = None
    engine.step()
    return norm


def _clip_gradients(engine: Any, max_grad_norm: float) -> float:
    """Clip as ZeRO does. DeepSpeed's own clipping of a plain optimiser keeps no norm, and adds
    squares up in fp32, which was 0.05 % off on an embedding of two million weights.
    """
    gradients = [p.grad for _, p in iter_parameters(engine) if p.grad is not None]
    squares = [torch.linalg.vector_norm(g, dtype=torch.float64) ** 2 for g in gradients]
    norm = float(torch.stack(squares).sum().sqrt())
    if 0 < max_grad_norm < norm + 1e-6:
        for gradient in gradients:
            gradient.mul_(max_grad_norm / (norm + 1e-6))
    return norm


def _inner_optimizer(engine: Any) -> torch.optim.Optimizer:
    return getattr(engine.optimizer, "optimizer", engine.optimizer)


def _find_plain_moment(engine: Any, parameter: nn.Parameter, moment: str) -> Any:
    if isinstance(engine.optimizer, torch.optim.Optimizer):
        return engine.optimizer.state.get(parameter, {}).get(moment)
    return None


def _link_moments(engine: Any) -> None:
    """Let ZeRO 1 and 2 find the moments of every parameter group.

    DeepSpeed links moments to parameters once, after the step of the first group, when the other
    groups have none yet (seen in 0.19.8).
    """
    optimizer = engine.optimizer
    if hasattr(optimizer, "_hp_optimizer_states_linked"):
        optimizer._hp_optimizer_states_linked = False
        optimizer._lazy_init_hp_params_optimizer_state()


def _create_moments(engine: Any) -> None:
    """One step with zero gradients and learning rate, through the module so that ZeRO 3 takes part."""
    set_learning_rate(engine, 0.0)
    batch = _smallest_batch().to(engine.device)
    with torch.compiler.set_stance("force_eager"):  # no other batch has this size
        for _ in range(engine.gradient_accumulation_steps()):
            loss, _ = engine(batch)
            engine.backward(loss * 0.0, scale_wrt_gas=False)
            engine.step()


def _smallest_batch() -> Batch:
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
