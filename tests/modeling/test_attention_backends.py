"""Attention within packed documents: the numbers of every backend, and which one is chosen."""

import math
import sys
import types

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from neobert_train.modeling import attention
from neobert_train.modeling.attention import (
    BACKENDS,
    attend,
    choose_backend,
    find_flash_attention,
    find_obstacle,
    find_torch_varlen,
    try_out,
)
from neobert_train.modeling.configuration_neobert import NeoBERTConfig
from neobert_train.modeling.cpu_attention import plan_documents
from neobert_train.modeling.documents import Documents
from neobert_train.modeling.modeling_neobert import NeoBERT

CPU = torch.device("cpu")
FORCED = ("flash_attn", "torch_varlen", "xformers")


def bounds_of(lengths: list[int], device: str = "cpu") -> torch.Tensor:
    return torch.tensor([0, *lengths], device=device).cumsum(0).int()


def documents_of(lengths: list[int], device: str = "cpu") -> Documents:
    return Documents(bounds_of(lengths, device), max(lengths))


def random_qkv(num_tokens: int, heads: int = 3, size: int = 8, dtype=torch.float32, device="cpu"):
    generator = torch.Generator().manual_seed(num_tokens)
    return [
        (2 * torch.randn(num_tokens, heads, size, generator=generator)).to(device, dtype)
        for _ in range(3)
    ]


def explicit_attention(q, k, v, lengths: list[int]) -> torch.Tensor:
    """float64, document by document and head by head: softmax(q k' / sqrt(d)) v."""
    parts, start = [], 0
    for length in lengths:
        rows = slice(start, start + length)
        heads = []
        for head in range(q.shape[1]):
            scores = q[rows, head] @ k[rows, head].T / math.sqrt(q.shape[-1])
            powers = torch.exp(scores - scores.max(-1, keepdim=True).values) if length else scores
            heads.append(powers / powers.sum(-1, keepdim=True) @ v[rows, head])
        parts.append(torch.stack(heads, dim=1))
        start += length
    return torch.cat(parts)


@settings(deadline=None, max_examples=40)
@given(lengths=st.lists(st.integers(0, 20), min_size=1, max_size=6).filter(any))
def test_sdpa_equals_an_explicit_softmax_per_document_with_gradients(lengths):
    ours = [x.requires_grad_() for x in random_qkv(sum(lengths))]
    exact = [x.detach().double().requires_grad_() for x in ours]
    output = attend(*ours, documents_of(lengths), "sdpa")
    reference = explicit_attention(*exact, lengths)
    assert (output.double() - reference).abs().max() < 1e-5
    output.square().sum().backward()
    reference.square().sum().backward()
    for mine, theirs in zip(ours, exact, strict=True):
        scale = theirs.grad.abs().max().clamp_min(1.0)
        assert (mine.grad.double() - theirs.grad).abs().max() < 2e-5 * scale


# Around every length at which the CPU changes its way of computing, and documents alike and unlike.
PACKED = (
    [1],
    [1, 5, 0, 16, 17, 33, 127, 128, 129],
    [1] * 40 + [3] * 20,
    [129, 255, 256, 257],
    [600, 1024, 1025, 2],
    [4096],
)


@pytest.mark.parametrize("lengths", PACKED, ids=str)
@pytest.mark.parametrize("heads", [1, 2])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-6), (torch.bfloat16, 0.015)])
def test_packed_documents_on_a_cpu_agree_with_float64_forward_and_backward(
    lengths, heads, dtype, tolerance
):
    ours = [x.requires_grad_() for x in random_qkv(sum(lengths), heads, 64, dtype)]
    exact = [x.detach().double().requires_grad_() for x in ours]
    output = attend(*ours, documents_of(lengths), "sdpa")
    reference = explicit_attention(*exact, lengths)
    weights = torch.randn(output.shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    (output * weights).sum().backward()
    (reference * weights.double()).sum().backward()
    pairs = [(output, reference), *((a.grad, b.grad) for a, b in zip(ours, exact, strict=True))]
    for mine, theirs in pairs:
        assert (mine.double() - theirs).norm() < tolerance * theirs.norm() + 1e-9


@settings(deadline=None, max_examples=100)
@given(
    lengths=st.lists(st.integers(0, 300), min_size=1, max_size=30),
    longest=st.sampled_from([0, 128, 200, 1000]),
)
def test_a_plan_covers_every_token_once_with_little_padding(lengths, longest):
    bounds = bounds_of(lengths)
    plan = plan_documents(bounds.tolist(), longest)
    tokens = torch.arange(sum(lengths))[:, None, None].float()
    found = torch.zeros_like(tokens) - 1
    slots = 0
    for group in plan.groups:
        stacked = group.gather(tokens)
        assert stacked.shape == (group.num_documents, group.length, 1)
        slots += stacked.numel()
        group.scatter(stacked, found)
    for document in plan.long:
        assert document.stop - document.start > longest
        found[document] = tokens[document]
        slots += document.stop - document.start
    assert found.equal(tokens)
    assert slots <= sum(-(-length // 16) * 16 for length in lengths)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.filterwarnings("ignore::UserWarning")  # as errors, they would be obstacles
@pytest.mark.parametrize("lengths", [[1, 64, 200, 0, 7, 333], [1], [128] * 4, [512, 30], [4096, 1]])
@pytest.mark.parametrize("name", BACKENDS)
def test_every_backend_on_a_gpu_agrees_with_float64_forward_and_backward(name, lengths):
    device, dtype = torch.device("cuda"), torch.bfloat16
    obstacle = find_obstacle(name, device, dtype)
    if obstacle is not None:
        pytest.skip(f"{name}: {obstacle}")
    ours = [x.requires_grad_() for x in random_qkv(sum(lengths), 4, 64, dtype, "cuda")]
    exact = [x.detach().double().requires_grad_() for x in ours]
    output = attend(*ours, documents_of(lengths, "cuda"), name)
    reference = explicit_attention(*exact, lengths)
    weights = torch.randn(output.shape, device="cuda", dtype=dtype)
    (output * weights).sum().backward()
    (reference * weights.double()).sum().backward()
    pairs = [(output, reference), *((a.grad, b.grad) for a, b in zip(ours, exact, strict=True))]
    # Of a single token the gradients of query and key are zero, which kernels compute as a difference.
    largest = max(theirs.norm() for _, theirs in pairs)
    for mine, theirs in pairs:
        assert mine.isfinite().all()
        assert (mine.double() - theirs).norm() < 0.02 * max(theirs.norm(), 0.05 * largest)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.filterwarnings("ignore::UserWarning")  # as errors, they would be obstacles
@pytest.mark.parametrize("name", BACKENDS)
def test_every_backend_on_a_gpu_trains_a_packed_batch_with_a_tail_to_finite_gradients(name):
    device, dtype = torch.device("cuda"), torch.bfloat16
    obstacle = find_obstacle(name, device, dtype)
    if obstacle is not None:
        pytest.skip(f"{name}: {obstacle}")
    torch.manual_seed(0)
    config = NeoBERTConfig(hidden_size=128, num_hidden_layers=2, num_attention_heads=2)
    model = NeoBERT(config).to(device, dtype)
    ids = torch.randint(5, 1000, (256,), device=device)
    outputs = []
    for backend in (name, "sdpa"):
        model.attention_backend = backend
        model.zero_grad()
        hidden = model(ids, cu_seqlens=bounds_of([100, 28], "cuda"), max_seqlen=128)
        hidden.last_hidden_state[:128].square().sum().backward()
        assert all(p.grad.isfinite().all() for p in model.parameters())
        outputs.append(hidden.last_hidden_state[:128].double())
    assert (outputs[0] - outputs[1]).norm() / outputs[1].norm() < 0.02


def test_auto_is_the_reference_kernel_on_a_cpu():
    assert choose_backend("auto", CPU, torch.float32) == "sdpa"
    assert choose_backend("auto", CPU, torch.bfloat16) == "sdpa"
    assert choose_backend("sdpa", CPU, torch.float32) == "sdpa"


@pytest.mark.parametrize("name", FORCED)
def test_a_forced_backend_that_needs_a_gpu_is_refused_with_the_reason(name):
    with pytest.raises(ValueError, match=rf"'{name}' cannot run here.*CUDA.*this is cpu"):
        choose_backend(name, CPU, torch.bfloat16)


def test_the_model_refuses_a_forced_backend_at_its_first_call():
    model = NeoBERT(NeoBERTConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2))
    model.attention_backend = "flash_attn"
    with pytest.raises(ValueError, match=r"flash_attn.*CUDA devices only"):
        model(torch.ones(1, 4, dtype=torch.long))


def test_an_unknown_backend_is_answered_with_the_known_ones():
    with pytest.raises(ValueError, match="'flash'") as caught:
        choose_backend("flash", CPU, torch.float32)
    assert all(name in str(caught.value) for name in BACKENDS)


@pytest.mark.parametrize("name", FORCED)
def test_full_precision_is_an_obstacle_for_the_gpu_kernels(name):
    obstacle = find_obstacle(name, torch.device("cuda"), torch.float32)
    assert "bf16 and fp16 only" in obstacle
    assert "float32" in obstacle


@pytest.mark.parametrize("name", FORCED)
def test_an_old_gpu_is_an_obstacle(name, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (7, 5))
    assert "Ampere" in find_obstacle(name, torch.device("cuda"), torch.bfloat16)


MODULES = {
    "flash_attn_interface": "flash_attn",
    "flash_attn.cute": "flash_attn",
    "flash_attn": "flash_attn",
    "torch.nn.attention.varlen": "torch_varlen",
    "xformers.ops": "xformers",
}


@pytest.fixture
def install(monkeypatch):
    """Stand-ins for the modules named, on a GPU of a generation; the others do not import.

    Those in `broken` import, and fail when they are tried out.
    """

    def install(
        names: tuple[str, ...], major: int = 9, broken: tuple[str, ...] = ()
    ) -> dict[str, types.ModuleType]:
        for function in (choose_backend, find_flash_attention, find_torch_varlen):
            function.cache_clear()
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (major, 0))
        modules = {name: types.ModuleType(name) for name in names}
        for name in MODULES:
            monkeypatch.setitem(sys.modules, name, modules.get(name))

        def try_out(kernel, device, dtype=None):
            # A release of FlashAttention is tried out by itself, other backends as a whole.
            tried = [module.__name__ for module in getattr(kernel, "args", ())]
            tried = tried or [m for m, name in MODULES.items() if BACKENDS[name].function is kernel]
            if {*tried} <= {*broken}:
                raise NotImplementedError("no backward pass")

        monkeypatch.setattr(attention, "try_out", try_out)

        for name in ("flash_attn_interface", "flash_attn.cute", "flash_attn"):
            if name in modules:
                modules[name].flash_attn_varlen_func = lambda *args, **kwargs: kwargs
        # Importing a module inside a package asks for the package first.
        if "flash_attn.cute" in names and "flash_attn" not in names:
            monkeypatch.setitem(sys.modules, "flash_attn", types.ModuleType("flash_attn"))
        return modules

    yield install
    for function in (choose_backend, find_flash_attention, find_torch_varlen):
        function.cache_clear()


@pytest.mark.parametrize("name", FORCED)
def test_a_library_that_does_not_import_is_an_obstacle_and_auto_goes_on(name, install):
    install(())
    device = torch.device("cuda")
    obstacle = find_obstacle(name, device, torch.bfloat16)
    assert all(module in obstacle for module, backend in MODULES.items() if backend == name)
    assert "does not work here" in obstacle
    assert choose_backend("auto", device, torch.bfloat16) == "sdpa"
    with pytest.raises(ValueError, match="does not work here"):
        choose_backend(name, device, torch.bfloat16)


@pytest.mark.parametrize("module", MODULES)
def test_auto_takes_the_first_that_can_run(module, install):
    later = list(MODULES)[list(MODULES).index(module) :]
    install(tuple(later))
    assert choose_backend("auto", torch.device("cuda"), torch.bfloat16) == MODULES[module]


@pytest.mark.parametrize(
    ("major", "installed", "taken"),
    [
        (8, ("flash_attn_interface", "flash_attn.cute", "flash_attn"), "flash_attn"),
        (9, ("flash_attn_interface", "flash_attn.cute", "flash_attn"), "flash_attn_interface"),
        (9, ("flash_attn.cute",), "flash_attn.cute"),
        (9, ("flash_attn",), "flash_attn"),
        (10, ("flash_attn_interface", "flash_attn.cute", "flash_attn"), "flash_attn.cute"),
        (10, ("flash_attn",), "flash_attn"),
    ],
)
def test_the_release_of_flash_attention_that_suits_the_gpu(major, installed, taken, install):
    modules = install(installed, major)
    device = torch.device("cuda")
    assert find_flash_attention(device) is modules[taken]
    assert find_obstacle("flash_attn", device, torch.bfloat16) is None


def test_a_release_that_cannot_go_back_is_passed_over(install):
    modules = install(("flash_attn.cute", "flash_attn"), major=9, broken=("flash_attn.cute",))
    device = torch.device("cuda")
    assert find_flash_attention(device) is modules["flash_attn"]
    assert choose_backend("auto", device, torch.bfloat16) == "flash_attn"


@pytest.mark.parametrize("name", ["torch_varlen", "xformers"])
def test_a_package_that_imports_without_its_kernels_is_not_believed(name, install):
    (module,) = (module for module, backend in MODULES.items() if backend == name)
    install((module,), broken=(module,))
    device = torch.device("cuda")
    obstacle = find_obstacle(name, device, torch.bfloat16)
    assert obstacle == "it does not work here (NotImplementedError: no backward pass)"
    assert choose_backend("auto", device, torch.bfloat16) == "sdpa"


def test_trying_a_kernel_out_takes_its_forward_and_backward_numbers_into_account():
    def attend_rightly(q, k, v, documents):
        return explicit_attention(q, k, v, documents.cu_seqlens.diff().tolist())

    class Stubborn(torch.autograd.Function):
        @staticmethod
        def forward(ctx, q, k, v):
            return explicit_attention(q, k, v, [9, 15])

        @staticmethod
        def backward(ctx, grad):
            raise NotImplementedError("variable length sequences")

    for dtype in (torch.float32, torch.bfloat16):
        with torch.inference_mode():
            try_out(attend_rightly, CPU, dtype)
    with pytest.raises(NotImplementedError):
        try_out(lambda q, k, v, *_: Stubborn.apply(q, k, v), CPU)
    with pytest.raises(ValueError, match="differ from those of sdpa"):  # across documents
        try_out(lambda q, k, v, *_: explicit_attention(q, k, v, [24]), CPU)


def test_the_empty_package_that_release_4_leaves_is_not_release_2(install):
    install(("flash_attn.cute",), major=8)
    obstacle = find_obstacle("flash_attn", torch.device("cuda"), torch.bfloat16)
    assert "has no flash_attn_varlen_func" in obstacle


@pytest.mark.parametrize(
    ("module", "implementation"),
    [("flash_attn_interface", "FA3"), ("flash_attn.cute", None), ("flash_attn", None)],
)
def test_torch_takes_over_release_3_and_not_release_4_which_it_cannot_call(
    module, implementation, install, monkeypatch
):
    activated = [None]
    monkeypatch.setattr(
        torch.nn.attention, "activate_flash_attention_impl", activated.append, raising=False
    )
    install((module, "torch.nn.attention.varlen"))
    assert find_obstacle("torch_varlen", torch.device("cuda"), torch.bfloat16) is None
    assert activated[-1] == implementation
