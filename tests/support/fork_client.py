"""Stands in for the interpreter: lets the fork server run what `python` would, as one process with it.

python fork_client.py SOCKET [-u] [-m MODULE | -c CODE | SCRIPT] ARGUMENT...

The program has this one's standard files, folder and environment, is sent the signals that this one is
sent, and is killed with it; this one ends as the program ends. Its parent, session, terminal, limits and
permissions are those of the server, nor are its children those of this process: where a test looks at
any of these, it starts the interpreter. Flags other than these are left to the interpreter, too.
"""

import contextlib
import json
import os
import signal
import socket
import sys

# What a process cannot catch, and what Python makes of writing to a closed pipe.
_NOT_RELAYED = {signal.SIGKILL, signal.SIGSTOP, signal.SIGCHLD, signal.SIGPIPE}


def main() -> None:
    """Run the program, and end with its exit code or by the signal that ended it."""
    path, *words = sys.argv[1:]
    request = read_words(words)
    if request is None:
        os.execv(sys.executable, [sys.executable, *words])
    relayed = signal.valid_signals() - _NOT_RELAYED
    signal.pthread_sigmask(signal.SIG_BLOCK, relayed)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as server:
        pid = ask(server, path, request, (0, 1, 2))

        def relay(number: int, frame: object) -> None:
            with contextlib.suppress(ProcessLookupError):  # it has just ended
                os.kill(pid, number)

        for number in relayed:
            signal.signal(number, relay)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, relayed)
        code = int(server.recv(64))
    if code < 0:
        if -code not in _NOT_RELAYED:
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    os._exit(code)


def read_words(words: "list[str]") -> "dict[str, object] | None":
    """Return what the words after `python` ask for, as a request to the fork server; None for all else."""
    while words and words[0] in ("-u", "-B"):
        words = words[1:]
    flag = words[0] if words else "-"
    kind = {"-m": "module", "-c": "code"}.get(flag)
    if kind and len(words) > 1:
        return build_request(kind, words[1], words[2:])
    return None if flag.startswith("-") else build_request("script", flag, words[1:])


def build_request(
    kind: str, target: str, arguments: "list[str]", **environment: str
) -> "dict[str, object]":
    """Return a request for a module, code or a script, here and with this environment, changed as given."""
    return {
        "kind": kind, "target": target, "arguments": arguments, "cwd": os.getcwd(),
        "environment": {**os.environ, **environment},
    }  # fmt: skip


def ask(
    server: socket.socket, path: str, request: "dict[str, object]", files: "tuple[int, ...]"
) -> int:
    """Connect to the fork server and let it start a program, with these open files; return its pid.

    The exit code, minus the number of a signal, is what the server sends next. It kills a program
    whose connection is closed.
    """
    server.connect(path)
    socket.send_fds(server, [json.dumps(request).encode()], files)
    return int(server.recv(64))


if __name__ == "__main__":
    main()
