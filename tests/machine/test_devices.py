"""What a device is said to be able to do: number formats and peak rates."""

import itertools
import os
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
import torch
import torch._inductor.config

from neobert_train.config.schema import Precision
from neobert_train.machine import devices
from neobert_train.machine.devices import (
    PeakMeter,
    choose_precision,
    compute_deterministically,
    describe_slow_bf16,
    find_peak_flops,
    has_native_bf16,
)
from neobert_train.modeling.attention import _call_flash_attn
from neobert_train.modeling.cross_entropy import sum_cross_entropy
from neobert_train.training.assembly import settle_precision
from neobert_train.world import World

CPU = torch.device("cpu")


@pytest.fixture
def cpu(monkeypatch):
    """A processor of a given kind, as torch and the environment tell of it."""

    def make(machine="x86_64", onednn=True, avx512_bf16=False, amx=False, allowed=None):
        monkeypatch.setattr("platform.machine", lambda: machine)
        monkeypatch.setattr(
            torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: onednn, raising=False
        )
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512_bf16)
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
        monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
        if allowed:
            monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", allowed)

    return make


@pytest.mark.parametrize(
    ("kind", "native"),
    [
        ({"onednn": False}, False),  # AVX2
        ({}, False),  # AVX-512, where oneDNN emulates bf16 at half the rate of fp32
        ({"avx512_bf16": True}, True),
        ({"amx": True}, True),
        ({"avx512_bf16": True, "allowed": "AVX512_CORE"}, False),
        ({"avx512_bf16": True, "allowed": "avx512_core_vnni"}, False),
        ({"avx512_bf16": True, "allowed": "AVX512_CORE_BF16"}, True),
        ({"avx512_bf16": True, "amx": True, "allowed": "AVX512_CORE_AMX"}, True),
        ({"machine": "aarch64"}, True),
        ({"machine": "aarch64", "onednn": False}, False),
    ],
)
def test_bf16_is_native_where_the_processor_has_instructions_for_it(cpu, kind, native):
    cpu(**kind)
    assert has_native_bf16(CPU) is native
    chosen = Precision.bf16 if native else Precision.fp32
    assert choose_precision(Precision.auto, CPU) is chosen
    for wanted in (Precision.bf16, Precision.fp32):
        assert choose_precision(wanted, CPU) is wanted


@pytest.mark.parametrize("allowed", ["AVX2", "AVX512_CORE"])
def test_hidden_instructions_are_not_there(allowed):
    script = (
        "import torch; from neobert_train.machine.devices import has_native_bf16;"
        "print(has_native_bf16(torch.device('cpu')))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True,
        env={**os.environ, "ONEDNN_MAX_CPU_ISA": allowed},
    )  # fmt: skip
    assert done.stdout == "False\n"


def settle(make_config, wanted, others_without=0):
    """What a process settles on beside others, some of which lack bf16."""
    others = SimpleNamespace(world=World(), sum=lambda own: [own[0] + others_without])
    config = make_config(f"trainer.precision={wanted}")
    return settle_precision(config, others, CPU).trainer.precision


def test_all_processes_train_in_the_precision_that_all_have(cpu, make_config, caplog):
    cpu(avx512_bf16=True)
    assert settle(make_config, "auto") is Precision.bf16
    assert settle(make_config, "auto", others_without=1) is Precision.fp32
    assert settle(make_config, "fp32") is Precision.fp32
    assert caplog.text == ""


def test_bf16_without_instructions_warns_of_its_cost(cpu, make_config, caplog, monkeypatch):
    cpu(onednn=False)
    rates = {torch.bfloat16: 7e9, torch.float32: 67e9}
    monkeypatch.setattr(devices, "measure_matmul_flops", rates.get)
    assert settle(make_config, "auto") is Precision.fp32
    assert caplog.text == ""
    assert settle(make_config, "bf16") is Precision.bf16
    assert "run at 7.0 GFLOP/s, 0.1 times as fast as in fp32; write trainer.prec" in caplog.text


def test_the_cost_of_slow_bf16_is_measured(monkeypatch):
    assert "times as fast as in fp32" in describe_slow_bf16(CPU)


@pytest.fixture
def deterministic(monkeypatch):
    """Computing deterministically, as on a GPU, until the test is over."""
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)
    compute_deterministically(torch.device("cpu"))
    assert not torch.are_deterministic_algorithms_enabled(), "a CPU is left as it is"
    with torch._inductor.config.patch(deterministic=False):
        compute_deterministically(torch.device("cuda"))
        yield
    torch.use_deterministic_algorithms(False)
    os.environ.pop("CUBLAS_WORKSPACE_CONFIG")


def test_a_gpu_is_told_to_give_the_same_bits(deterministic):
    assert torch.are_deterministic_algorithms_enabled()
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    assert torch._inductor.config.deterministic
    # The whole step has to have such forms of its operations; the vocabulary's loss in plain ones too.
    torch.utils.deterministic.fill_uninitialized_memory = True
    hidden, weight = (torch.randn(5, 4, requires_grad=True) for _ in range(2))
    sum_cross_entropy(hidden, weight, torch.zeros(5), torch.arange(5))[0].backward()
    assert hidden.grad.isfinite().all()
    assert weight.grad.isfinite().all()


@pytest.mark.parametrize("told", [False, True])
def test_flash_attention_is_told_too(told, request):
    if told:
        request.getfixturevalue("deterministic")
    module = SimpleNamespace(flash_attn_varlen_func=lambda *tensors, **settings: settings)
    documents = SimpleNamespace(cu_seqlens=None, max_seqlen=1)
    settings = _call_flash_attn(module, None, None, None, documents)
    assert settings.get("deterministic", False) is told


def test_the_rate_of_a_cpu_is_measured_in_a_moment():
    begin = time.perf_counter()
    rate = find_peak_flops(CPU, torch.float32)
    assert time.perf_counter() - begin < 5  # 0.4 s where nothing else runs
    assert 1e8 < rate < 1e14


def test_an_unknown_gpu_has_no_peak_and_a_known_one_that_of_its_precision(monkeypatch):
    names = iter(["NVIDIA Abacus", "NVIDIA H100 80GB HBM3", "NVIDIA H100 80GB HBM3"])
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: next(names))
    device = torch.device("cuda", 0)
    assert find_peak_flops(device, torch.bfloat16) is None
    assert find_peak_flops(device, torch.bfloat16) == 989.4e12
    assert find_peak_flops(device, torch.float32) == 66.9e12


def test_the_peak_of_a_cpu_is_the_highest_rate_seen_and_seldom_measured(monkeypatch):
    rates, clock = iter([5e9, 8e9, 2e9]), itertools.count()
    monkeypatch.setattr(devices, "measure_matmul_flops", lambda dtype: next(rates))
    monkeypatch.setattr(devices.time, "perf_counter", lambda: float(next(clock)))
    meter = PeakMeter(CPU, torch.float32)
    assert meter.read() == 5e9  # took one second, so the next comes 200 seconds later
    assert [meter.read() for _ in range(199)] == [5e9] * 199
    assert meter.read() == 8e9
    next(itertools.islice(clock, 300, None))
    assert meter.read() == 8e9
