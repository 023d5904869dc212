"""Starting the program: anew as a user does, or forked from a process that has loaded its libraries.

Importing torch, transformers and DeepSpeed takes several times as long as the few steps of a test. A
forked program is a process as real as any other, which can be killed and has its own output, but the
libraries were imported by another. Where that could matter, tests start it anew: how it starts and
what it imports, launchers, that two interpreters give the same, and variables of the environment
that libraries read when they are imported.
"""

import atexit
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

PROGRAM = [sys.executable, "-m", "neobert_train"]
# The models are tiny, and the tests that run beside this one want the other cores.
_ONE_THREAD = {"OMP_NUM_THREADS": "1"}
_forked: list["Forked"] = []
_FORK_SERVER = Path(__file__).with_name("fork_server.py")


class Forked:
    """A program that the fork server runs; what tests need of `subprocess.Popen`."""

    def __init__(self, target: str, *arguments: Any, cwd: Any = None, **environment: str) -> None:
        request = {
            "target": target,
            "arguments": [str(argument) for argument in arguments],
            "cwd": str(cwd or Path.cwd()),
            "environment": {**os.environ, **_ONE_THREAD, **environment},
        }
        reader, writer = os.pipe()
        self._status, status = socket.socketpair()
        message = json.dumps(request).encode()
        socket.send_fds(_start_server(), [message], [writer, writer, status.fileno()])
        os.close(writer)
        status.close()
        self.stdout = os.fdopen(reader, encoding="utf-8")
        self._answers = self._status.makefile()
        self.pid = int(self._answers.readline())
        self.returncode: int | None = None
        _forked.append(self)

    def poll(self) -> int | None:
        """The exit code, or None while it runs."""
        try:
            return self.wait(0)
        except subprocess.TimeoutExpired:
            return None

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the end, and return the exit code; minus the number of a signal."""
        if self.returncode is None:
            ready, _, _ = select.select([self._status], [], [], timeout)
            if not ready:
                raise subprocess.TimeoutExpired("forked", timeout or 0)
            self.returncode = int(self._answers.readline())
        return self.returncode

    def communicate(self, timeout: float) -> tuple[str, None]:
        """Read what it prints until nobody can print any more, and wait for its end."""
        read: list[str] = []
        reader = threading.Thread(target=lambda: read.append(self.stdout.read()), daemon=True)
        reader.start()
        reader.join(timeout)
        if reader.is_alive():
            self.kill()
            raise subprocess.TimeoutExpired("forked", timeout)
        self.wait(timeout)
        return read[0], None

    def send_signal(self, number: int) -> None:
        """Send a signal, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """Send SIGKILL."""
        self.send_signal(signal.SIGKILL)


def kill_forked() -> None:
    """End the forked programs that a test has left."""
    for program in _forked:
        program.kill()
    _forked.clear()


@cache
def _start_server() -> socket.socket:
    """The connection to the fork server of this process; it ends when this process does."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        server = subprocess.Popen(
            [sys.executable, _FORK_SERVER, str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            start_new_session=True,
        )
    atexit.register(server.wait)
    atexit.register(ours.close)
    return ours


def fork_ranks(target: str, *arguments: Any, **environment: str) -> list[Forked]:
    """Two processes of one run, with the variables that a launcher gives its processes."""
    launcher = {**describe_launch(), "LOCAL_WORLD_SIZE": "2", **environment}
    return [
        Forked(target, *arguments, RANK=rank, LOCAL_RANK=rank, **launcher) for rank in ("0", "1")
    ]


def fork_hosts(
    target: str, *arguments: Any, cwds: Sequence[Path], **environment: str
) -> list[Forked]:
    """The same as if each were on a host of its own, with a folder of its own."""
    launcher = {**describe_launch(), "LOCAL_WORLD_SIZE": "1", "LOCAL_RANK": "0", **environment}
    return [
        Forked(target, *arguments, cwd=cwd, RANK=str(rank), **launcher)
        for rank, cwd in enumerate(cwds)
    ]


def describe_launch() -> dict[str, str]:
    """The variables that are the same for two processes, wherever they are."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
    return {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}


def run_command(*arguments: Any, cwd: Any = None, code: int = 0, **environment: str) -> str:
    """Run `neobert_train ...` forked; returns what it printed, stdout and stderr together."""
    return finish(Forked("neobert_train", *arguments, cwd=cwd, **environment), code)


def run_anew(*arguments: Any, cwd: Any = None, code: int = 0, **environment: str) -> str:
    """Run `python -m neobert_train ...` in an interpreter of its own; what it printed."""
    return finish(start(*arguments, cwd=cwd, **environment), code)


def start(*arguments: Any, cwd: Any = None, **environment: str) -> "subprocess.Popen[str]":
    """Start `python -m neobert_train ...` in an interpreter and a process group of its own."""
    return subprocess.Popen(
        [*PROGRAM, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=cwd,
        start_new_session=True,
        env={**os.environ, **_ONE_THREAD, **environment},
    )


def finish(process: "Forked | subprocess.Popen[str]", code: int = 0) -> str:
    """Wait until a process ends, with this exit code; returns what it printed."""
    output, _ = process.communicate(timeout=300)
    assert process.returncode == code, output
    return output
