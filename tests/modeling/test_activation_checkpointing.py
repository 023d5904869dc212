"""Blocks computed again in the backward pass: the same numbers, from the inputs alone."""

import shutil

import pytest
import torch

from neobert_train.modeling import layouts
from neobert_train.modeling.attention import attend
from neobert_train.modeling.configuration_neobert import NeoBERTConfig
from neobert_train.modeling.heads import NeoBERTForMaskedLM
from neobert_train.models.neobert import NeoBERTEncoder

CPU = torch.device("cpu")
CU_SEQLENS = torch.tensor([0, 5, 6, 40, 64], dtype=torch.int32)
NUM_LAYERS = 3


def build(dtype):
    torch.manual_seed(0)
    config = NeoBERTConfig(
        hidden_size=32, num_hidden_layers=NUM_LAYERS, num_attention_heads=2, intermediate_size=48,
        vocab_size=50,
    )  # fmt: skip
    return NeoBERTForMaskedLM(config).to(dtype).train()


def run(model):
    ids = torch.randint(1, 50, (64,), generator=torch.Generator().manual_seed(1))
    loss = model(ids, cu_seqlens=CU_SEQLENS, max_seqlen=34, labels=ids).loss
    loss.backward()
    return loss.detach(), [parameter.grad for parameter in model.parameters()]


@pytest.fixture
def attend_calls(monkeypatch):
    """Grows by one for every block that is computed."""
    calls = []

    def counted(*arguments):
        calls.append(None)
        return attend(*arguments)

    monkeypatch.setattr(layouts, "attend", counted)
    return calls


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_loss_and_gradients_are_the_same_bit_for_bit(dtype, compiled, attend_calls):
    if compiled and not (shutil.which("g++") or shutil.which("clang++")):
        pytest.skip("no C++ compiler")
    plain, checkpointed = build(dtype), build(dtype)
    NeoBERTEncoder(checkpointed).checkpoint_activations()
    if compiled:
        torch._dynamo.reset()
        assert NeoBERTEncoder(plain).compile(CPU)
        assert NeoBERTEncoder(checkpointed).compile(CPU)
    expected_loss, expected = run(plain)
    assert len(attend_calls) == NUM_LAYERS
    loss, gradients = run(checkpointed)
    assert len(attend_calls) == 3 * NUM_LAYERS, "every block is computed twice"
    assert loss.equal(expected_loss)
    assert all(a.equal(b) for a, b in zip(gradients, expected, strict=True))


def test_an_evaluation_computes_every_block_once(attend_calls):
    model = build(torch.float32)
    NeoBERTEncoder(model).checkpoint_activations()
    run(model.eval())
    assert len(attend_calls) == NUM_LAYERS
