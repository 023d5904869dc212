"""Collectives among the processes of a run, on small numbers held by the host."""

import contextlib
import ctypes
import json
import os
import secrets
import socket
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist

from neobert_train.errors import InputError
from neobert_train.world import World

Result = TypeVar("Result")

_TIMEOUT = timedelta(minutes=30)
_FOREVER = timedelta(days=3650)
# By which libraries tell that another process is gone: gloo and sockets, torch's store, NCCL.
_SIGNS_OF_LOSS = (
    "Connection closed", "Connection reset", "Broken pipe",
    "Connection was likely closed",
    "ncclRemoteError", "remote process exited", "NCCL communicator was aborted",
    "Watchdog caught collective operation timeout",
)  # fmt: skip


class Collectives:
    """Sums and signals among processes, through gloo, so that no GPU has to be waited for."""

    def __init__(self, world: World, device: torch.device) -> None:
        """Join the process group that the launcher announced, or make one of this process."""
        backend = "cuda:nccl,cpu:gloo" if device.type == "cuda" else "gloo"
        store, rank, world_size = _find_store()
        dist.init_process_group(
            backend, timeout=_TIMEOUT, store=store, rank=rank, world_size=world_size
        )
        self.world = world
        self._group = dist.new_group(backend="gloo", timeout=_TIMEOUT)
        self._silent_group = dist.new_group(backend="gloo", timeout=_TIMEOUT)

    def sum(self, values: Sequence[int]) -> list[int]:
        """Return element-wise sum over all processes, exact."""
        return self._reduce(torch.tensor(values, dtype=torch.int64)).tolist()

    def sum_floats(self, values: Sequence[float] | npt.NDArray[np.float64]) -> list[float]:
        """Return element-wise sum over all processes in float64."""
        return self._reduce(torch.tensor(values, dtype=torch.float64)).tolist()

    def broadcast(self, values: Sequence[int]) -> list[int]:
        """Return the values of the main process."""
        tensor = torch.tensor(values, dtype=torch.int64)
        dist.broadcast(tensor, src=0, group=self._group)
        return tensor.tolist()

    def gather(self, value: Any) -> list[Any]:
        """Return one JSON value of each process, by rank, on every process."""
        data = _encode(value)
        sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(self.world.world_size)]
        dist.all_gather(sizes, torch.tensor([data.numel()]), group=self._group)
        longest = max(int(size) for size in sizes)
        parts = [torch.empty(longest, dtype=torch.uint8) for _ in sizes]
        padding = torch.zeros(longest - data.numel(), dtype=torch.uint8)
        dist.all_gather(parts, torch.cat([data, padding]), group=self._group)
        return [_decode(part[: int(size)]) for part, size in zip(parts, sizes, strict=True)]

    def on_main(self, function: Callable[[], Result]) -> Result:
        """Call a function on the main process and give its result, a JSON value, to all.

        Raises:
            InputError: it raised one; on every process.
        """
        outcome = _encode(_try(function)) if self.world.is_main else torch.empty(0)
        (size,) = self.broadcast([outcome.numel()])
        if not self.world.is_main:
            outcome = torch.empty(size, dtype=torch.uint8)
        dist.broadcast(outcome, src=0, group=self._group)
        result: Result
        result, error = _decode(outcome)
        if error is not None:
            raise InputError(error)
        return result

    def on_all(self, function: Callable[[], Result]) -> Result:
        """Call a function on every process; each keeps its own result.

        Raises:
            InputError: it raised one somewhere; on every process, with all distinct messages.
        """
        result: Result
        result, error = _try(function)
        errors = [str(message) for message in self.gather(error) if message is not None]
        if errors:
            raise InputError.from_problems(list(dict.fromkeys(errors)))
        return result

    def barrier(self) -> None:
        """Wait for every process."""
        dist.barrier(group=self._group)

    def wait_until_lost(self, rank: int) -> None:
        """Wait until another process is gone; in a thread, since it may be for as long as this one lives."""
        # Nothing is ever sent there, so that all that can come is the end of the connection.
        silence = dist.irecv(torch.empty(1), src=rank, group=self._silent_group)
        assert silence is not None
        with contextlib.suppress(RuntimeError):
            silence.wait(_FOREVER)

    def close(self) -> None:
        """Leave the process group."""
        if dist.is_initialized():
            dist.destroy_process_group()

    def _reduce(self, values: torch.Tensor) -> torch.Tensor:
        dist.all_reduce(values, group=self._group)
        return values


def _find_store() -> tuple[Any, int, int]:
    """Return where processes leave their addresses for each other, the rank of this one, and their number."""
    if "MASTER_ADDR" not in os.environ:  # no launcher: one process, which needs no port
        return dist.HashStore(), 0, 1  # type: ignore[attr-defined]
    rendezvous = dist.rendezvous("env://", timeout=_TIMEOUT)  # type: ignore[attr-defined]
    store, rank, world_size = next(rendezvous)
    store.set_timeout(_TIMEOUT)
    name = _agree_on_start(store, rank, world_size)
    return dist.PrefixStore(name, store), rank, world_size  # type: ignore[attr-defined]


def _agree_on_start(store: Any, rank: int, world_size: int) -> str:
    """Return a name that the processes of one start share, and under which no earlier start left anything.

    torchrun keeps its store when it starts processes again, and with it the addresses of those that
    died, which the new ones would try to reach (seen in torch 2.13).
    """
    if rank:
        own = secrets.token_hex(8)
        store.set(f"start/{rank}", own)
        name = str(store.get(f"start/for/{own}").decode())
        store.set(f"{name}/{rank}", "joined")
        return name
    name = f"start/{secrets.token_hex(8)}"
    missing = set(range(1, world_size))
    deadline = time.monotonic() + _TIMEOUT.total_seconds()
    while missing:
        for other in missing:
            if store.check([f"start/{other}"]):  # perhaps what its predecessor said
                store.set(f"start/for/{store.get(f'start/{other}').decode()}", name)
        missing = {other for other in missing if not store.check([f"{name}/{other}"])}
        if time.monotonic() > deadline:
            raise TimeoutError(f"processes {sorted(missing)} of the run have not started")
        time.sleep(0.02)
    return name


def _encode(value: Any) -> torch.Tensor:
    # JSON where torch's object collectives would pickle.
    return torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)


def _decode(data: torch.Tensor) -> Any:
    return json.loads(bytes(data.numpy()))


def _try(function: Callable[[], Any]) -> tuple[Any, str | None]:
    try:
        return function(), None
    except InputError as error:
        return None, str(error)


def is_lost_connection(error: RuntimeError) -> bool:
    """Return whether a collective failed because another process is gone.

    The type does not tell: torch raises a DistBackendError also where NCCL has no memory or was called
    wrongly, which the user has to see.
    """
    text = str(error)
    return any(sign in text for sign in _SIGNS_OF_LOSS)


def _keep_freed_memory() -> None:
    """Let the C library keep what is freed, which the next step asks for again.

    glibc gives large blocks back to the system at once, and every new one costs a page fault each
    4 KiB: elementwise operations on fresh tensors take a third of the time without that.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:  # glibc's malloc.h
        mmap_threshold, trim_threshold = -3, -1
        mallopt(mmap_threshold, 1 << 30)
        mallopt(trim_threshold, (1 << 31) - 1)


def find_device_kind() -> torch.device:
    """Return the kind of device that a run takes, before each process has found its own."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def share_device(collectives: Collectives) -> torch.device:
    """Find the device of this process, and see that all processes have the same kind.

    Raises:
        InputError: a process has none, or some have a GPU and some have not; on every process.
    """
    # The main process shows errors for all, so also that another has no device.
    device = collectives.on_all(lambda: find_device(collectives.world))
    kinds = collectives.gather([socket.gethostname(), device.type])
    without = dict.fromkeys(host for host, kind in kinds if kind == "cpu")
    if len({kind for _, kind in kinds}) > 1:
        raise InputError(
            f"{', '.join(without)} has no GPU that torch can use, and other processes of the run have "
            f"one: look at what `python -m neobert_train doctor` says there"
        )
    return device


def find_device(world: World) -> torch.device:
    """Return the accelerator of this process, or its share of the CPU's cores.

    Raises:
        InputError: this process is one too many for the GPUs that it sees.
    """
    if torch.cuda.is_available():
        count = torch.cuda.device_count()
        if world.local_rank >= count:
            gpus = "one GPU" if count == 1 else f"{count} GPUs"
            raise InputError(
                f"the process with LOCAL_RANK={world.local_rank} on {socket.gethostname()} sees {gpus}: "
                f"start at most {count} on a host (torchrun --nproc-per-node {count}, deepspeed "
                f"--num_gpus {count}), or show every process all GPUs of the host (CUDA_VISIBLE_DEVICES; "
                f"srun --gpus-per-node, without --gpus-per-task and --gpu-bind)"
            )
        torch.cuda.set_device(world.local_rank)
        return torch.device("cuda", world.local_rank)
    _keep_freed_memory()
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, torch.get_num_threads() // world.local_world_size))
    return torch.device("cpu")
