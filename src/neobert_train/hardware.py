"""What the device of this process can do, at most."""

import time

import torch

from neobert_train import accounting

_SECONDS = 0.4
_LARGEST_SIZE = 2048


def find_peak_flops(device: torch.device, dtype: torch.dtype) -> float | None:
    """Peak FLOP/s of a device: of a GPU by its data sheet, of a CPU as measured now.

    Returns:
        None for a GPU that `accounting.DEVICES` does not know.
    """
    if device.type == "cpu":
        return measure_matmul_flops(dtype)
    entry = accounting.find_known_device(torch.cuda.get_device_name(device))
    return None if entry is None else entry.get_flops(dtype is torch.bfloat16)


def measure_matmul_flops(dtype: torch.dtype, seconds: float = _SECONDS) -> float:
    """FLOP/s of the fastest square matrix product on the CPU, in all threads of this process.

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
