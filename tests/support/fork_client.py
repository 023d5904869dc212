"""Stands in for the interpreter: lets the fork server run what `python` would, as one process with it.

python fork_client.py SOCKET [-u] [-m MODULE | -c CODE | SCRIPT] ARGUMENT...

The program has this one's files, folder and environment, is sent the signals that this one is sent,
and is killed with it; this one ends as the program ends. Other flags are left to the interpreter.
"""

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
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as server:
        pid = ask(server, path, request, (0, 1, 2))
        for number in signal.valid_signals() - _NOT_RELAYED:
            signal.signal(number, lambda number, _: os.kill(pid, number))
        code = int(server.recv(64))
    if code < 0:
        if -code not in _NOT_RELAYED:
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    os._exit(code)


def read_words(words: list[str]) -> "dict[str, object] | None":
    """What the words after `python` ask for, as a request to the fork server; None for all else."""
    while words and words[0] in ("-u", "-B"):
        words = words[1:]
    flag = words[0] if words else "-"
    if flag in ("-m", "-c") and len(words) > 1:
        return build_request(words[1], words[2:], is_code=flag == "-c")
    return None if flag.startswith("-") else build_request(flag, words[1:])


def build_request(
    target: str, arguments: "list[str]", is_code: bool = False, **environment: str
) -> "dict[str, object]":
    """A module, a script or code to run here and with this environment, changed as given."""
    return {
        "target": target, "arguments": arguments, "is_code": is_code, "cwd": os.getcwd(),
        "environment": {**os.environ, **environment},
    }  # fmt: skip


def ask(
    server: socket.socket, path: str, request: "dict[str, object]", files: "tuple[int, ...]"
) -> int:
    """Connect to the fork server and let it start a program, with these open files; its pid.

    The exit code, minus the number of a signal, is what the server sends next. It kills a program
    whose connection is closed.
    """
    server.connect(path)
    socket.send_fds(server, [json.dumps(request).encode()], files)
    return int(server.recv(64))


if __name__ == "__main__":
    main()
