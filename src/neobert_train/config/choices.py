"""The four choices that make a recipe: model, objective, optimizer and scheduler.

Each kind is a dataclass of its own with its own settings. A new kind is such a dataclass and a line of
`CHOICES`; `SECTION=KIND` then chooses it, and a saved configuration records it as `SECTION.kind`.

The defaults are those of NeoBERT's first pre-training phase (arXiv 2502.19587, section 3 and table 3).
"""

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any, ClassVar

from neobert_train.config.choice import Choice, kind_setting
from neobert_train.config.model_schema import HuggingFaceModelConfig, NeoBERTModelConfig
from neobert_train.config.setting import setting


@dataclass
class ObjectiveConfig(Choice):
    """What the encoder is trained to do.

    Attributes:
        title: of the objective, as a model card writes it.
    """

    title: ClassVar[str] = ""


@dataclass
class MaskedLMConfig(ObjectiveConfig):
    """Predict masked tokens; the `masking` section says which."""

    title: ClassVar[str] = "masked-language modelling"
    kind: str = kind_setting("masked_lm", "objective")


class Role(Enum):
    """What a parameter is for; `optimizer.ROLE` says how those of a role are trained.

    embedding: the table of token embeddings, and of positions.
    hidden_matrix: a matrix of a block.
    vector: a bias, or the scale of a norm.
    head: the matrix that scores the vocabulary.
    """

    embedding = "embedding"
    hidden_matrix = "hidden_matrix"
    vector = "vector"
    head = "head"


@dataclass
class GroupConfig:
    """How the parameters of one role differ from the others."""

    lr_multiplier: float = setting(
        1.0, "The learning rate of these parameters is optimizer.lr times this.",
        at_least=0.0, at_most=1000.0,
    )  # fmt: skip
    weight_decay: float | None = setting(
        None, "Their decoupled weight decay; optimizer.weight_decay by default.", at_least=0.0
    )


def _undecayed() -> GroupConfig:
    return GroupConfig(weight_decay=0.0)


@dataclass(frozen=True)
class Moment:
    """A tensor that an optimiser keeps of a parameter.

    Attributes:
        name: key in its torch `state`, and in `optimizer.safetensors`; ends in `_sq` where the values
            are means of squares, none of which may be negative.
        per_row: whether it holds one number per row of the parameter and not one per weight.
    """

    name: str
    per_row: bool = False

    def compute_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return its shape beside a parameter of the shape given."""
        return shape[:1] if self.per_row else shape


_OF_ADAM = (Moment("exp_avg"), Moment("exp_avg_sq"))


@dataclass
class OptimizerConfig(Choice):
    """What every optimiser has: a learning rate, decay and clipping, and groups of parameters.

    Attributes:
        moments: what it keeps of a parameter.
        matrix_moments: what it keeps of a hidden matrix, where that differs.
        needs_whole_matrices: whether it cannot work on the slices of parameters that ZeRO deals out.
    """

    moments: ClassVar[tuple[Moment, ...]] = ()
    matrix_moments: ClassVar[tuple[Moment, ...] | None] = None
    needs_whole_matrices: ClassVar[bool] = False
    lr: float = setting(6e-4, "Peak learning rate.", above=0.0)
    weight_decay: float = setting(0.1, "Decoupled weight decay.", at_least=0.0)
    max_grad_norm: float = setting(
        1.0, "Gradients are scaled down to this global norm; 0 is off.", at_least=0.0
    )
    embedding: GroupConfig = setting(GroupConfig, "")
    hidden_matrix: GroupConfig = setting(GroupConfig, "")
    head: GroupConfig = setting(GroupConfig, "")
    vector: GroupConfig = setting(_undecayed, "")

    def list_moments(self, role: Role) -> tuple[Moment, ...]:
        """Return what it keeps of a parameter of this role."""
        if role is Role.hidden_matrix and self.matrix_moments is not None:
            return self.matrix_moments
        return self.moments


@dataclass
class AdamWConfig(OptimizerConfig):
    """AdamW (arXiv 1711.05101); norms and biases are not decayed."""

    moments: ClassVar[tuple[Moment, ...]] = _OF_ADAM
    kind: str = kind_setting("adamw", "optimizer")
    betas: list[float] = setting(
        lambda: [0.9, 0.95], "Decay rates of the two moments.", at_least=0.0, below=1.0
    )
    eps: float = setting(1e-8, "Added to the denominator of the update.", above=0.0)

    def iter_problems(self) -> Iterator[str]:
        """Yield why the betas are not two."""
        if len(self.betas) != 2:
            yield "optimizer.betas needs two values: write optimizer.betas=[0.9,0.95]"


@dataclass
class MuonConfig(AdamWConfig):
    """Muon for hidden matrices, AdamW with `betas` and `eps` for the rest; ZeRO 0 only.

    The momentum of every matrix is orthogonalised (https://kellerjordan.github.io/posts/muon) and
    scaled to the size of AdamW's updates (arXiv 2502.16982), so that AdamW's rates carry over.
    """

    matrix_moments: ClassVar[tuple[Moment, ...] | None] = (Moment("momentum_buffer"),)
    needs_whole_matrices: ClassVar[bool] = True
    kind: str = kind_setting("muon", "optimizer")
    momentum: float = setting(
        0.95, "Share of the momentum of hidden matrices that a step keeps.", at_least=0.0, below=1.0
    )
    nesterov: bool = setting(True, "Update by the gradient and the momentum; false by the latter.")
    ns_steps: int = setting(
        5, "Newton-Schulz steps that orthogonalise an update.", at_least=1, at_most=20
    )
    heads_per_matrix: int | None = setting(
        None, "Attention heads whose queries (keys, values) make one matrix; all of them by default.",
        at_least=1,
    )  # fmt: skip


@dataclass
class NorMuonConfig(MuonConfig):
    """Muon whose updates are divided, row by row, by their running size (arXiv 2510.05491)."""

    matrix_moments: ClassVar[tuple[Moment, ...] | None] = (
        Moment("momentum_buffer"),
        Moment("row_avg_sq", per_row=True),
    )
    kind: str = kind_setting("normuon", "optimizer")
    beta2: float = setting(
        0.95, "Decay rate of the mean square of every row's updates.", at_least=0.0, below=1.0
    )


@dataclass(frozen=True)
class Decay:
    """The last step at the peak, the first at the floor, and the floor as a share of the peak."""

    start: int
    end: int
    floor: float


@dataclass
class SchedulerConfig(Choice):
    """The learning rate of a step as a share of its peak."""

    warmup_steps: int = setting(2000, "Steps of linear warm-up from 0 to the peak.", at_least=0)

    def find_decay(self, max_steps: int) -> Decay | None:
        """Return where a run of `max_steps` decays; None without a decay."""
        return None

    def iter_decay_problems(self, max_steps: int) -> Iterator[str]:
        """Yield why a run of `max_steps` would drop from the peak to the floor.

        One that ends within its warm-up, as a short trial may, does not.
        """
        yield from ()


@dataclass
class ConstantConfig(SchedulerConfig):
    """The peak throughout; NeoBERT's second phase."""

    kind: str = kind_setting("constant", "scheduler")
    warmup_steps: int = setting(0, "Steps of linear warm-up from 0 to the peak.", at_least=0)


def _decay_fraction(default: float) -> Any:
    return setting(
        default, "Share of trainer.max_steps at which the decay reaches its floor, warm-up included.",
        above=0.0, at_most=1.0,
    )  # fmt: skip


def _final_lr_ratio(default: float) -> Any:
    return setting(
        default, "Floor of the decay as a share of the peak; it holds to the end.",
        at_least=0.0, at_most=1.0,
    )  # fmt: skip


@dataclass
class DecayConfig(SchedulerConfig):
    """A decay from the end of the warm-up to a floor, which holds to the end."""

    decay_fraction: float = _decay_fraction(0.9)
    final_lr_ratio: float = _final_lr_ratio(0.1)

    def find_decay(self, max_steps: int) -> Decay:
        """Return the decay between the end of the warm-up and the step of `decay_fraction`."""
        end = max(1, round(self.decay_fraction * max_steps))
        return Decay(self.warmup_steps, end, self.final_lr_ratio)

    def iter_decay_problems(self, max_steps: int) -> Iterator[str]:
        """Yield that the warm-up leaves no step for the decay."""
        end = self.find_decay(max_steps).end
        if end <= self.warmup_steps < max_steps:
            yield (
                f"scheduler.warmup_steps={self.warmup_steps} leaves no step for the decay, which ends "
                f"at step {end} (scheduler.decay_fraction x trainer.max_steps): write "
                f"scheduler.warmup_steps={end // 10}"
            )


@dataclass
class CosineConfig(DecayConfig):
    """Linear warm-up, half a cosine to 10 % of the peak at 90 % of the steps, then constant."""

    kind: str = kind_setting("cosine", "scheduler")


@dataclass
class LinearConfig(DecayConfig):
    """Linear warm-up, then a straight line to the floor: to zero at the last step."""

    kind: str = kind_setting("linear", "scheduler")
    decay_fraction: float = _decay_fraction(1.0)
    final_lr_ratio: float = _final_lr_ratio(0.0)


class DecayShape(Enum):
    """How the learning rate of warm-up, stable, decay falls at the end."""

    linear = "linear"
    one_minus_sqrt = "one_minus_sqrt"


@dataclass
class WSDConfig(SchedulerConfig):
    """Warm-up, stable, decay: the peak until `decay_start`, and then a short fall to the floor.

    One long run at the peak gives a trained model at any step: continue a copy of its run directory,
    whose checkpoint lies before the fall, with `scheduler.decay_start` and `trainer.max_steps` set
    (arXiv 2404.06395; the shape `one_minus_sqrt` is from arXiv 2405.18392).
    """

    kind: str = kind_setting("wsd", "scheduler")
    decay_start: int | None = setting(
        None, "Last step at the peak; the fall ends at trainer.max_steps. 80 % of it by default.",
        at_least=0,
    )  # fmt: skip
    final_lr_ratio: float = _final_lr_ratio(0.0)
    decay_shape: DecayShape = setting(
        DecayShape.one_minus_sqrt, "linear, or one_minus_sqrt, which falls fast at first."
    )

    def find_decay(self, max_steps: int) -> Decay:
        """Return the decay between `decay_start`, or the warm-up's end, and the last step."""
        start = _find_usual_start(max_steps) if self.decay_start is None else self.decay_start
        return Decay(max(start, self.warmup_steps), max_steps, self.final_lr_ratio)

    def iter_decay_problems(self, max_steps: int) -> Iterator[str]:
        """Yield that the stable phase leaves no step for the decay."""
        start = self.find_decay(max_steps).start
        if self.warmup_steps < max_steps <= start:
            yield (
                f"scheduler.decay_start={start} leaves no step for the decay, which ends at "
                f"trainer.max_steps={max_steps}: write "
                f"scheduler.decay_start={_find_usual_start(max_steps)}"
            )


def _find_usual_start(max_steps: int) -> int:
    return min(round(0.8 * max_steps), max_steps - 1)


CHOICES: dict[str, dict[str, type[Choice]]] = {
    "model": {"neobert": NeoBERTModelConfig, "hugging_face": HuggingFaceModelConfig},
    "objective": {"masked_lm": MaskedLMConfig},
    "optimizer": {"adamw": AdamWConfig, "muon": MuonConfig, "normuon": NorMuonConfig},
    "scheduler": {
        "constant": ConstantConfig,
        "cosine": CosineConfig,
        "linear": LinearConfig,
        "wsd": WSDConfig,
    },
}


def list_chosen_sections(schema: type[Any]) -> list[str]:
    """Return the sections of a command's schema that are choices."""
    defaults = schema()
    return [
        field.name
        for field in dataclasses.fields(schema)
        if isinstance(getattr(defaults, field.name), Choice)
    ]


def build_defaults(schema: type[Any], kinds: Mapping[str, type[Choice]]) -> Any:
    """Return a command's settings with the defaults of the kinds that are chosen.

    Args:
        schema: of the command.
        kinds: by section.
    """
    config = schema()
    for section, kind in kinds.items():
        setattr(config, section, kind())
    return config
