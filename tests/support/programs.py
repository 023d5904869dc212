"""Starting the program: anew as a user does, or forked from a process that has loaded its libraries.

Importing torch, transformers and DeepSpeed takes several times as long as the few steps of a test. A
forked program is a process as real as any other, which can be killed and has its own output, but the
libraries were imported by another. Where that could matter, tests start it anew: how it starts and
what it imports, that two interpreters give the same, and variables of the environment that libraries
read when they are imported. Launchers, what programs start and most of what is tried without some
package are forked, too, unless more than the quick tests is asked for.
"""

import os
import select
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from support.fork_client import ask, build_request

STARTS_ANEW = "NEOBERT_TESTS_START_ANEW"
# The models are tiny, and the tests that run beside this one want the other cores.
_ONE_THREAD = {"OMP_NUM_THREADS": "1"}
_forked: list["Forked"] = []
_HERE = Path(__file__).parent
_ENVIRONMENT = dict(os.environ)  # before any test changes it


class Forked:
    """A program that the fork server runs; what tests need of `subprocess.Popen`."""

    def __init__(self, target: str, *arguments: Any, cwd: Any = None, **environment: str) -> None:
        kind = "script" if target.endswith(".py") else "module"
        request = build_request(
            kind, target, list(map(str, arguments)), **_ONE_THREAD | environment
        )
        request["cwd"] = str(cwd or Path.cwd())
        reader, writer = os.pipe()
        self._server = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with open(os.devnull) as nothing:
            files = nothing.fileno(), writer, writer
            self.pid = ask(self._server, str(_find_server() / "socket"), request, files)
        os.close(writer)
        self.stdout = os.fdopen(reader, encoding="utf-8")
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
            ready, _, _ = select.select([self._server], [], [], timeout)
            if not ready:
                raise subprocess.TimeoutExpired("forked", timeout or 0)
            self.returncode = int(self._server.recv(64))
            self._server.close()
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
def _find_server() -> Path:
    """Return the folder of the fork server's socket, which the first worker that asks has started.

    `python` in that folder stands in for the interpreter. The server ends with the test run, and takes
    the folder along.
    """
    run = os.environ.get("PYTEST_XDIST_TESTRUNUID")
    owner = os.getppid() if run else os.getpid()
    assert owner != 1, "the test run has ended"
    folder = Path(tempfile.gettempdir()) / f"fork-server-{(run or uuid.uuid4().hex)[:8]}"
    try:
        folder.mkdir(mode=0o700)
    except FileExistsError:
        while not (folder / "socket").exists():
            assert folder.exists(), "another worker could not start the fork server"
            time.sleep(0.01)
        return folder
    try:
        _start_server(folder, owner)
    except BaseException:
        shutil.rmtree(folder)
        raise
    return folder


def _start_server(folder: Path, owner: int) -> None:
    """Start the fork server, which ends when a process does: the owner."""
    python = folder / "python"
    words = shlex.join([sys.executable, "-IS", str(_HERE / "fork_client.py"), f"{folder}/socket"])
    python.write_text(f'#!/bin/sh\nexec {words} "$@"\n')
    python.chmod(0o755)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(str(folder / "new"))
        listener.listen(64)
        server = _HERE / "fork_server.py"
        subprocess.Popen(
            [sys.executable, server, str(listener.fileno()), _choose(python), str(owner)],
            env=_ENVIRONMENT,
            stdin=subprocess.DEVNULL,
            cwd=_HERE.parents[1],  # not a folder of the test that is first
            pass_fds=[listener.fileno()],
            start_new_session=True,
        )
    (folder / "new").rename(folder / "socket")


def find_python() -> str:
    """Return what stands in for the interpreter, and lets the fork server run what it is given.

    Where more than the quick tests is asked for, that is the interpreter itself.
    """
    return _choose(_find_server() / "python")


def _choose(python: Path) -> str:
    return sys.executable if STARTS_ANEW in os.environ else str(python)


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
    process = subprocess.Popen(
        [sys.executable, "-m", "neobert_train", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=cwd,
        start_new_session=True,
        env={**os.environ, **_ONE_THREAD, **environment},
    )
    return finish(process, code)


def finish(process: "Forked | subprocess.Popen[str]", code: int = 0) -> str:
    """Wait until a process ends, with this exit code; returns what it printed."""
    output, _ = process.communicate(timeout=300)
    assert process.returncode == code, output
    return output
