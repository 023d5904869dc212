"""The objective that a configuration names."""

from collections.abc import Callable
from typing import Any

from neobert_train.config.choices import MaskedLMConfig, ObjectiveConfig
from neobert_train.models.encoder import Encoder
from neobert_train.objectives.masked_lm import MaskedLM
from neobert_train.objectives.objective import Objective

BUILDERS: dict[type[ObjectiveConfig], Callable[[Any, Encoder], Objective]] = {
    MaskedLMConfig: lambda _, encoder: MaskedLM(encoder),
}


def build_objective(config: ObjectiveConfig, encoder: Encoder) -> Objective:
    """Return what an encoder is to be trained to do."""
    return BUILDERS[type(config)](config, encoder)
