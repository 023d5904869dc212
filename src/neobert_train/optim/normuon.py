"""NorMuon (arXiv 2510.05491): Muon with a learning rate for every row."""

from typing import Any

import torch
from torch import Tensor, nn

from neobert_train.config.choices import NorMuonConfig
from neobert_train.optim.matrices import MatrixLayout
from neobert_train.optim.muon import UPDATE_RMS, Muon

_EPS = 1e-8


class NorMuon(Muon):
    """Muon whose orthogonal matrices O [rows, columns] are normalised row by row.

        v <- beta2 v + (1 - beta2) mean of O^2 over columns     [rows]
        N <- O / (sqrt(v) + eps)
        W <- (1 - lr weight_decay) W - lr 0.2 sqrt(rows columns) N / |N|

    so that the root mean square of an update is 0.2 as before (algorithm 1 of the paper).
    """

    def __init__(self, groups: list[dict[str, Any]], config: NorMuonConfig) -> None:
        """Take groups of parameters; see `Muon`."""
        super().__init__(groups, config)
        self._beta2 = config.beta2

    def _scale(self, parameter: nn.Parameter, layout: MatrixLayout, update: Tensor) -> Tensor:
        state = self.state[parameter]
        if "row_avg_sq" not in state:
            state["row_avg_sq"] = parameter.new_zeros(parameter.shape[:1])
        squares = layout.put_together(update.square().mean(-1, keepdim=True))[:, 0]
        average: Tensor = state["row_avg_sq"].lerp_(squares, 1 - self._beta2)
        update.div_(layout.take_apart(average[:, None]).sqrt().add_(_EPS))
        norms = torch.linalg.matrix_norm(update, keepdim=True)
        size = UPDATE_RMS * (update.shape[-2] * update.shape[-1]) ** 0.5
        return update.mul_(size / norms.clamp(min=_EPS))


def build_normuon(config: NorMuonConfig, groups: list[dict[str, Any]]) -> NorMuon:
    """Return NorMuon over groups of parameters."""
    return NorMuon(groups, config)
