"""neobert_train twice on a file system of 13 MB that only these processes see, mounted on DISK.

It is full at the first start. At the second one a checkpoint does not fit, until step 9 has been taken.
"""

import ctypes
import os
import runpy
import subprocess
import sys
import threading
import time
from pathlib import Path

NEW_NAMESPACES = 0x10000000 | 0x20000  # CLONE_NEWUSER, CLONE_NEWNS
UNABLE = 77
disk = Path(os.environ.get("DISK", ""))
filler = disk / "filler"


def mount() -> None:
    """Mount the file system as root of a user namespace; exits with UNABLE where that is not allowed."""
    users = {"uid_map": f"0 {os.getuid()} 1", "gid_map": f"0 {os.getgid()} 1"}
    if ctypes.CDLL(None).unshare(NEW_NAMESPACES) != 0:
        sys.exit(UNABLE)
    for name, text in {"setgroups": "deny", **users}.items():
        Path("/proc/self", name).write_text(text)
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=13m", "none", disk]).returncode != 0:
        sys.exit(UNABLE)


def fill(megabytes: int) -> None:
    """Leave only the rest of the file system."""
    filler.unlink(missing_ok=True)
    try:
        with filler.open("wb") as file:
            for _ in range(megabytes):
                file.write(bytes(1 << 20))
    except OSError:
        pass  # it is full


def start() -> int:
    """Run the program in a process of its own; its exit code."""
    child = os.fork()
    if child == 0:
        runpy.run_module("neobert_train", run_name="__main__", alter_sys=True)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def make_room_later() -> None:
    metrics = disk / "run" / "metrics.jsonl"
    while not (metrics.exists() and '"step": 9,' in metrics.read_text()):
        time.sleep(0.05)
    filler.unlink()


if __name__ == "__main__":
    try:
        mount()
    except OSError:
        sys.exit(UNABLE)
    fill(13)
    print(f"at the start: {start()}", flush=True)
    fill(11)
    threading.Thread(target=make_room_later, daemon=True).start()
    print(f"at the end: {start()}", flush=True)
    print(*sorted(os.listdir(disk / "run" / "checkpoints")))
