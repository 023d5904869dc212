"""The feed-forward layer by quack, with a stand-in that has its interface and torch's arithmetic."""

import importlib.util
import sys
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from neobert_train.config.model_schema import FeedForwardKernel, ModelConfig, NeoBERTModelConfig
from neobert_train.config.schema import Precision
from neobert_train.errors import InputError
from neobert_train.machine.environment import describe_environment, find_environment_changes
from neobert_train.modeling.blocks import SwiGLU
from neobert_train.models import feed_forward
from neobert_train.models.feed_forward import bind, compute_plainly, load_quack, try_out
from neobert_train.models.neobert import NeoBERTEncoder
from neobert_train.models.neobert_cost import NeoBERTCost
from neobert_train.world import World
from support.configs import compose

CPU = torch.device("cpu")


def mlp_func(
    x, weight1, weight2, activation, bias1=None, bias2=None, fuse_grad_accum=False, tuned=True,
    recompute=False, concat_layout=False,
):  # fmt: skip
    """As quack 0.6.5 says of itself: rows of the gate and its value in turn, or one after the other."""
    assert activation == "swiglu"
    assert not any((tuned, recompute, fuse_grad_accum, bias1, bias2))
    before = x @ weight1.T
    gate, value = (
        before.chunk(2, dim=-1) if concat_layout else (before[..., ::2], before[..., 1::2])
    )
    return (F.silu(gate) * value) @ weight2.T


def test_it_gives_the_numbers_of_the_layer():
    torch.manual_seed(0)
    layer, x = SwiGLU(32, 48), torch.randn(20, 32)
    expected = layer(x)
    weights = layer.w12.weight, layer.w3.weight
    assert torch.allclose(compute_plainly(x, *weights), expected, atol=1e-6)
    layer.kernel = bind(SimpleNamespace(mlp_func=mlp_func))
    assert torch.allclose(layer(x), expected, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_kernel_is_believed_unless_it_gives_other_numbers(dtype):
    try_out(bind(SimpleNamespace(mlp_func=mlp_func)), CPU, dtype)

    def swapped(x, gate_and_value, output):
        return compute_plainly(x, gate_and_value.roll(len(gate_and_value) // 2, 0), output)

    def forward_only(x, gate_and_value, output):
        return compute_plainly(x.detach(), gate_and_value, output) + 0 * x.sum()

    for wrong in (swapped, forward_only):
        with pytest.raises(ValueError, match="differ from those of torch by"):
            try_out(wrong, CPU, dtype)


def test_where_it_cannot_run_the_error_says_why_and_what_to_write():
    with pytest.raises(InputError, match=r"runs on CUDA devices only, and this is cpu.*=torch"):
        load_quack(CPU, torch.bfloat16)
    with pytest.raises(InputError, match=r"computes in bf16 and fp16 only, and this is float32"):
        load_quack(torch.device("cuda"), torch.float32)


def test_a_missing_package_and_a_broken_one_are_named(monkeypatch):
    monkeypatch.setattr(feed_forward, "find_device_obstacle", lambda *_: None)
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(InputError, match=r'it is not installed \(pip install "quack-kernels\[cu13'):
        load_quack(torch.device("cuda", 1), torch.bfloat16)
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: True)
    monkeypatch.setitem(sys.modules, "quack", None)
    with pytest.raises(InputError, match=r"does not work here \(ModuleNotFoundError: .*=torch"):
        load_quack(torch.device("cuda", 2), torch.bfloat16)


def test_a_run_takes_it_where_it_is_asked_for(monkeypatch, tokenizer):
    kernel = bind(SimpleNamespace(mlp_func=mlp_func))
    monkeypatch.setattr("neobert_train.models.neobert.load_quack", lambda *_: kernel)
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    for wanted in FeedForwardKernel:
        config = NeoBERTModelConfig(**shape, intermediate_size=48, feed_forward=wanted)
        encoder = NeoBERTEncoder.build(config, tokenizer)
        encoder.settle_kernels(config, CPU, torch.float32)
        layers = [m for m in encoder.network.modules() if isinstance(m, SwiGLU)]
        taken = [layer.kernel for layer in layers]
        assert taken == [kernel if wanted is FeedForwardKernel.quack else None] * 2
    # What evaluates a run takes what the machine has.
    encoder.settle_kernels(ModelConfig(), CPU, torch.float32)
    assert [layer.kernel for layer in layers] == [None] * 2


def test_another_kernel_is_another_environment_and_that_of_earlier_versions_was_torch():
    now = describe_environment(World(), "sdpa", "quack", Precision.bf16, {})
    assert find_environment_changes({**now, "feed_forward": "torch"}, now) == [
        "feed_forward: torch -> quack"
    ]
    before = {key: value for key, value in now.items() if key != "feed_forward"}
    assert find_environment_changes(before, {**now, "feed_forward": "torch"}) == []


def test_what_it_cannot_do_is_refused_before_any_work():
    from neobert_train.config.checks import find_problems

    words = ["+experiment=smoke", "model.feed_forward=quack", "trainer.precision=bf16"]
    assert find_problems(compose("train", *words), 1) == []
    (problem,) = find_problems(compose("train", *words, "deepspeed=zero3"), 1)
    assert "write model.feed_forward=torch or deepspeed=zero1" in problem
    (problem,) = find_problems(compose("train", *words, "trainer.precision=fp32"), 1)
    assert "computes in bf16: write" in problem
    narrow = ["model.hidden_size=36", "model.num_attention_heads=2"]
    (problem,) = find_problems(compose("train", *words, *narrow), 1)
    assert "not a multiple of 8" in problem


def test_the_plan_knows_what_it_does_not_keep():
    kept = {
        wanted: sum(
            NeoBERTCost(NeoBERTModelConfig(feed_forward=wanted), 30522)
            .list_block_tensors(bf16=True, compiled=True)
            .values()
        )
        for wanted in FeedForwardKernel
    }
    saved = kept[FeedForwardKernel.torch] - kept[FeedForwardKernel.quack]
    assert saved == 2 * 2048
    assert saved / kept[FeedForwardKernel.torch] == pytest.approx(0.148, abs=0.001)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_quack_gives_the_numbers_of_torch_on_a_gpu():
    pytest.importorskip("quack")
    device = torch.device("cuda", 0)
    kernel = load_quack(device, torch.bfloat16)
    try_out(torch.compile(kernel, dynamic=False), device, torch.bfloat16)  # as blocks call it
