"""What the device of this process can do: number formats, and its peak rate."""

import math
import os
import platform
import re
import time

import torch

from neobert_train.config.schema import Precision
from neobert_train.machine.peak import find_known_device, format_flops

_SECONDS = 0.4
_LARGEST_SIZE = 2048
# On a CPU the peak is measured again during a run, for at most this share of its time.
_MEASURING_SHARE = 0.005
# Values of ONEDNN_MAX_CPU_ISA that hide bf16 instructions from the library of matrix products.
_WITHOUT_BF16 = re.compile(r"SSE41|AVX|AVX2\w*|AVX512_CORE(_VNNI)?", re.IGNORECASE)


def has_native_bf16(device: torch.device) -> bool:
    """Return whether the device multiplies bf16 matrices with instructions of its own.

    Without them a CPU is slower in bf16 than in fp32: half as fast with AVX-512, and a tenth and
    less with AVX2, where torch's library of matrix products (oneDNN) has no bf16 at all.
    """
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return False
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return True
    # oneDNN says yes to every CPU with AVX-512, since it can emulate the products there.
    allowed = os.environ.get("ONEDNN_MAX_CPU_ISA", "")
    is_hidden = _WITHOUT_BF16.fullmatch(allowed) is not None
    has_instructions = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return has_instructions and not is_hidden


def choose_precision(wanted: Precision, device: torch.device) -> Precision:
    """Return the precision to train in: the one wanted, or for `auto` the fastest.

    Args:
        wanted: as configured.
        device: of this process.
    """
    if wanted is not Precision.auto:
        return wanted
    return Precision.bf16 if has_native_bf16(device) else Precision.fp32


def describe_slow_bf16(device: torch.device) -> str:
    """Say what bf16 costs on a device without instructions for it; measured on a CPU."""
    if device.type == "cuda":
        return "this GPU has no bf16 units and computes it slowly"
    bf16, fp32 = (measure_matmul_flops(dtype) for dtype in (torch.bfloat16, torch.float32))
    return (
        f"this CPU has no bf16 instructions: matrix products in bf16 run at "
        f"{format_flops(bf16)}, {bf16 / fp32:.2g} times as fast as in fp32"
    )


def compute_deterministically(device: torch.device) -> None:
    """Let a GPU give the same bits in every process from now on; a CPU does so in any case.

    torch raises RuntimeError at operations that have no such form. Kernels of FlashAttention and the
    compiler, which chooses the order of sums by timing, are told as well.
    """
    if device.type != "cuda":
        return
    # Of the library of matrix products; it has to be there before their first one.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    # All memory is written before it is read.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    from torch._inductor import config

    config.deterministic = True


class PeakMeter:
    """Knows the peak FLOP/s of this process's device: of a GPU by its data sheet, of a CPU as measured.

    A CPU's peak is the highest rate seen so far, since other programs take their share of it at any
    one moment.

    Args:
        device, dtype: of the matrix products.
    """

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        self._device, self._dtype = device, dtype
        self._peak: float | None = None
        self._next_measurement = -math.inf  # on the clock of time.perf_counter

    def read(self) -> float | None:
        """Return the peak; None for a GPU that `peak.DEVICES` does not know."""
        begin = time.perf_counter()
        if begin >= self._next_measurement:
            found = find_peak_flops(self._device, self._dtype)
            self._peak = found if self._peak is None or found is None else max(self._peak, found)
            end = time.perf_counter()
            self._next_measurement = end + (end - begin) / _MEASURING_SHARE
        return self._peak


def find_peak_flops(device: torch.device, dtype: torch.dtype) -> float | None:
    """Return peak FLOP/s of a device: of a GPU by its data sheet, of a CPU as measured now.

    Returns:
        None for a GPU that `peak.DEVICES` does not know.
    """
    if device.type == "cpu":
        return measure_matmul_flops(dtype)
    entry = find_known_device(torch.cuda.get_device_name(device))
    return None if entry is None else entry.get_flops(dtype is torch.bfloat16)


def measure_matmul_flops(dtype: torch.dtype, seconds: float = _SECONDS) -> float:
    """Return the FLOP/s of the fastest square matrix product on the CPU, in all threads of this process.

    Sizes are doubled while the time lasts, since small products do not fill the cores and a CPU
    without instructions for a dtype takes seconds for large ones.

    Args:
        dtype: of the matrices.
        seconds: roughly how long to measure.
    """
    deadline = time.perf_counter() + seconds
    size, best = 128, 0.0
    while True:
        a = torch.ones(size, size, dtype=dtype)
        torch.mm(a, a)  # the first product of a size sets its kernel up
        begin = time.perf_counter()
        torch.mm(a, a)
        end = time.perf_counter()
        best = max(best, 2 * size**3 / (end - begin))
        if end >= deadline:
            return best
        # A doubled size takes 8 times as long, and is tried twice.
        if size < _LARGEST_SIZE and end + 16 * (end - begin) < deadline:
            size *= 2
