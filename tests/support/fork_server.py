"""Forks programs from a process that has loaded the libraries, as multiprocessing's fork server does.

python fork_server.py FD PYTHON PID, where FD listens on a Unix socket. Programs take PYTHON for the
interpreter: with one that runs `fork_client.py`, what they start is forked, too. A client asks for
one program, as JSON with `kind`, `target`, `arguments`, `cwd` and `environment`, and sends three
open files for its standard input, output and error. It is told the pid, and the exit code at the end.
The server ends when process PID does, and removes the folder of its socket.
"""

import atexit
import contextlib
import gc
import importlib
import json
import os
import pkgutil
import runpy
import selectors
import shutil
import signal
import socket
import sys
import threading
import types
import warnings
from typing import Any, NoReturn

_REQUEST_BYTES = 1 << 17


def serve(listener: socket.socket, owner: int) -> dict[str, Any]:
    """Fork a child for every request until the owner ends; returns in the children only."""
    wake_up, woken = socket.socketpair()
    for end in (wake_up, woken):
        end.setblocking(False)
    signal.set_wakeup_fd(woken.fileno())
    signal.signal(signal.SIGCHLD, lambda *_: None)
    running: dict[int, socket.socket] = {}
    with selectors.DefaultSelector() as selector:
        for file in (listener, wake_up, owner):
            selector.register(file, selectors.EVENT_READ)
        while True:
            ready = [key.fileobj for key, _ in selector.select()]
            if owner in ready:
                kill(*running)
                shutil.rmtree(os.path.dirname(listener.getsockname()), ignore_errors=True)
                os._exit(0)
            if wake_up in ready:
                with contextlib.suppress(BlockingIOError):
                    wake_up.recv(4096)
                for client in report_endings(running):
                    selector.unregister(client)
                    client.close()
                continue  # some of those that were ready may be gone
            kill(*(child for child, client in running.items() if client in ready))
            if listener not in ready:
                continue
            client, _ = listener.accept()
            message, files, _, _ = socket.recv_fds(client, _REQUEST_BYTES, 3)
            if not message:  # it has hung up
                client.close()
                continue
            child = os.fork()
            if child == 0:
                os.setpgid(0, 0)
                signal.set_wakeup_fd(-1)
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                for end in (listener, wake_up, woken, client, *running.values()):
                    end.close()
                os.close(owner)
                take_files(files)
                return json.loads(message)
            with contextlib.suppress(OSError):  # the child has done it
                os.setpgid(child, child)
            for file in files:
                os.close(file)
            running[child] = client
            tell(client, child)
            selector.register(client, selectors.EVENT_READ)


def tell(client: socket.socket, number: int) -> None:
    """Send a client a number; one that has hung up is found when it is read from."""
    with contextlib.suppress(OSError):
        client.sendall(str(number).encode())


def kill(*children: int) -> None:
    """Send SIGKILL to children that are not reaped yet, and to what they have started."""
    for child in children:
        os.killpg(child, signal.SIGKILL)


def report_endings(running: dict[int, socket.socket]) -> list[socket.socket]:
    """Tell the clients whose programs have ended, and return them."""
    ended = []
    while running:
        child, status = os.waitpid(-1, os.WNOHANG)
        if child == 0:
            break
        ended.append(running.pop(child))
        tell(ended[-1], os.waitstatus_to_exitcode(status))
    return ended


def take_files(files: list[int]) -> None:
    """Make files the standard input, output and error."""
    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)


def load_libraries() -> None:
    """Import what the commands import, and what DeepSpeed imports for its first engine."""
    gc.disable()
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
    gc.enable()


def run_program(
    kind: str, target: str, arguments: list[str], cwd: str, environment: dict[str, str]
) -> None:
    """Run a module, code or a script as `python -m`, `python -c` and `python SCRIPT` do."""
    import torch
    from hub_settings import follow_environment

    follow_environment(environment)
    os.environ.clear()
    os.environ.update(environment)
    if "OMP_NUM_THREADS" in environment:  # OpenMP reads it when it is loaded
        torch.set_num_threads(int(environment["OMP_NUM_THREADS"]))
    for rule in environment.get("PYTHONWARNINGS", "").split(","):
        if rule:
            warnings.simplefilter(rule)
    os.chdir(cwd)
    sys.argv = ["-c" if kind == "code" else target, *arguments]
    if kind == "code":
        forget_package()
        sys.path[0] = ""
        sys.modules["__main__"] = types.ModuleType("__main__")
        exec(compile(target, "<string>", "exec"), vars(sys.modules["__main__"]))
    elif kind == "script":
        sys.path[0] = os.path.dirname(os.path.abspath(target))
        runpy.run_path(target, run_name="__main__")
    else:
        sys.path[0] = cwd
        runpy.run_module(target, run_name="__main__", alter_sys=True)


def forget_package() -> None:
    """Let code import the package anew, or hide it from what it tries."""
    for name in list(sys.modules):
        if name.partition(".")[0] == "neobert_train":
            del sys.modules[name]


def leave(code: str | int | None) -> NoReturn:
    """End this process as `sys.exit(code)` would, without taking the libraries of the server down."""
    if isinstance(code, str):
        print(code, file=sys.stderr)
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code if isinstance(code, int) else int(code is not None))


if __name__ == "__main__":
    listening, owning = socket.socket(fileno=int(sys.argv[1])), os.pidfd_open(int(sys.argv[3]))
    load_libraries()
    sys.executable = sys.argv[2]
    asked = serve(listening, owning)
    try:
        run_program(**asked)
    except SystemExit as error:
        leave(error.code)
    except BaseException:
        sys.excepthook(*sys.exc_info())
        leave(1)
    leave(0)
