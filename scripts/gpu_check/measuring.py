"""The sizes of a check, and what all sections measure with."""

import gc
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from bench_step import Shape
from torch import Tensor
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from gpu_check.table import FAILED, Row

BF16 = torch.bfloat16
# Parts of the names of kernels, by what they compute; the first match counts.
_KINDS = {
    "attention": ("flash", "fmha"),
    "compiled": ("triton",),
    "products": ("gemm", "nvjet", "cutlass", "xmma", "cublas"),
    "copies": ("memcpy", "memset"),
}


@dataclass(frozen=True)
class Scale:
    """The sizes of a check.

    Attributes:
        device: a GPU, or a CPU where only the script itself is tried.
        shape: of the model.
        tokens: of a micro-batch.
        contexts: longest documents.
        repeats: calls that are timed together.
        out: folder for what is too long for the table.
    """

    device: torch.device
    shape: Shape
    tokens: int
    contexts: tuple[int, ...]
    repeats: int
    out: Path = Path()

    @property
    def on_gpu(self) -> bool:
        return self.device.type == "cuda"

    def draw(self, *size: int) -> Tensor:
        """Return random bf16 numbers on the device."""
        return torch.randn(*size, device=self.device).to(BF16)

    def synchronize(self) -> None:
        if self.on_gpu:
            torch.cuda.synchronize()

    def time(self, function: Callable[[], Any], repeats: int | None = None) -> float:
        """Return milliseconds of a call: the median of three groups, after a warm-up of one group."""
        repeats = min(repeats or self.repeats, self.repeats)
        times = []
        for _ in range(4):
            self.synchronize()
            start = time.perf_counter()
            for _ in range(repeats):
                function()
            self.synchronize()
            times.append(1e3 * (time.perf_counter() - start) / repeats)
        return statistics.median(times[1:])

    def measure_peak_bytes(self, function: Callable[[], Any]) -> int:
        """Return the most memory of the GPU that a call takes beside what was there."""
        self.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        function()
        self.synchronize()
        return torch.cuda.max_memory_allocated() - before

    def profile(self, function: Callable[[], Any]) -> list[tuple[str, float]]:
        """Return name and milliseconds of every kernel that a call starts on the GPU."""
        with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
            function()
            self.synchronize()
        return list_kernels(list(profiler.events()))


FULL = Scale(torch.device("cuda", 0), Shape(28, 768, 30_522), 65_536, (1024, 4096), 20)
TINY = Scale(torch.device("cpu"), Shape(2, 64, 1003), 256, (32, 64), 2)


def list_kernels(events: list[Any]) -> list[tuple[str, float]]:
    """Return name and milliseconds of what ran on the GPU; ranges that mark a part are none."""
    return [
        (event.name, event.time_range.elapsed_us() / 1e3)
        for event in events
        if event.device_type == DeviceType.CUDA and not event.is_user_annotation
    ]


def sum_times(kernels: list[tuple[str, float]]) -> dict[str, float]:
    """Return milliseconds by name, the longest first."""
    sums: dict[str, float] = defaultdict(float)
    for name, milliseconds in kernels:
        sums[name] += milliseconds
    return dict(sorted(sums.items(), key=lambda item: -item[1]))


def sum_by_kind(kernels: list[tuple[str, float]]) -> dict[str, float]:
    """Return milliseconds by what kernels compute, the most first."""
    return sum_times([(_find_kind(name.lower()), milliseconds) for name, milliseconds in kernels])


def _find_kind(name: str) -> str:
    kinds = (kind for kind, words in _KINDS.items() if any(word in name for word in words))
    return next(kinds, "other")


def format_kinds(kernels: list[tuple[str, float]]) -> str:
    """Return milliseconds by what kernels compute, as `products 125, attention 74`."""
    return ", ".join(f"{kind} {ms:.3g}" for kind, ms in sum_by_kind(kernels).items())


def format_rate(operations: float, milliseconds: float) -> str:
    """Return a rate in TFLOP/s, without the unit."""
    return f"{operations / milliseconds / 1e9:.3g}"


def guard(check: str, rows: Iterator[Row]) -> Iterator[Row]:
    """Yield rows; where they break off, one that says why, so that the next ones still come."""
    try:
        yield from rows
    except Exception as error:  # whatever it is, the table has to say it
        yield Row(check, describe(error), verdict=FAILED)
    gc.collect()
    torch.cuda.empty_cache()


def describe(error: Exception) -> str:
    """Return the kind and the first line of an error."""
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0][:160]}"
