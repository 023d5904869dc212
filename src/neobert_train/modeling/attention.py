"""Attention within packed documents, by whichever kernel the machine has.

`attend` takes flat tensors and the places where documents begin. Every backend computes the same
function; `find_obstacle` says why one cannot run, `choose_backend` takes the fastest that can.
"""

import contextlib
import importlib
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .cpu_attention import LONGEST_BATCHED, attend_on_cpu
from .documents import Documents

Kernel = Callable[[Tensor, Tensor, Tensor, Documents], Tensor]

HALF_PRECISION = (torch.bfloat16, torch.float16)


def attend(q: Tensor, k: Tensor, v: Tensor, documents: Documents, backend: str) -> Tensor:
    """Return the softmax attention of every document to itself, scaled by 1 / sqrt(head size).

    Args:
        q, k, v: [T, num_heads, head_size].
        documents: where they lie among the T tokens.
        backend: a name in `BACKENDS`, as `choose_backend` gives.

    Returns:
        [T, num_heads, head_size].
    """
    return BACKENDS[backend].function(q, k, v, documents)


def _attend_sdpa(q: Tensor, k: Tensor, v: Tensor, documents: Documents) -> Tensor:
    """Attend without mask or padding, on any device in any dtype: document by document, and on a CPU
    short ones together.
    """
    if q.device.type == "cpu" and q.dtype in LONGEST_BATCHED:
        return attend_on_cpu(q, k, v, documents)
    lengths = documents.derive("lengths", _find_lengths)
    parts = zip(q.split(lengths), k.split(lengths), v.split(lengths), strict=True)
    outputs = [
        F.scaled_dot_product_attention(*(x.transpose(0, 1)[None] for x in part))
        for length, part in zip(lengths, parts, strict=True)
        if length
    ]
    return torch.cat([output[0].transpose(0, 1) for output in outputs] or [v])


def _find_lengths(bounds: list[int]) -> list[int]:
    return [end - begin for begin, end in itertools.pairwise(bounds)]


# Releases of FlashAttention by the generation of GPU (major compute capability), fastest first:
# 4 is `flash_attn.cute`, 3 `flash_attn_interface`, 2 `flash_attn`; each is installed by itself.
_FLASH_ATTENTION = {
    9: ("flash_attn_interface", "flash_attn.cute", "flash_attn"),
    10: ("flash_attn.cute", "flash_attn"),
}


@lru_cache(maxsize=8)
def find_flash_attention(device: torch.device) -> Any:
    """Return the module of the fastest release of FlashAttention that works on a GPU.

    Raises:
        ImportError: none does; says of each what is wrong with it.
    """
    major, _ = torch.cuda.get_device_capability(device)
    problems = []
    for name in _FLASH_ATTENTION.get(major, ("flash_attn",)):
        try:
            module = importlib.import_module(name)
            # Release 4 leaves an empty `flash_attn` behind, and release 2.8 has a `flash_attn.cute`
            # that cannot go back.
            if not hasattr(module, "flash_attn_varlen_func"):
                raise ImportError("it has no flash_attn_varlen_func")
            try_out(partial(_call_flash_attn, module), device)
            return module
        except Exception as error:  # a broken build raises OSError, RuntimeError, ...
            problems.append(f"{name}: {type(error).__name__}: {error}")
    raise ImportError("; ".join(problems))


def _attend_flash_attn(q: Tensor, k: Tensor, v: Tensor, documents: Documents) -> Tensor:
    return _call_flash_attn(find_flash_attention(q.device), q, k, v, documents)


def _call_flash_attn(module: Any, q: Tensor, k: Tensor, v: Tensor, documents: Documents) -> Tensor:
    # torch's own kernels read this switch by themselves.
    settings = {"deterministic": True} if torch.are_deterministic_algorithms_enabled() else {}
    output = module.flash_attn_varlen_func(
        q,
        k,
        v,
        cu_seqlens_q=documents.cu_seqlens,
        cu_seqlens_k=documents.cu_seqlens,
        max_seqlen_q=documents.max_seqlen,
        max_seqlen_k=documents.max_seqlen,
        **settings,
    )
    # Some releases give the log-sums of the scores as well.
    attended: Tensor = output[0] if isinstance(output, tuple) else output
    return attended


@lru_cache(maxsize=8)
def find_torch_varlen(device: torch.device) -> Any:
    """Return torch's own packed attention, told to use FlashAttention 3 where that is installed.

    It is not told to use release 4: torch 2.11 and 2.13 expect two values from its kernel, which
    gives five, and telling it changes every other use of torch's attention in the process as well.

    Raises:
        ImportError: torch is older than 2.10.
    """
    varlen = importlib.import_module("torch.nn.attention.varlen")
    attention = importlib.import_module("torch.nn.attention")
    if hasattr(attention, "activate_flash_attention_impl"):  # torch 2.11
        with contextlib.suppress(ImportError):
            if find_flash_attention(device).__name__ == "flash_attn_interface":
                attention.activate_flash_attention_impl("FA3")
    return varlen


def _attend_torch_varlen(q: Tensor, k: Tensor, v: Tensor, documents: Documents) -> Tensor:
    bounds, longest = documents.cu_seqlens, documents.max_seqlen
    varlen_attn = find_torch_varlen(q.device).varlen_attn
    output = varlen_attn(q, k, v, bounds, bounds, longest, longest)
    assert isinstance(output, Tensor)
    return output


def _load_xformers(device: torch.device) -> Any:
    return importlib.import_module("xformers.ops")


def _attend_xformers(q: Tensor, k: Tensor, v: Tensor, documents: Documents) -> Tensor:
    def build_mask(bounds: list[int]) -> Any:
        module = importlib.import_module("xformers.ops.fmha.attn_bias")
        lengths = [length for length in _find_lengths(bounds) if length]
        return module.BlockDiagonalMask.from_seqlens(lengths, device=q.device)

    bias = documents.derive("xformers", build_mask)
    ops = importlib.import_module("xformers.ops")
    output: Tensor = ops.memory_efficient_attention(q[None], k[None], v[None], attn_bias=bias)[0]
    return output


@dataclass(frozen=True)
class Backend:
    """One way to compute `attend`.

    Attributes:
        function: as `attend`, without the backend's name.
        load: imports what it needs for a device, or raises; None for torch itself.
        needs_cuda: whether it runs on NVIDIA GPUs in half precision only.
    """

    function: Kernel
    load: Callable[[torch.device], Any] | None
    needs_cuda: bool


# In order of preference.
BACKENDS = {
    "flash_attn": Backend(_attend_flash_attn, find_flash_attention, needs_cuda=True),
    "torch_varlen": Backend(_attend_torch_varlen, find_torch_varlen, needs_cuda=True),
    "xformers": Backend(_attend_xformers, _load_xformers, needs_cuda=True),
    "sdpa": Backend(_attend_sdpa, None, needs_cuda=False),
}


def find_obstacle(name: str, device: torch.device, dtype: torch.dtype) -> str | None:
    """Return why a backend cannot run on this device with this dtype; None when it can."""
    backend = BACKENDS[name]
    obstacle = find_device_obstacle(device, dtype) if backend.needs_cuda else None
    if obstacle is not None:
        return obstacle
    if backend.load is not None:
        try:
            backend.load(device)
            try_out(backend.function, device, dtype)
        except Exception as error:  # a broken build raises OSError, RuntimeError, ...
            return f"it does not work here ({type(error).__name__}: {error})"
    return None


def find_device_obstacle(device: torch.device, dtype: torch.dtype) -> str | None:
    """Return why kernels for NVIDIA GPUs in half precision cannot run; None when they may."""
    if device.type != "cuda":
        return f"it runs on CUDA devices only, and this is {device.type}"
    if dtype not in HALF_PRECISION:
        return f"it computes in bf16 and fp16 only, and this is {str(dtype).removeprefix('torch.')}"
    if torch.cuda.get_device_capability(device) < (8, 0):
        return "it needs an Ampere GPU or newer"
    return None


def try_out(kernel: Kernel, device: torch.device, dtype: torch.dtype = torch.bfloat16) -> None:
    """Let a kernel attend within two short documents, forward and backward.

    A package may import without kernels for this GPU or this version of torch.

    Raises:
        ValueError: it gives other numbers than `sdpa`.
        Exception: whatever it raises by itself.
    """
    documents = Documents(torch.tensor([0, 9, 24], dtype=torch.int32, device=device), 15)
    with torch.inference_mode(False), torch.enable_grad():
        inputs = torch.linspace(-1, 1, 3 * 24 * 2 * 64, device=device).view(3, 24, 2, 64).cos()
        results = []
        for function in (kernel, _attend_sdpa):
            q, k, v = (x.clone().to(dtype).requires_grad_() for x in inputs)
            output = function(q, k, v, documents)
            output.float().square().sum().backward()
            results.append(torch.stack([output, *(x.grad for x in (q, k, v))]).float())
    difference = (results[0] - results[1]).norm() / results[1].norm()
    if not difference < 0.05:
        raise ValueError(f"its numbers differ from those of sdpa by {difference:.2g}")


@lru_cache(maxsize=64)
def choose_backend(name: str, device: torch.device, dtype: torch.dtype) -> str:
    """Return the backend called `name`, or the first that can run of those that a word stands for.

    Args:
        name: in `BACKENDS`; `auto` stands for all of them, `torch` for those that come with torch.
        device, dtype: of queries, keys and values.

    Raises:
        ValueError: the one named cannot run; says why.
    """
    candidates = {"auto": tuple(BACKENDS), "torch": ("torch_varlen", "sdpa")}.get(name, ())
    for candidate in candidates:
        if find_obstacle(candidate, device, dtype) is None:
            return candidate
    if name not in BACKENDS:
        raise ValueError(
            f"there is no attention backend '{name}': choose among {', '.join(BACKENDS)}"
        )
    obstacle = find_obstacle(name, device, dtype)
    if obstacle is not None:
        raise ValueError(f"the attention backend '{name}' cannot run here: {obstacle}")
    return name
