"""The loss's kernel in Triton's interpreter, against float64; on a GPU as it is."""

import json
import os
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from neobert_train.modeling import cross_entropy
from neobert_train.modeling.cross_entropy import Steps, Sums, add_chunks, find_steps, try_out_steps

pytest.importorskip("triton")

# What stands in the padding of scores may overflow.
pytestmark = pytest.mark.filterwarnings("ignore:.* encountered in:RuntimeWarning")

# A process of its own, since this one interprets what the others compile.
COMPILE = """
import json, triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from neobert_train.modeling.fused_cross_entropy import _BLOCK, _differentiate

signature = {
    "scores": "*bf16", "bias": "*bf16", "labels": "*i64", "results": "*fp32", "vocab_size": "i32",
    "width": "i32", "WITH_GRADIENTS": "constexpr", "BLOCK": "constexpr",
}
aligned = {(place,): [["tt.divisibility", 16]] for place in (0, 1, 5)}
texts = []
for generation in (80, 90, 100):
    source = ASTSource(
        _differentiate, signature, {"WITH_GRADIENTS": True, "BLOCK": _BLOCK}, attrs=aligned
    )
    target = GPUTarget("cuda", generation, 32)
    texts.append(triton.compile(source, target=target, options={"num_warps": 8}).asm["ptx"])
print(json.dumps(texts))
"""


@pytest.fixture
def steps(monkeypatch):
    """The fused steps, with products that a CPU has."""
    from neobert_train.modeling.fused_cross_entropy import FusedSteps

    monkeypatch.setattr(FusedSteps, "add_product", Steps.add_product)
    return FusedSteps()


def make(rows, vocab_size, dtype):
    generator = torch.Generator().manual_seed(rows)
    hidden, weight, bias = (
        torch.randn(*shape, generator=generator).to(dtype)
        for shape in ((rows, 16), (vocab_size, 16), (vocab_size,))
    )
    labels = torch.randint(0, vocab_size, (rows,), generator=generator)
    labels[:2] = (hidden.float() @ weight.float().T + bias.float()).argmax(-1)[:2]
    return hidden, weight, bias, labels


def compute_in_float64(hidden, weight, bias, labels):
    leaves = [x.double().requires_grad_() for x in (hidden, weight, bias)]
    scores = F.linear(*leaves)
    loss = F.cross_entropy(scores, labels, reduction="sum")
    loss.backward()
    return {"loss": loss.detach()} | {
        name: leaf.grad for name, leaf in zip(("hidden", "weight", "bias"), leaves, strict=True)
    }


@pytest.mark.parametrize("vocab_size", [1, 50, 64, 4_095, 4_097, 9_001])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 5e-6), (torch.bfloat16, 1e-2)])
def test_loss_and_gradients_are_those_of_float64_whatever_the_vocabulary(
    steps, monkeypatch, vocab_size, dtype, tolerance
):
    monkeypatch.setattr(cross_entropy, "CHUNK_ROWS", 3)
    arguments = make(4, vocab_size, dtype)
    sums = Sums(*arguments[:3], with_gradients=True)
    add_chunks(steps, sums, *arguments)
    for name, right in compute_in_float64(*arguments).items():
        found = getattr(sums, name).double()
        assert (found - right).norm() <= tolerance * right.norm() + 1e-6, name


@pytest.mark.parametrize("can_add", [True, False])
def test_products_are_added_in_float32_whatever_torch_can_add(monkeypatch, can_add):
    from neobert_train.modeling import fused_cross_entropy

    def multiply(a, b, out_dtype):
        return a.to(out_dtype) @ b.to(out_dtype)

    def add(total, a, b, out_dtype, out):
        if not can_add:
            raise RuntimeError("self and mat2 must have the same dtype")
        return out.copy_(total + multiply(a, b, out_dtype))

    monkeypatch.setattr(torch, "mm", multiply)  # a CPU has neither
    monkeypatch.setattr(torch, "addmm", add)
    fused_cross_entropy._can_add.cache_clear()
    total, matrix = torch.ones(3, 3), torch.full((3, 3), 0.1).bfloat16()
    fused_cross_entropy.FusedSteps().add_product(total, matrix.T, matrix)
    fused_cross_entropy._can_add.cache_clear()
    assert total.equal(1 + matrix.T.float() @ matrix.float())


def test_right_predictions_are_counted_and_nothing_else_without_gradients(steps):
    hidden, weight, bias, _ = make(6, 50, torch.float32)
    ranked = F.linear(hidden, weight, bias).argsort(-1, descending=True)
    labels = torch.cat((ranked[:4, 0], ranked[4:, 1]))
    sums = Sums(hidden, weight, bias, with_gradients=False)
    add_chunks(steps, sums, hidden, weight, bias, labels)
    assert sums.num_correct == 4
    assert sums.loss.item() == pytest.approx(
        F.cross_entropy(F.linear(hidden, weight, bias), labels, reduction="sum").item(), rel=1e-6
    )


@pytest.mark.parametrize("far", [200.0, 1e4])
def test_a_label_with_no_probability_at_all_has_a_finite_loss(steps, far):
    hidden, bias = torch.tensor([[1.0]]), torch.tensor([0.0, 0.0, 1.0])
    weight = torch.tensor([[far], [0.0], [far - 2.0]])
    sums = Sums(hidden, weight, bias, with_gradients=True)
    add_chunks(steps, sums, hidden, weight, bias, torch.tensor([1]))
    assert sums.loss.item() == pytest.approx(far + torch.tensor(1 + 2.718281828**-1).log().item())
    assert sums.num_correct == 0
    assert sums.bias[1].item() == -1.0


def test_what_is_no_number_shows_in_the_loss(steps):
    hidden, weight, bias, labels = make(2, 50, torch.float32)
    weight[7, 0] = torch.nan
    sums = Sums(hidden, weight, bias, with_gradients=True)
    add_chunks(steps, sums, hidden, weight, bias, labels)
    assert sums.loss.isnan()


def test_rows_of_scores_begin_where_matrix_products_load_fast(steps):
    hidden, weight, bias, _ = make(4, 50, torch.bfloat16)
    scores = steps.score(hidden, weight, bias)
    assert scores.shape == (4, 50)
    assert scores.stride() == (64, 1)


class OperationCounter(TorchDispatchMode):
    """Counts operations that compute something."""

    count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += not (function.is_view or "empty" in str(function))
        return function(*args, **(kwargs or {}))


def test_few_operations_surround_the_products_of_a_chunk(steps, monkeypatch):
    """The plain steps take some twenty for each 512 rows."""
    monkeypatch.setattr(cross_entropy, "CHUNK_ROWS", 4)
    # The interpreter takes operations of its own to launch the kernel.
    kernel = {(4,): lambda *args, **settings: None}
    monkeypatch.setattr(sys.modules[type(steps).__module__], "_differentiate", kernel)
    counts = []
    for num_rows in (8, 16):
        arguments = make(num_rows, 50, torch.bfloat16)
        sums = Sums(*arguments[:3], with_gradients=True)
        with OperationCounter() as counter:
            add_chunks(steps, sums, *arguments)
        counts.append(counter.count)
    assert (counts[1] - counts[0]) / 2 <= 12, "with the three products"


def test_it_compiles_for_ampere_hopper_and_blackwell_with_loads_of_16_bytes(tmp_path):
    environment = os.environ | {"TRITON_CACHE_DIR": str(tmp_path), "TRITON_INTERPRET": "0"}
    done = subprocess.run(
        [sys.executable, "-c", COMPILE],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    for text in json.loads(done.stdout.splitlines()[-1]):
        assert "ld.global.v4.b32" in text
        assert "st.global.v4.b32" in text


@pytest.mark.parametrize(
    # Of many rows in bf16 the rounding of large scores would add up to more than is allowed.
    ("dtype", "rows"), [(torch.float32, 40), (torch.bfloat16, 1000), (torch.float16, 40)]
)  # fmt: skip
def test_steps_are_believed_unless_they_give_other_numbers(steps, monkeypatch, dtype, rows):
    cpu = torch.device("cpu")
    monkeypatch.setattr(cross_entropy, "CHUNK_ROWS", rows)
    try_out_steps(steps, cpu, dtype)
    monkeypatch.setattr(cross_entropy, "CHUNK_ROWS", 40)
    monkeypatch.setattr(
        type(steps), "add_product", lambda self, total, a, b: total.add_(a @ b, alpha=1.1)
    )
    with pytest.raises(ValueError, match=r"its weight differs by 0\.(1|09)"):
        try_out_steps(steps, cpu, dtype)
    assert type(find_steps(cpu, dtype)) is Steps


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_kernel_is_used_on_a_gpu(dtype):
    assert type(find_steps(torch.device("cuda", 0), dtype)) is not Steps
