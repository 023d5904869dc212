"""Muon (https://kellerjordan.github.io/posts/muon): the momentum of whole matrices, orthogonalised."""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from neobert_train.config.choices import MuonConfig
from neobert_train.optim.matrices import MatrixLayout
from neobert_train.optim.newton_schulz import count_flops, orthogonalise

# Root mean square of AdamW's updates at a learning rate of 1, of which Muon's are to have the size
# (arXiv 2502.16982, section 2.2).
UPDATE_RMS = 0.2


class Muon(torch.optim.AdamW):
    """Muon for the parameters that have a layout, AdamW for the others.

    With the raw gradient G of a weight W, already clipped with all others, and its momentum M:

        M <- momentum M + (1 - momentum) G
        U <- momentum M + (1 - momentum) G     (Nesterov; U = M without)
        W <- (1 - lr weight_decay) W - lr scale orthogonalise(U)

    for each matrix that the layout takes apart, with scale = 0.2 sqrt(max(rows, columns)) of that
    matrix. Every process holds all moments; the orthogonalisation, nearly all of the work, is dealt
    among them by whole parameters, and its results are broadcast.
    """

    def __init__(self, groups: list[dict[str, Any]], config: MuonConfig) -> None:
        """Take groups of parameters.

        Args:
            groups: see `build_groups`, which gives hidden matrices their layouts.
            config: the settings.
        """
        beta1, beta2 = config.betas
        super().__init__(groups, lr=config.lr, betas=(beta1, beta2), eps=config.eps, fused=True)
        self._config = config
        for group in self.param_groups:
            layouts: list[MatrixLayout | None] = group["layouts"]
            group["layouts"] = [
                layout and layout.group_heads(config.heads_per_matrix) for layout in layouts
            ]

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient; those of matrices are used up."""
        self._step_matrices()
        super().step()

    def count_flops(self) -> int:
        """Return the operations of a step's orthogonalisations, over all processes."""
        return sum(self._count_flops(weight, layout) for _, weight, layout in self._iter_matrices())

    def _step_matrices(self) -> None:
        chosen = [
            (group, parameter, layout)
            for group, parameter, layout in self._iter_matrices()
            if parameter.grad is not None
        ]
        rank, num_processes = _find_place()
        costs = [self._count_flops(parameter, layout) for _, parameter, layout in chosen]
        owners = deal(costs, num_processes)
        updates, transfers = [], []
        for (_, parameter, layout), owner in zip(chosen, owners, strict=True):
            # The update takes the place of the gradient, so that it needs no memory of its own.
            matrices = layout.take_apart(self._add_to_momentum(parameter))
            update = _view_contiguous(parameter.grad).view_as(matrices)
            if owner == rank:
                update.copy_(orthogonalise(matrices, self._config.ns_steps))
            if num_processes > 1:
                transfers.append(dist.broadcast(update, src=owner, async_op=True))
            updates.append(update)
        for transfer in transfers:
            transfer.wait()
        for (group, parameter, layout), update in zip(chosen, updates, strict=True):
            step = layout.put_together(self._scale(parameter, layout, update))
            parameter.mul_(1 - group["lr"] * group["weight_decay"])
            parameter.sub_(step.view_as(parameter), alpha=group["lr"])
            parameter.grad = None  # AdamW leaves the parameter alone then

    def _iter_matrices(self) -> Iterator[tuple[dict[str, Any], nn.Parameter, MatrixLayout]]:
        for group in self.param_groups:
            for parameter, layout in zip(group["params"], group["layouts"], strict=True):
                if layout is not None:
                    yield group, parameter, layout

    def _count_flops(self, parameter: nn.Parameter, layout: MatrixLayout) -> int:
        rows = math.prod(layout.rows)
        columns, num_matrices = parameter.numel() // rows, layout.num_matrices
        return count_flops(num_matrices, rows // num_matrices, columns, self._config.ns_steps)

    def _add_to_momentum(self, parameter: nn.Parameter) -> Tensor:
        """Return the direction of the update before it is orthogonalised; the gradient is used up."""
        gradient, momentum = parameter.grad, self._config.momentum
        assert gradient is not None
        state = self.state[parameter]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(parameter)
        average: Tensor = state["momentum_buffer"]
        average.lerp_(gradient, 1 - momentum)
        return gradient.lerp_(average, momentum) if self._config.nesterov else average

    def _scale(self, parameter: nn.Parameter, layout: MatrixLayout, update: Tensor) -> Tensor:
        """Return [num_matrices, rows, columns] of the size of AdamW's updates, in place.

        Args:
            parameter: whose update it is.
            layout: of the parameter.
            update: orthogonal matrices.
        """
        return update.mul_(UPDATE_RMS * math.sqrt(max(update.shape[-2:])))


def deal(costs: Sequence[float], num_processes: int) -> list[int]:
    """Return which process gets each piece of work: the most expensive first, to the least busy."""
    busy = [0.0] * num_processes
    owners = [0] * len(costs)
    for index in sorted(range(len(costs)), key=lambda index: (-costs[index], index)):
        owner = min(range(num_processes), key=lambda rank: (busy[rank], rank))
        owners[index] = owner
        busy[owner] += costs[index]
    return owners


def build_muon(config: MuonConfig, groups: list[dict[str, Any]]) -> Muon:
    """Return Muon over groups of parameters."""
    return Muon(groups, config)


def _find_place() -> tuple[int, int]:
    """Return the rank of this process and the number of processes; a lone one needs no group."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def _view_contiguous(gradient: Tensor | None) -> Tensor:
    assert gradient is not None
    assert gradient.is_contiguous()
    return gradient
