"""Settings of the encoder, by its kind."""

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path, PurePath
from typing import Any, ClassVar

from neobert_train.config.choice import Choice, kind_setting
from neobert_train.config.divisors import find_divisors
from neobert_train.config.setting import setting

FEED_FORWARD_MULTIPLE = 8


class AttentionBackend(Enum):
    """Kernel that computes attention within packed documents."""

    auto = "auto"
    sdpa = "sdpa"
    flash_attn = "flash_attn"
    torch_varlen = "torch_varlen"
    xformers = "xformers"


class FeedForwardKernel(Enum):
    """What computes the feed-forward layers."""

    torch = "torch"
    quack = "quack"


@dataclass
class ModelConfig(Choice):
    """The encoder: how it computes.

    Attributes:
        shape: names of the settings that weights from elsewhere have to agree with.
        can_compile: whether its blocks can be compiled.
    """

    shape: ClassVar[tuple[str, ...]] = ()
    can_compile: ClassVar[bool] = True
    attention: AttentionBackend = setting(
        AttentionBackend.auto, "auto, sdpa, flash_attn, torch_varlen or xformers."
    )
    compile: bool | None = setting(
        None, "Compile the blocks with torch.compile (needs a C compiler); null does so on GPUs."
    )
    activation_checkpointing: bool = setting(
        False, "Compute every block again in the backward pass instead of keeping its activations."
    )

    @property
    def source(self) -> str | None:
        """The folder or Hub name that the network comes from; None for one of our own."""
        return None

    @property
    def network_key(self) -> tuple[Any, ...]:
        """What decides which network it is, for kinds whose runs keep its configuration."""
        return ()

    @property
    def repository(self) -> str | None:
        """The name on the Hub of the model that it comes from, without its revision."""
        return None

    def pin(self, source: str) -> "ModelConfig":
        """Return the same with a commit in the name of its source."""
        return self

    @property
    def origin(self) -> str | None:
        """The folder or Hub name of the weights that a run begins with; None for random ones."""
        return None

    @property
    def needs_remote_code(self) -> bool:
        """Whether transformers loads an export only with the code that lies in it."""
        return True

    @property
    def has_all_heads(self) -> bool:
        """Whether an export loads as encoder and with heads for other tasks as well."""
        return True

    def describe(self) -> str:
        """Return what a model card calls it, an article first."""
        return "A text encoder"

    def announce_length(self, context_length: int) -> int:
        """Return the longest context that a tokenizer saved with the model announces, in tokens.

        Args:
            context_length: of the run.
        """
        return context_length


@dataclass
class NeoBERTModelConfig(ModelConfig):
    """NeoBERT (arXiv 2502.19587): its shape, in the names of the published model."""

    shape: ClassVar[tuple[str, ...]] = (
        "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "norm_eps",
    )  # fmt: skip
    kind: str = kind_setting("neobert", "model")
    max_length: int = setting(
        4096, "Longest context the exported model announces, in tokens.", at_least=8
    )
    hidden_size: int = setting(768, "Width of the residual stream.", at_least=1)
    num_hidden_layers: int = setting(28, "Transformer blocks.", at_least=1)
    num_attention_heads: int = setting(12, "Attention heads per block.", at_least=1)
    intermediate_size: int = setting(
        3072, "Nominal feed-forward width; SwiGLU uses two thirds of it, rounded up to 8.",
        at_least=1,
    )  # fmt: skip
    feed_forward: FeedForwardKernel = setting(
        FeedForwardKernel.torch,
        "torch, or quack: products that apply the gate, on Hopper and Blackwell in bf16.",
    )
    norm_eps: float = setting(1e-5, "Epsilon of the RMS norms.", above=0.0)
    embedding_init_range: float = setting(
        0.02, "Initial embeddings are uniform within plus or minus this.", above=0.0
    )
    decoder_init_range: float = setting(
        0.02, "Initial linear weights are uniform within plus or minus this.", above=0.0
    )

    def describe(self) -> str:
        """Return the architecture with a link to its paper."""
        return "A [NeoBERT](https://arxiv.org/abs/2502.19587) text encoder"

    def announce_length(self, context_length: int) -> int:
        """Return `max_length`, which a longer context than the run's may use."""
        return self.max_length

    def compute_feed_forward_width(self) -> int:
        """Return SwiGLU's inner width: two thirds of `intermediate_size`, rounded up to 8."""
        width = int(2 * self.intermediate_size / 3)
        return -(-width // FEED_FORWARD_MULTIPLE) * FEED_FORWARD_MULTIPLE

    def iter_problems(self) -> Iterator[str]:
        """Yield why the width cannot be divided among the heads, or the kernels cannot take it."""
        if self.feed_forward is FeedForwardKernel.quack and self.hidden_size % 8:
            yield (
                f"model.feed_forward=quack multiplies rows of 16 bytes, and model.hidden_size="
                f"{self.hidden_size} is not a multiple of 8: write model.feed_forward=torch"
            )
        head_size, rest = divmod(self.hidden_size, self.num_attention_heads)
        if rest:
            yield (
                f"model.hidden_size={self.hidden_size} is not a multiple of "
                f"model.num_attention_heads={self.num_attention_heads}: {self._offer_heads()}"
            )
        elif head_size % 2:
            yield (
                f"model.hidden_size / model.num_attention_heads = {head_size} is odd, and rotary "
                f"embeddings turn pairs of channels: {self._offer_heads()}"
            )

    def _offer_heads(self) -> str:
        if self.hidden_size % 2:
            return f"the width must be even, such as model.hidden_size={self.hidden_size + 1}"
        heads = ", ".join(map(str, find_divisors(self.hidden_size // 2)))
        return f"choose model.num_attention_heads among {heads}"


def has_quack(model: ModelConfig) -> bool:
    """Return whether quack's kernels are to compute feed-forward layers."""
    return isinstance(model, NeoBERTModelConfig) and model.feed_forward is FeedForwardKernel.quack


@dataclass
class HuggingFaceModelConfig(ModelConfig):
    """A masked-language model of transformers, trained further or from random weights."""

    elsewhere: ClassVar[Mapping[str, Mapping[str, str]]] = {"tokenizer": {"path": "${model.name}"}}
    can_compile: ClassVar[bool] = False
    kind: str = kind_setting("hugging_face", "model")
    name: str = setting(
        "", "A folder or org/name@revision on the Hub; its tokenizer is the default."
    )
    from_scratch: bool = setting(
        False, "Begin with random weights, of the shape of the model but for the settings below."
    )
    hidden_size: int | None = setting(
        None, "Width of the residual stream; null takes the model's own, as below.", at_least=1
    )
    num_hidden_layers: int | None = setting(None, "Transformer blocks.", at_least=1)
    num_attention_heads: int | None = setting(None, "Attention heads per block.", at_least=1)
    intermediate_size: int | None = setting(None, "Feed-forward width.", at_least=1)
    max_position_embeddings: int | None = setting(None, "Longest context, in tokens.", at_least=8)
    trust_remote_code: bool = setting(
        False, "Run the Python code that comes with the model, which may do anything."
    )

    @property
    def source(self) -> str | None:
        """The model that is named."""
        return self.name

    @property
    def network_key(self) -> tuple[Any, ...]:
        """The model and the shape."""
        return self.name, self.from_scratch, *self.overrides.items()

    @property
    def repository(self) -> str | None:
        """The model, where it is no folder."""
        name = self.name.partition("@")[0]
        is_name = name.count("/") == 1 and not name.startswith((".", "/", "~"))
        return name if is_name and not Path(name).is_dir() else None

    def pin(self, source: str) -> "HuggingFaceModelConfig":
        """Return the same with a commit in the name."""
        return dataclasses.replace(self, name=source)

    @property
    def origin(self) -> str | None:
        """The model, unless it begins with random weights."""
        return None if self.from_scratch else self.name

    @property
    def needs_remote_code(self) -> bool:
        """Whether the model came with code of its own."""
        return self.trust_remote_code

    @property
    def has_all_heads(self) -> bool:
        """Whether it is one that transformers knows."""
        return not self.trust_remote_code

    @property
    def overrides(self) -> dict[str, int]:
        """The settings of the shape that are given, by their name in the model's `config.json`."""
        names = (
            "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size",
            "max_position_embeddings",
        )  # fmt: skip
        given = {name: getattr(self, name) for name in names}
        return {name: value for name, value in given.items() if value is not None}

    def describe(self) -> str:
        """Return which model it is, or has the architecture of; of a folder, its last part."""
        repository = self.repository
        shown = PurePath(self.name.partition("@")[0]).name
        if repository:
            shown = f"[{repository}](https://huggingface.co/{repository})"
        taken = "architecture" if self.from_scratch else "architecture and initial weights"
        return f"A text encoder with the {taken} of {shown},"

    def iter_problems(self) -> Iterator[str]:
        """Yield that no model is named, or that its weights would not have the shape."""
        if self.compile:
            yield "model.compile=true does not go with model=hugging_face: leave it out"
        if not self.name:
            yield "model.name is not set: write model.name=answerdotai/ModernBERT-base, or a folder"
        if self.overrides and not self.from_scratch:
            settings = ", ".join(f"model.{name}={value}" for name, value in self.overrides.items())
            yield (
                f"{settings} would not fit the model's own weights: write model.from_scratch=true for "
                f"random ones, or leave it out"
            )
