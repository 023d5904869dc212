"""Files that are written whole or not at all, and read only where they are what they should be."""

import contextlib
import errno
import fcntl
import hashlib
import json
import logging
import os
import re
import shutil
import stat
import time
from collections.abc import Iterable, Iterator
from io import BufferedReader
from pathlib import Path
from typing import Any, BinaryIO

logger = logging.getLogger(__name__)

TEMPORARY_PREFIX = ".tmp-"
# What any JSON file of ours may have; the state of 100,000 lanes is a tenth of it.
MOST_JSON_BYTES = 1 << 30
_SECONDS_BETWEEN_LOOKS = 0.1
_CHECKSUM, _CONTENT = "sha256", "content"
_HELD = (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES)
# EBADF is what NFS says of a folder.
_UNSUPPORTED = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOLCK, errno.EBADF)


class DamagedFileError(Exception):
    """A file that is not one that was written here; says what is wrong with it, not which it is."""


def open_regular(path: Path) -> BufferedReader:
    """Open a file for reading without waiting for one that is a pipe or a device.

    Raises:
        OSError: it cannot be opened, or is not a regular file.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(0, "it is not a regular file", str(path))
    return open(descriptor, "rb")


def read_text(path: Path, most_bytes: int = MOST_JSON_BYTES) -> str:
    """Read a text file.

    Raises:
        DamagedFileError: it cannot be read, is larger than `most_bytes` or not UTF-8.
    """
    try:
        with open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
            data = file.read(most_bytes + 1) if size <= most_bytes else b""
        if max(size, len(data)) > most_bytes:
            raise DamagedFileError(f"it has more than {most_bytes:,} bytes")
        return data.decode()
    except OSError as error:
        raise DamagedFileError(error.strerror or str(error)) from error
    except UnicodeDecodeError as error:
        raise DamagedFileError(f"it is not UTF-8 (byte {error.start})") from error


def parse_json(text: str) -> Any:
    """Parse JSON as Python writes it, NaN and Infinity included.

    Raises:
        DamagedFileError: it is not JSON.
    """
    try:
        return json.loads(text)
    except RecursionError as error:
        raise DamagedFileError("it is nested too deeply") from error
    except ValueError as error:
        raise DamagedFileError(f"it is not JSON: {error}") from error


def read_checked_json(path: Path) -> Any:
    """Read the value that `write_checked_json` wrote, or one of a file without a checksum.

    Raises:
        DamagedFileError: it cannot be read, or is not what was written.
    """
    value = parse_json(read_text(path))
    if not (isinstance(value, dict) and value.keys() == {_CHECKSUM, _CONTENT}):
        return value  # written before there were checksums
    if value[_CHECKSUM] != hash_json(value[_CONTENT]):
        raise DamagedFileError(f"its content is not what its {_CHECKSUM} was computed from")
    return value[_CONTENT]


def write_checked_json(path: Path, value: Any, indent: int | None = 2) -> None:
    """Write a JSON file with a checksum of its value, atomically."""
    checked = {_CHECKSUM: hash_json(value), _CONTENT: value}
    write_atomically(path, to_json(checked, indent))


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file atomically."""
    write_atomically(path, to_json(value))


def to_json(value: Any, indent: int | None = 2) -> str:
    """Return the content of a JSON file, indented for people to read."""
    return json.dumps(value, indent=indent, ensure_ascii=False) + "\n"


def write_atomically(path: Path, text: str) -> None:
    """Write a whole file or nothing, also when the process is killed half-way.

    Halves of surrogate pairs, which file names that are not UTF-8 come with, are written as JSON
    escapes them.
    """
    with open_atomically(path) as file:
        file.write(text.encode(errors="backslashreplace"))


@contextlib.contextmanager
def open_atomically(path: Path) -> Iterator[BinaryIO]:
    """Open a file for writing that takes its place, synced, when the block ends without an error."""
    # Of this process only: another may be writing the same file.
    temporary = path.with_name(f"{TEMPORARY_PREFIX}{os.getpid()}-{path.name}")
    remove(temporary)  # left by a killed process, or a link that leads elsewhere
    try:
        with open(temporary, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def clear_drafts(folder: Path, files: Iterable[Path]) -> None:
    """Remove what `open_atomically` left beside files when its process was killed."""
    names = "|".join(re.escape(file.name) for file in files)
    draft = re.compile(rf"{re.escape(TEMPORARY_PREFIX)}([0-9]+-)?({names})")
    for path in folder.iterdir():
        if draft.fullmatch(path.name) and not path.is_dir():
            path.unlink()


def remove(path: Path) -> None:
    """Remove a file, a folder with all that is in it, or a link; nothing if it is not there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def wait_until_seen(path: Path, seconds: float) -> bool:
    """Wait for something that another host has just made; return whether it came into sight.

    NFS keeps for up to a minute what a folder holds, and what it does not. It asks the server again
    when the folder is opened.
    """
    deadline = time.monotonic() + seconds
    while True:
        with contextlib.suppress(OSError):
            os.close(os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY))
        if os.path.lexists(path):
            return True
        if time.monotonic() >= deadline:
            return False
        time.sleep(_SECONDS_BETWEEN_LOOKS)


def try_lock(descriptor: int) -> bool:
    """Lock an open file or folder until it is closed; return False where another process has it.

    A file system that knows no locks is taken for one that nobody else uses, with a warning.

    Raises:
        OSError: any other failure.
    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _HELD:
            return False
        if error.errno not in _UNSUPPORTED:
            raise
        logger.warning(
            "the file system has no locks (%s): make sure that no other process writes to the same "
            "folder", error.strerror,
        )  # fmt: skip
    return True


def is_at(descriptor: int, path: Path) -> bool:
    """Return whether an open file or folder is still the one at a path, and no link to it."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.lstat(path))
    except FileNotFoundError:
        return False


def hash_file(path: Path) -> str:
    """Compute the sha256 of a regular file, in hexadecimal."""
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def make_readable(folder: Path) -> None:
    """Give the safetensors files of a folder the mode of any new file; the library leaves them private."""
    probe = folder / f"{TEMPORARY_PREFIX}{os.getpid()}-mode"
    probe.touch()
    mode = stat.S_IMODE(probe.stat().st_mode)
    probe.unlink()
    for file in folder.glob("*.safetensors"):
        file.chmod(mode)


def sync_folder(folder: Path) -> None:
    """Make renames within a folder survive a power loss."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_tree(folder: Path) -> None:
    """Make all that is in a folder survive a power loss."""
    for path in folder.rglob("*"):
        if path.is_file():
            with open(path, "rb") as file:
                os.fsync(file.fileno())
    for path in [folder, *(path for path in folder.rglob("*") if path.is_dir())]:
        sync_folder(path)


def hash_json(value: Any) -> str:
    """Compute the sha256 of a value that JSON can hold, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
