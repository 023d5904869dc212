"""The processes of a run: the device of each, and what is said when one is gone."""

from types import SimpleNamespace

import pytest
import torch

from neobert_train.distributed import find_device, is_lost_connection, share_device
from neobert_train.errors import InputError
from neobert_train.world import World
from support.programs import finish, fork_ranks
from training.runs import SMOKE


@pytest.fixture
def gpus(monkeypatch):
    """A function that lets torch see a number of GPUs; the ones that were chosen."""

    def show(number):
        chosen = []
        monkeypatch.setattr(torch.cuda, "is_available", lambda: number > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: number)
        monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
        return chosen

    return show


def test_a_process_takes_the_gpu_of_its_number(gpus):
    chosen = gpus(2)
    device = find_device(World(rank=5, local_rank=1, world_size=8, local_world_size=2))
    assert (device, chosen) == (torch.device("cuda", 1), [1])


@pytest.mark.parametrize(("number", "shown"), [(1, "one GPU"), (4, "4 GPUs")])
def test_a_process_too_many_is_told_how_many_gpus_it_sees(gpus, number, shown):
    chosen = gpus(number)
    with pytest.raises(InputError) as raised:
        find_device(World(rank=4, local_rank=4, world_size=8, local_world_size=8))
    assert "the process with LOCAL_RANK=4 on " in str(raised.value)
    assert f"sees {shown}: start at most {number} on a host" in str(raised.value)
    assert "CUDA_VISIBLE_DEVICES" in str(raised.value)
    assert chosen == []


# Two processes that both see one GPU, as far as they can without one.
ONE_GPU = """
import torch
import torch.distributed as dist
from neobert_train.__main__ import run_program

join = dist.init_process_group
dist.init_process_group = lambda backend, **options: join("gloo", **options)
torch.cuda.is_available = lambda: True
torch.cuda.device_count = lambda: 1
torch.cuda.set_device = lambda device: None
run_program()
"""


def test_two_processes_on_one_gpu_end_with_one_message(tmp_path):
    (tmp_path / "one_gpu.py").write_text(ONE_GPU)
    words = [*SMOKE, f"output_dir={tmp_path / 'run'}"]
    main, other = fork_ranks(str(tmp_path / "one_gpu.py"), *words)
    # Older versions of torch tell how gloo connects.
    output, silence = (
        [line for line in finish(process, code=2).splitlines() if not line.startswith("[Gloo]")]
        for process in (main, other)
    )
    assert len(output) == 1
    assert output[0].startswith("neobert_train: the process with LOCAL_RANK=1 on ")
    assert silence == []
    assert not (tmp_path / "run").exists()


def test_hosts_with_and_without_a_gpu_are_not_mixed():
    others = [["node1", "cuda"], ["node2", "cuda"]]
    collectives = SimpleNamespace(
        world=World(), on_all=lambda find: find(), gather=lambda own: [own, *others]
    )
    with pytest.raises(InputError, match=r"has no GPU that torch can use, and other processes"):
        share_device(collectives)
    others.clear()
    assert share_device(collectives).type == "cpu"


# As gloo, torch's store and ProcessGroupNCCL word them.
LOST = [
    RuntimeError("[gloo/transport/tcp/pair.cc:553] Connection closed by peer [10.0.0.2]:53654."),
    RuntimeError(
        "[gloo/transport/tcp/pair.cc:534] Read error [10.0.0.2]:53654: Connection reset by peer"
    ),
    torch.distributed.DistNetworkError(
        "Failed to recv, got 0 bytes. Connection was likely closed. Did the remote server shutdown or crash?"
    ),
    torch.distributed.DistBackendError(
        "NCCL error in: ProcessGroupNCCL.cpp:2093, remote process exited or there was a network error, "
        "NCCL version 2.27.5\nncclRemoteError: A call failed possibly due to a network error or a remote "
        "process exiting prematurely.\nLast error:\nsocketProgress: Connection closed by remote peer"
    ),
    torch.distributed.DistBackendError(
        "NCCL communicator was aborted on rank 3.  Original reason for failure was: NCCL error"
    ),
    torch.distributed.DistBackendError(
        "[Rank 0] Watchdog caught collective operation timeout: WorkNCCL(SeqNum=7, OpType=ALLREDUCE) ran for "
        "1800000 milliseconds before timing out."
    ),
]
OWN = [
    torch.distributed.DistBackendError(
        "NCCL error in: ProcessGroupNCCL.cpp:2093, unhandled system error (run with NCCL_DEBUG=INFO for "
        "details), NCCL version 2.27.5\nncclSystemError: System call (e.g. socket, malloc) or external "
        "library call failed or device error.\nLast error:\nError while creating shared memory segment "
        "/dev/shm/nccl-b0zFsn (size 9637888)"
    ),
    torch.distributed.DistBackendError(
        "ncclInvalidUsage: This usually reflects invalid usage of NCCL library.\nLast error:\nDuplicate GPU "
        "detected : rank 1 and rank 0 both on CUDA device 41000"
    ),
    RuntimeError("CUDA out of memory"),
]


@pytest.mark.parametrize("error", LOST, ids=lambda error: str(error)[:40])
def test_an_error_by_which_another_process_is_known_to_be_gone(error):
    assert is_lost_connection(error)


@pytest.mark.parametrize("error", OWN, ids=lambda error: str(error)[:40])
def test_an_error_of_this_process_is_shown_as_what_it_is(error):
    assert not is_lost_connection(error)
