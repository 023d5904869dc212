"""Forks programs from a process that has loaded the libraries, as multiprocessing's fork server does.

python fork_server.py FD, where FD is a Unix socket. Each message asks for one program, as JSON with
`target`, `arguments`, `cwd` and `environment`, and brings three open files: standard output,
standard error, and a socket that is told the pid and, when the program has ended, its exit code.
"""

import gc
import importlib
import json
import os
import pkgutil
import runpy
import selectors
import signal
import socket
import sys
from typing import Any

_REQUEST_BYTES = 1 << 17


def serve(requests: socket.socket) -> dict[str, Any]:
    """Fork a child for every request until the client hangs up; returns in the children only."""
    wake_up, woken = socket.socketpair()
    for end in (wake_up, woken):
        end.setblocking(False)
    signal.set_wakeup_fd(woken.fileno())
    signal.signal(signal.SIGCHLD, lambda *_: None)
    running: dict[int, socket.socket] = {}
    with selectors.DefaultSelector() as selector:
        selector.register(requests, selectors.EVENT_READ)
        selector.register(wake_up, selectors.EVENT_READ)
        while True:
            ready = {key.fileobj for key, _ in selector.select()}
            if wake_up in ready:
                wake_up.recv(4096)
                report_endings(running)
            if requests not in ready:
                continue
            message, files, _, _ = socket.recv_fds(requests, _REQUEST_BYTES, 3)
            if not message:
                sys.exit()
            *outputs, status = files
            child = os.fork()
            if child == 0:
                signal.set_wakeup_fd(-1)
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                for end in (requests, wake_up, woken, *running.values()):
                    end.close()
                take_outputs(outputs)
                os.close(status)
                return json.loads(message)
            for file in outputs:
                os.close(file)
            running[child] = socket.socket(fileno=status)
            running[child].sendall(f"{child}\n".encode())


def report_endings(running: dict[int, socket.socket]) -> None:
    """Tell of every child that has ended."""
    while running:
        child, status = os.waitpid(-1, os.WNOHANG)
        if child == 0:
            return
        with running.pop(child) as listener:
            listener.sendall(f"{os.waitstatus_to_exitcode(status)}\n".encode())


def take_outputs(files: list[int]) -> None:
    """Make files the standard output and standard error."""
    for number, file in enumerate(files, start=1):
        os.dup2(file, number)
        os.close(file)


def load_libraries() -> None:
    """Import what the commands import, and what DeepSpeed imports for its first engine."""
    from neobert_train.config.store import compose_config, to_typed
    from neobert_train.machine.threads import limit_spinning

    limit_spinning()
    import neobert_train.commands

    for module in pkgutil.iter_modules(neobert_train.commands.__path__):
        importlib.import_module(f"neobert_train.commands.{module.name}")
    import torch

    from neobert_train.machine import devices
    from neobert_train.training.engine import import_deepspeed

    import_deepspeed(torch.device("cpu"))
    importlib.import_module("neobert_train.tuning.embedding")
    # The first composition loads Hydra and builds its parsers.
    to_typed("train", compose_config("train", ["+experiment=smoke"]))
    # What share of its peak a tiny model reaches matters to no test.
    devices.measure_matmul_flops.__defaults__ = (0.02,)
    gc.freeze()


def run_program(target: str, arguments: list[str], cwd: str, environment: dict[str, str]) -> None:
    """Run a module or a script as `python -m MODULE` and `python SCRIPT` do."""
    import torch

    is_other_hub = environment.get("HF_ENDPOINT") != os.environ.get("HF_ENDPOINT")
    os.environ.clear()
    os.environ.update(environment)
    if is_other_hub:  # than that of which the library has read
        from hub_settings import use_hub

        use_hub(environment["HF_ENDPOINT"], environment["HF_HOME"])
    if "OMP_NUM_THREADS" in environment:  # OpenMP reads it when it is loaded
        torch.set_num_threads(int(environment["OMP_NUM_THREADS"]))
    os.chdir(cwd)
    sys.argv = [target, *arguments]
    if target.endswith(".py"):
        sys.path[0] = os.path.dirname(target)
        runpy.run_path(target, run_name="__main__")
    else:
        sys.path[0] = cwd
        runpy.run_module(target, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    connection = socket.socket(fileno=int(sys.argv[1]))
    load_libraries()
    run_program(**serve(connection))
