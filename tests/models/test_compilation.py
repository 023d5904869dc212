"""Compiled blocks: one graph for all of them, and the numbers of the uncompiled model."""

import logging
import os
import shutil
import subprocess
import sys
from functools import partial

import pytest
import torch
from torch._dynamo.utils import counters

from neobert_train.modeling.configuration_neobert import NeoBERTConfig
from neobert_train.modeling.heads import NeoBERTForMaskedLM
from neobert_train.models.compilation import prepare_compiler
from neobert_train.models.compiled_blocks import CompiledBlocks
from neobert_train.models.feed_forward import compute_plainly
from neobert_train.models.neobert import NeoBERTEncoder

CPU = torch.device("cpu")
CU_SEQLENS = torch.tensor([0, 5, 6, 40, 64], dtype=torch.int32)


def build():
    torch.manual_seed(0)
    return NeoBERTForMaskedLM(
        NeoBERTConfig(
            hidden_size=32, num_hidden_layers=12, num_attention_heads=2, intermediate_size=48,
            vocab_size=50,
        )
    )  # fmt: skip


def run(model, seed):
    ids = torch.randint(1, 50, (64,), generator=torch.Generator().manual_seed(seed))
    output = model(ids, cu_seqlens=CU_SEQLENS, max_seqlen=34, labels=ids)
    output.loss.backward()
    gradients = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()
    return output.loss.detach(), gradients


@pytest.mark.skipif(not (shutil.which("g++") or shutil.which("clang++")), reason="no C++ compiler")
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(("is_joined", "num_graphs"), [(False, 2), (True, 3)])
def test_all_blocks_share_few_graphs_without_breaks_and_give_the_same_numbers(
    is_joined, num_graphs
):
    """Blocks are compiled by themselves on a CPU, and from one attention to the next on a GPU."""
    torch._dynamo.reset()
    counters.clear()
    plain, compiled = build(), build()
    assert NeoBERTEncoder(compiled).compile(CPU)
    if is_joined:  # with a kernel for the feed-forward layers too, which is the same for all
        kernel = partial(compute_plainly)
        for block in compiled.model.transformer_encoder:
            block.ffn.kernel = kernel
        compiled.model.run_blocks = CompiledBlocks(compiled.model.transformer_encoder)
    for seed in range(3):
        loss, gradients = run(compiled, seed)
        expected_loss, expected_gradients = run(plain, seed)
        assert torch.allclose(loss, expected_loss, atol=1e-6)
        for gradient, expected in zip(gradients, expected_gradients, strict=True):
            assert torch.allclose(gradient, expected, atol=1e-5)
    assert counters["stats"]["unique_graphs"] == num_graphs
    assert not counters["graph_break"]
    assert not counters["recompiles"]


def test_what_needs_every_block_by_itself_calls_it():
    model = build().model
    ids = torch.randint(1, 50, (64,))
    states = model(ids, cu_seqlens=CU_SEQLENS, output_hidden_states=True).hidden_states

    def refuse(*_):
        raise AssertionError("blocks are run together")

    model.run_blocks = refuse
    again = model(ids, cu_seqlens=CU_SEQLENS, output_hidden_states=True).hidden_states
    assert all(one.equal(other) for one, other in zip(states, again, strict=True))
    model(ids[None], output_attentions=True)
    with pytest.raises(AssertionError, match="together"):
        model(ids, cu_seqlens=CU_SEQLENS)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    model.train()(ids, cu_seqlens=CU_SEQLENS).last_hidden_state.sum().backward()


def test_without_a_compiler_a_warning_says_so_and_nothing_is_compiled(monkeypatch, caplog):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    model = build()
    with caplog.at_level(logging.WARNING):
        assert not NeoBERTEncoder(model).compile(CPU)
    assert "needs a C++ compiler" in caplog.text
    assert "_torchdynamo" not in str(vars(model.model.transformer_encoder[0]))
    run(model, 0)


STEP = """
import torch

from neobert_train.models.neobert import NeoBERTEncoder
from neobert_train.modeling.blocks import rotary_factors
from neobert_train.modeling.configuration_neobert import NeoBERTConfig
from neobert_train.modeling.heads import NeoBERTForMaskedLM

torch.manual_seed(0)
shape = {"num_hidden_layers": 1, "hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4}
model = NeoBERTForMaskedLM(NeoBERTConfig(**shape, vocab_size=100))
assert NeoBERTEncoder(model).compile(torch.device("cpu"))
block = model.model.transformer_encoder[0]
with torch.no_grad():  # the norm, whose sum over a row is what went wrong
    q, _, _ = block.project(torch.ones(37, 64), rotary_factors(torch.arange(37), 16))
print(float(q.sum()))
"""


@pytest.mark.skipif(not (shutil.which("g++") or shutil.which("clang++")), reason="no C++ compiler")
def test_the_keys_of_the_cache_tell_vectors_of_different_widths_apart(monkeypatch):
    from torch._inductor import config, cpu_vec_isa

    keys = []
    for vectors in (cpu_vec_isa.VecAVX2(), cpu_vec_isa.VecAVX512()):
        monkeypatch.setattr(cpu_vec_isa, "pick_vec_isa", lambda vectors=vectors: vectors)
        with config.patch({"cpp.simdlen": None}):
            assert prepare_compiler(CPU)
            keys.append(config.save_config_portable())  # of which the cache makes its keys
    assert keys[0] != keys[1]


@pytest.mark.slow
@pytest.mark.skipif(not (shutil.which("g++") or shutil.which("clang++")), reason="no C++ compiler")
def test_code_that_another_processor_left_in_the_cache_is_not_taken(tmp_path):
    """The second process may use narrower vectors only, as a machine that shares the cache does."""
    losses = []
    for capability in ({}, {"ATEN_CPU_CAPABILITY": "avx2"}):
        environment = {
            **os.environ,
            "TORCHINDUCTOR_CACHE_DIR": str(tmp_path),
            "TORCHINDUCTOR_FX_GRAPH_CACHE": "1",
            **capability,
        }
        done = subprocess.run(
            [sys.executable, "-c", STEP],
            env=environment,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr
        losses.append(float(done.stdout.split()[-1]))
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)
