"""The memory that `plan` foresees: its tensors against those that autograd keeps.

There need be no GPU. Autograd keeps the same tensors on every device but for two operations, whose
CUDA kernels are stood in for by functions that keep what these do (derivatives.yaml and
nn/attention/varlen.py of torch): the norm its input and scale, attention its inputs, output and
log-sums.
"""

import re
import shutil
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from neobert_train.batch import Batch
from neobert_train.config.command_schema import PlanConfig
from neobert_train.config.model_schema import NeoBERTModelConfig
from neobert_train.modeling import attention, cross_entropy
from neobert_train.modeling.configuration_neobert import NeoBERTConfig
from neobert_train.modeling.heads import NeoBERTForMaskedLM
from neobert_train.models import neobert_cost
from neobert_train.models.compiled_blocks import CompiledBlocks
from neobert_train.models.cost import build_cost
from neobert_train.models.memory import estimate_memory, find_largest_micro_batch
from neobert_train.models.neobert import NeoBERTEncoder
from neobert_train.models.neobert_cost import NeoBERTCost
from neobert_train.objectives.masked_lm import MaskedLM
from support import configs
from support.programs import run_command

VOCAB_SIZE = 1000


class FusedNorm(torch.autograd.Function):
    """Keeps what torch's kernel for GPUs keeps."""

    @staticmethod
    def forward(ctx, x, weight, eps):
        scale = (x.float().square().mean(-1, keepdim=True) + eps).rsqrt()
        ctx.save_for_backward(x, weight, scale)
        return (x * scale).to(x.dtype) * weight


class PackedAttention(torch.autograd.Function):
    """Keeps what the packed kernels keep; of what it computes nothing is looked at."""

    @staticmethod
    def forward(ctx, q, k, v):
        output = torch.empty(q.shape, dtype=q.dtype)
        ctx.save_for_backward(q, k, v, output, torch.empty(q.shape[1], len(q)))
        return output


def attend_as_on_a_gpu(q, k, v, documents):
    if q.dtype is torch.bfloat16:
        return PackedAttention.apply(q, k, v)
    lengths = documents.cu_seqlens.diff().tolist()
    parts = zip(*(x.split(lengths) for x in (q, k, v)), lengths, strict=True)
    return torch.cat([PackedAttention.apply(*part) for *part, n in parts if n])


def apply_fused_norm(norm: nn.RMSNorm, x: Tensor) -> Tensor:
    return FusedNorm.apply(x, norm.weight, norm.eps)


@pytest.fixture
def packed_kernel(monkeypatch):
    """Attention keeps what it would keep on a GPU."""
    backend = attention.Backend(attend_as_on_a_gpu, None, needs_cuda=False)
    monkeypatch.setitem(attention.BACKENDS, "sdpa", backend)


@pytest.fixture
def gpu_kernels(packed_kernel, monkeypatch):
    """What the model runs keeps what it would keep on a GPU."""
    monkeypatch.setattr(nn.RMSNorm, "forward", apply_fused_norm)


def measure_kept_bytes(encoder: NeoBERTEncoder, batch: Batch) -> int:
    """Bytes of all storages that a forward pass keeps, parameters and the batch not counted."""
    given = [
        *encoder.network.parameters(),
        *(x for x in vars(batch).values() if isinstance(x, Tensor)),
    ]
    known = {tensor.untyped_storage().data_ptr() for tensor in given}
    kept: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        kept.setdefault(
            tensor.untyped_storage().data_ptr(), tensor
        )  # held, so that none comes twice
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        MaskedLM(encoder).compute(batch)
    return sum(x.untyped_storage().nbytes() for place, x in kept.items() if place not in known)


def build_batch(tokens: int, masked: int) -> Batch:
    lengths = [100, 60, 7, 1]
    lengths *= tokens // sum(lengths)
    bounds = torch.tensor([0, *lengths], dtype=torch.int32).cumsum(0, dtype=torch.int32)
    ids = torch.randint(0, VOCAB_SIZE, (tokens,))
    positions = torch.zeros(tokens, dtype=torch.int32)
    return Batch(ids, positions, bounds, 100, torch.arange(masked), ids[:masked], 0, {})


@pytest.mark.parametrize("bf16", [True, False], ids=["bf16", "fp32"])
@pytest.mark.parametrize(
    ("tokens", "masked", "layers"), [(512, 102, 4), (2048, 410, 4), (4096, 2600, 4), (1024, 205, 8)]
)
def test_the_tensors_that_a_micro_batch_keeps(gpu_kernels, tokens, masked, layers, bf16):
    shape = {"num_hidden_layers": layers, "hidden_size": 256, "intermediate_size": 1024}
    shape["num_attention_heads"] = 4
    model = NeoBERTForMaskedLM(NeoBERTConfig(**shape, vocab_size=VOCAB_SIZE))
    encoder = NeoBERTEncoder(model.bfloat16() if bf16 else model)
    measured = measure_kept_bytes(encoder, build_batch(tokens, masked))
    expected = NeoBERTCost(NeoBERTModelConfig(**shape), VOCAB_SIZE).compute_kept_bytes(
        tokens, masked, bf16, False
    )
    assert measured == expected
    estimate = NeoBERTCost(NeoBERTModelConfig(**shape), VOCAB_SIZE).estimate_activation_bytes(
        tokens, masked / tokens, bf16, False
    )
    assert expected < estimate < 1.4 * expected


@pytest.mark.skipif(not (shutil.which("g++") or shutil.which("clang++")), reason="no C++ compiler")
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("is_joined", [True, False], ids=["as on GPUs", "by blocks"])
@pytest.mark.parametrize("bf16", [True, False], ids=["bf16", "fp32"])
def test_the_tensors_that_a_compiled_micro_batch_keeps(packed_kernel, monkeypatch, bf16, is_joined):
    tokens, masked = 1024, 205
    shape = {"num_hidden_layers": 3, "hidden_size": 256, "intermediate_size": 1024}
    shape["num_attention_heads"] = 4
    model = NeoBERTForMaskedLM(NeoBERTConfig(**shape, vocab_size=VOCAB_SIZE))
    assert NeoBERTEncoder(model).compile(torch.device("cpu"))
    if is_joined:
        model.model.run_blocks = CompiledBlocks(model.model.transformer_encoder)
    last_norm = model.model.layer_norm  # which is not compiled
    monkeypatch.setattr(last_norm, "forward", partial(apply_fused_norm, last_norm))
    encoder = NeoBERTEncoder(model.bfloat16() if bf16 else model)
    batch = build_batch(tokens, masked)
    MaskedLM(encoder).compute(batch)
    expected = NeoBERTCost(NeoBERTModelConfig(**shape), VOCAB_SIZE).compute_kept_bytes(
        tokens, masked, bf16, True
    )
    assert measure_kept_bytes(encoder, batch) == expected


@pytest.mark.parametrize("bf16", [True, False], ids=["bf16", "fp32"])
def test_activation_checkpointing_keeps_the_inputs_of_blocks(gpu_kernels, bf16):
    tokens, masked = 1024, 205
    shape = {"num_hidden_layers": 4, "hidden_size": 256, "intermediate_size": 1024}
    shape["num_attention_heads"] = 4
    model = NeoBERTForMaskedLM(NeoBERTConfig(**shape, vocab_size=VOCAB_SIZE)).train()
    NeoBERTEncoder(model).checkpoint_activations()
    encoder = NeoBERTEncoder(model.bfloat16() if bf16 else model)
    batch = build_batch(tokens, masked)
    measured = measure_kept_bytes(encoder, batch)
    costs = [
        NeoBERTCost(NeoBERTModelConfig(**shape, activation_checkpointing=recomputed), VOCAB_SIZE)
        for recomputed in (True, False)
    ]
    kept, kept_without = (cost.compute_kept_bytes(tokens, masked, bf16, False) for cost in costs)
    assert kept == measured
    assert kept < kept_without / 3
    peaks = [cost.estimate_activation_bytes(tokens, masked / tokens, bf16, False) for cost in costs]
    block = tokens * sum(costs[0].list_block_tensors(bf16, False).values())
    assert peaks[0] - kept == pytest.approx(peaks[1] - kept_without + block)


def test_the_plan_knows_the_chunks_of_the_loss():
    assert neobert_cost.LOSS_CHUNK_ROWS == cross_entropy.CHUNK_ROWS
    assert neobert_cost.LOSS_BLOCK_ROWS == cross_entropy.BLOCK_ROWS


def compose(*overrides: str) -> PlanConfig:
    return configs.compose("plan", "+experiment=pretrain_base", *overrides)


@pytest.mark.parametrize("memory_bytes", [10e9, 24e9, 80e9, 141e9])
def test_the_largest_micro_batch_fits_and_the_next_one_does_not(memory_bytes):
    config, room = compose(), 0.95 * memory_bytes
    largest = find_largest_micro_batch(config, 30_522, 1, 8, memory_bytes)
    assert config.batch.global_batch_tokens % (8 * largest) == 0
    assert sum(estimate_memory(config, 30_522, 1, 8, largest)) <= room
    assert sum(estimate_memory(config, 30_522, 1, 8, 2 * largest)) > room
    assert find_largest_micro_batch(config, 30_522, 1, 8, 1e9) is None


def test_more_devices_than_micro_batches_of_what_would_fit_make_them_smaller():
    assert find_largest_micro_batch(compose(), 30_522, 1, 256, 1e15) == 8192


def test_a_buffer_that_sums_gradients_counts_where_activations_take_less():
    sizes = {
        (zero, devices): estimate_memory(compose(), 30_522, zero, devices, 512)[1]
        for zero in range(4)
        for devices in (1, 8)
    }
    parameters = build_cost(compose().model, 30_522).size.parameters
    assert sizes.pop((1, 8)) == sizes.pop((1, 1)) == 4 * parameters > max(sizes.values())
    assert len(set(sizes.values())) == 2  # of compiled blocks, and of those of ZeRO 3


def test_a_masking_rate_that_changes_costs_memory_at_its_highest_and_work_in_the_mean():
    def estimate(*overrides):
        return sum(estimate_memory(compose(*overrides), 30_522, 1, 8, 65_536))

    assert estimate("masking.final_rate=0.4") == estimate("masking.rate=0.4")
    assert estimate("masking.rate=0.4", "masking.final_rate=0.1") == estimate("masking.rate=0.4")
    output = run_command("plan", "+experiment=pretrain_base", "masking.final_rate=0.4")
    assert "30% of them predicted" in output


def test_the_plan_says_which_feed_forward_layers_it_counts():
    output = run_command("plan", "+experiment=pretrain_base", "model.feed_forward=quack")
    assert "model.feed_forward=quack runs on Hopper and Blackwell GPUs only" in output
    rows = re.findall(r"ZeRO (\d): .* ([\d.]+) GB activations \(.*, with (\S+)", output)
    expected = [(str(stage), "44.8", "quack's)") for stage in range(3)]
    assert rows == [*expected, ("3", "59.9", "torch's")]


def test_the_plan_offers_what_fits_where_the_experiment_does_not():
    output = run_command("plan", "+experiment=pretrain_base", "device=a100-40")
    rows = re.findall(r"ZeRO \d.*DOES NOT FIT; the largest that fits: .*tokens=(\d+)", output)
    assert rows == ["32768"] * 4
