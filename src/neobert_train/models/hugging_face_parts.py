"""Parts of a network of transformers, found by its interface and by the names that it gives them."""

from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from neobert_train.optim.matrices import MatrixLayout

# What transformers calls layers that hold several matrices, or the rows of attention heads.
_QUERIES_KEYS_VALUES, _GATED = ("Wqkv",), ("Wi",)
_OF_HEADS = (
    "query", "key", "value", "q_proj", "k_proj", "v_proj", "q_lin", "k_lin", "v_lin", "query_proj",
    "key_proj", "value_proj",
)  # fmt: skip


def find_decoder(network: PreTrainedModel) -> Any:
    """Return the product with the vocabulary at the end of the head; None where it is another thing."""
    decoder = network.get_output_embeddings()
    is_product = (
        isinstance(decoder, nn.Linear) and decoder.out_features == network.config.vocab_size
    )
    return decoder if is_product else None


def find_first_position(network: PreTrainedModel) -> int:
    """Return the position of a document's first token: that behind the padding id, or 0."""
    for name, module in network.named_modules():
        if name.endswith("position_embeddings") and hasattr(module, "padding_idx"):
            return 0 if module.padding_idx is None else module.padding_idx + 1
    return 0


def find_layout(module: str, num_rows: int, head_size: int) -> MatrixLayout | None:
    """Return how the weight of a module is taken apart, as the names of transformers tell; None for one.

    Args:
        module: its dotted name.
        num_rows: of the weight.
        head_size: rows of one attention head.
    """
    name = module.rpartition(".")[2]
    if name in _QUERIES_KEYS_VALUES:  # all of q, all of k, all of v
        return MatrixLayout((3, num_rows // 3 // head_size, head_size), apart=(0,), heads=1)
    if name in _GATED:
        return MatrixLayout((2, num_rows // 2), apart=(0,))
    if name in _OF_HEADS and num_rows % head_size == 0:
        return MatrixLayout((num_rows // head_size, head_size), heads=0)
    return None


def list_fp32_buffers(network: PreTrainedModel) -> list[tuple[nn.Module, str, Tensor]]:
    """Return module, name and a copy of every buffer of floating-point numbers."""
    return [
        (module, name, buffer.clone())
        for module in network.modules()
        for name, buffer in module.named_buffers(recurse=False)
        if buffer.is_floating_point()
    ]
