"""Configuration of NeoBERT, in the names of the published `config.json`."""

from typing import Any

from transformers import PretrainedConfig


class NeoBERTConfig(PretrainedConfig):
    """Shape of a NeoBERT encoder (arXiv 2502.19587, table 2).

    The names that other encoders and the libraries around them use for the same values work as well:
    `max_position_embeddings`, `head_dim`, `initializer_range`.

    Args:
        hidden_size: width of the residual stream.
        num_hidden_layers: number of transformer blocks.
        num_attention_heads: heads of each block; divides `hidden_size` into even parts.
        intermediate_size: nominal feed-forward width; SwiGLU uses two thirds, rounded up to 8.
        embedding_init_range: embeddings start uniform within plus or minus this.
        decoder_init_range: linear weights start uniform within plus or minus this.
        classifier_init_range: standard deviation of a new classification head.
        classifier_dropout: dropout probability of the classification head.
        norm_eps: epsilon of the RMS norms.
        vocab_size: number of token ids.
        pad_token_id: id whose embedding stays zero.
        max_length: longest context in tokens. Positions are relative, so nothing breaks beyond it.

    Raises:
        ValueError: the heads do not divide the width into even parts.
    """

    model_type = "neobert"
    attribute_map = {  # noqa: RUF012
        "max_position_embeddings": "max_length",
        "head_dim": "dim_head",
        "initializer_range": "decoder_init_range",
    }

    def __init__(
        self,
        hidden_size: int = 768,
        num_hidden_layers: int = 28,
        num_attention_heads: int = 12,
        intermediate_size: int = 3072,
        embedding_init_range: float = 0.02,
        decoder_init_range: float = 0.02,
        classifier_init_range: float = 0.02,
        classifier_dropout: float = 0.1,
        norm_eps: float = 1e-5,
        vocab_size: int = 30522,
        pad_token_id: int = 0,
        max_length: int = 4096,
        **kwargs: Any,
    ) -> None:
        max_length = kwargs.pop("max_position_embeddings", max_length)
        decoder_init_range = kwargs.pop("initializer_range", decoder_init_range)
        if hidden_size % num_attention_heads or hidden_size // num_attention_heads % 2:
            raise ValueError(
                f"hidden_size={hidden_size} is not an even multiple of "
                f"num_attention_heads={num_attention_heads}"
            )
        for name in ("dim_head", "head_dim", "hidden_act"):  # of the first two, and the only one
            kwargs.pop(name, None)
        kwargs.setdefault("tie_word_embeddings", False)
        super().__init__(pad_token_id=pad_token_id, **kwargs)
        self.hidden_size = hidden_size
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.dim_head = hidden_size // num_attention_heads
        self.intermediate_size = intermediate_size
        self.embedding_init_range = embedding_init_range
        self.decoder_init_range = decoder_init_range
        self.classifier_init_range = classifier_init_range
        self.classifier_dropout = classifier_dropout
        self.norm_eps = norm_eps
        self.vocab_size = vocab_size
        self.pad_token_id = pad_token_id
        self.max_length = max_length
        self.hidden_act = "silu"

    @property
    def feed_forward_width(self) -> int:
        """Inner width of SwiGLU: two thirds of `intermediate_size`, rounded up to 8."""
        return 8 * -(-int(2 * self.intermediate_size / 3) // 8)

    # `save_pretrained` refuses settings of text generation in a configuration, and takes `max_length`
    # for one. Here it is the context, and the published configuration has it, so the name has to stay.

    def _get_generation_parameters(self) -> dict[str, Any]:
        """Return what transformers 5 takes for settings of text generation."""
        return _without_context(super()._get_generation_parameters())

    def _get_non_default_generation_parameters(self) -> dict[str, Any]:
        """Return what transformers 4 takes for settings of text generation."""
        return _without_context(super()._get_non_default_generation_parameters())


def _without_context(parameters: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in parameters.items() if name != "max_length"}
