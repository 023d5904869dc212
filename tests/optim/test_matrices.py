"""Weights that hold several matrices are taken apart into those, and put together again."""

import pytest
import torch

from neobert_train.config.model_schema import NeoBERTModelConfig
from neobert_train.errors import InputError
from neobert_train.modeling.blocks import rotary_factors
from neobert_train.models.neobert import NeoBERTEncoder
from neobert_train.optim.matrices import MatrixLayout

LAYOUTS = {
    "one": MatrixLayout((24,)),
    "halves": MatrixLayout((2, 12), apart=(0,)),
    "q, k, v": MatrixLayout((3, 4, 2), apart=(0,), heads=1),
    "heads of q, k, v": MatrixLayout((4, 3, 2), apart=(1,), heads=0),
}


@pytest.fixture(scope="module")
def encoder(tokenizer):
    shape = NeoBERTModelConfig(hidden_size=24, num_hidden_layers=1, num_attention_heads=4)
    return NeoBERTEncoder.build(shape, tokenizer)


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("heads_per_matrix", [None, 1, 2, 4])
def test_what_is_taken_apart_is_put_together_again(name, heads_per_matrix):
    layout = LAYOUTS[name].group_heads(heads_per_matrix)
    weight = torch.arange(24 * 5.0).view(24, 5)
    matrices = layout.take_apart(weight)
    assert matrices.shape == (layout.num_matrices, 24 // layout.num_matrices, 5)
    assert layout.put_together(matrices).equal(weight)


@pytest.mark.parametrize("heads_per_matrix", [4, 2])
def test_queries_keys_and_values_of_neobert_are_matrices_of_their_own(encoder, heads_per_matrix):
    block = encoder.network.model.transformer_encoder[0]
    layout = encoder.list_layouts()["model.transformer_encoder.0.qkv.weight"]
    matrices = layout.group_heads(heads_per_matrix).take_apart(block.qkv.weight)
    x = torch.randn(7, 24)
    turns = rotary_factors(torch.zeros(7, dtype=torch.int32), 6)  # none at position 0
    parts = block.turn(block.qkv(x), turns)
    expected = [
        part[:, first : first + heads_per_matrix].flatten(-2)
        for first in range(0, 4, heads_per_matrix)
        for part in parts
    ]
    for matrix, outputs in zip(matrices, expected, strict=True):
        torch.testing.assert_close(x @ matrix.T, outputs)


def test_gate_and_value_of_neobert_are_matrices_of_their_own(encoder):
    ffn = encoder.network.model.transformer_encoder[0].ffn
    layout = encoder.list_layouts()["model.transformer_encoder.0.ffn.w12.weight"]
    x = torch.randn(7, 24)
    gate, value = (x @ matrix.T for matrix in layout.take_apart(ffn.w12.weight))
    hidden = torch.nn.functional.silu(gate) * value
    torch.testing.assert_close(ffn.w3(hidden), ffn(x))


def test_heads_that_do_not_divide_evenly_are_told():
    with pytest.raises(InputError, match="heads_per_matrix=3 does not divide the model's 4 heads"):
        LAYOUTS["q, k, v"].group_heads(3)
