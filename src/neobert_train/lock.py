"""The lock by which one process at a time writes a run directory, or a folder of token shards."""

import errno
import json
import logging
import os
import socket
import stat
import time
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO

from neobert_train.config.typed import Count, parse
from neobert_train.errors import InputError
from neobert_train.files import (
    DamagedFileError,
    is_at,
    parse_json,
    read_text,
    try_lock,
)

logger = logging.getLogger(__name__)

_SECONDS_BETWEEN_ATTEMPTS = 0.2
_MOST_BYTES = 1 << 16


@dataclass(frozen=True)
class Holder:
    """The process that holds a lock, as it wrote itself down: its id, its host, and since when."""

    pid: Count
    host: str
    since: str

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host} (since {self.since})"


def acquire_lock(path: Path, wait_seconds: float, setting: str) -> BinaryIO:
    """Lock a file, made if it is missing, and write down in it who has the lock.

    Args:
        path: of the file; its content is kept until the lock is held.
        wait_seconds: how long to wait for a process that has it.
        setting: by which a user chooses another folder.

    Returns:
        The open file, which holds the lock until it is closed or the process ends.

    Raises:
        InputError: another process still has the lock, or the file is none of ours.
        OSError: the file cannot be opened or written.
    """
    deadline = time.monotonic() + wait_seconds
    is_told = wait_seconds <= 0
    while True:
        file = _open(path, os.O_CREAT)
        if try_lock(file.fileno()):
            if is_at(file.fileno(), path):
                _write_holder(file)
                return file
            file.close()  # it was removed meanwhile, and another may lock the new one
            continue
        file.close()
        holder = _describe_holder(path)
        if time.monotonic() >= deadline:
            raise InputError(
                f"{holder} writes in {path.parent}: stop it, or write {setting}=... to choose another "
                f"folder"
            )
        if not is_told:
            is_told = True
            logger.warning(
                "waiting up to %.0f seconds for %s, which still writes in %s",
                wait_seconds, holder, path.parent,
            )  # fmt: skip
        time.sleep(_SECONDS_BETWEEN_ATTEMPTS)


def find_holder(path: Path, wait_seconds: float) -> str | None:
    """Find the process that holds a lock, without taking it; None when nobody does.

    Args:
        path: of the file.
        wait_seconds: how long to wait for the process to end.

    Raises:
        InputError: the file is none of ours, or cannot be opened.
    """
    deadline = time.monotonic() + wait_seconds
    while True:
        try:
            with _open(path) as file:
                if try_lock(file.fileno()):
                    return None
        except FileNotFoundError:
            return None
        except OSError as error:
            raise InputError(f"{path} cannot be opened ({error.strerror})") from error
        if time.monotonic() >= deadline:
            return _describe_holder(path)
        time.sleep(_SECONDS_BETWEEN_ATTEMPTS)


def _open(path: Path, create: int = 0) -> BinaryIO:
    flags = os.O_RDWR | create | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        descriptor = os.open(path, flags, 0o666)
    except OSError as error:
        if error.errno not in (errno.ELOOP, errno.EISDIR, errno.ENXIO):
            raise
        raise _refuse(path) from error
    file = open(descriptor, "r+b", buffering=0)  # noqa: SIM115
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        file.close()
        raise _refuse(path)
    return file


def _refuse(path: Path) -> InputError:
    return InputError(f"{path} is a link or no regular file, which no run makes it: remove it")


def _write_holder(file: BinaryIO) -> None:
    since = datetime.now(UTC).isoformat(timespec="seconds")
    holder = Holder(os.getpid(), socket.gethostname(), since)
    file.truncate(0)
    file.write(json.dumps(asdict(holder)).encode())


def _describe_holder(path: Path) -> str:
    try:
        return str(parse(Holder, parse_json(read_text(path, _MOST_BYTES))))
    except (DamagedFileError, ValueError):
        return "another process"
