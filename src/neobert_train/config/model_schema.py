"""Settings of the encoder, by its kind."""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from typing import ClassVar

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


@dataclass
class ModelConfig(Choice):
    """The encoder: how it computes.

    Attributes:
        title: of its architecture, as a model card writes it.
        shape: names of the settings that weights from elsewhere have to agree with.
    """

    title: ClassVar[str] = ""
    shape: ClassVar[tuple[str, ...]] = ()
    max_length: int = setting(
        4096, "Longest context the exported model announces, in tokens.", at_least=8
    )
    attention: AttentionBackend = setting(
        AttentionBackend.auto, "auto, sdpa, flash_attn, torch_varlen or xformers."
    )
    compile: bool | None = setting(
        None, "Compile the blocks with torch.compile (needs a C compiler); null does so on GPUs."
    )
    activation_checkpointing: bool = setting(
        False, "Compute every block again in the backward pass instead of keeping its activations."
    )


@dataclass
class NeoBERTModelConfig(ModelConfig):
    """NeoBERT (arXiv 2502.19587): its shape, in the names of the published model."""

    title: ClassVar[str] = "[NeoBERT](https://arxiv.org/abs/2502.19587)"
    shape: ClassVar[tuple[str, ...]] = (
        "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "norm_eps",
    )  # fmt: skip
    kind: str = kind_setting("neobert", "model")
    hidden_size: int = setting(768, "Width of the residual stream.", at_least=1)
    num_hidden_layers: int = setting(28, "Transformer blocks.", at_least=1)
    num_attention_heads: int = setting(12, "Attention heads per block.", at_least=1)
    intermediate_size: int = setting(
        3072, "Nominal feed-forward width; SwiGLU uses two thirds of it, rounded up to 8.",
        at_least=1,
    )  # fmt: skip
    norm_eps: float = setting(1e-5, "Epsilon of the RMS norms.", above=0.0)
    embedding_init_range: float = setting(
        0.02, "Initial embeddings are uniform within plus or minus this.", above=0.0
    )
    decoder_init_range: float = setting(
        0.02, "Initial linear weights are uniform within plus or minus this.", above=0.0
    )

    def compute_feed_forward_width(self) -> int:
        """Return SwiGLU's inner width: two thirds of `intermediate_size`, rounded up to 8."""
        width = int(2 * self.intermediate_size / 3)
        return -(-width // FEED_FORWARD_MULTIPLE) * FEED_FORWARD_MULTIPLE

    def iter_problems(self) -> Iterator[str]:
        """Yield why the width cannot be divided among the heads."""
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
