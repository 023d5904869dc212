"""Local files that must stay as they were when the run began.

Whatever the system says of one, such as too many open files or a failing disk, says nothing about
its content: it is a StorageError, as those of the network are.
"""

import contextlib
import hashlib
import io
import os
import resource
from typing import BinaryIO, cast

from neobert_train.storage.failures import describe_system_error
from neobert_train.storage.readers import PositionedReader
from neobert_train.storage.versions import Description, FileVersion, make_changed_error

# Python's default would take a call of the methods below for every 8 KiB.
_BUFFER_BYTES = 1 << 16
_SAMPLE_BYTES = 1 << 16


class _LocalReader(PositionedReader):
    """A file opened for reading, whose failures and changes are StorageErrors.

    Args:
        path: of the file.
        version: that it must have; None for that which it has.
    """

    def __init__(self, path: str, version: FileVersion | None = None) -> None:
        super().__init__()
        self._path, self._descriptor = path, -1
        try:
            self._descriptor = os.open(path, os.O_RDONLY)
            self.version = FileVersion(*self._look())
        except OSError as error:
            self.close()
            raise describe_system_error(error, path) from error
        self._check(version or self.version, self.version)

    def close(self) -> None:
        """Close the file."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
        super().close()

    def _find_size(self) -> int:
        assert self.version.size is not None
        return self.version.size

    def _read(self, count: int) -> bytes:
        left = max(0, self._find_size() - self._position)
        try:
            data = os.pread(self._descriptor, min(count, left), self._position)
            size = self.version.size if data else os.fstat(self._descriptor).st_size
        except OSError as error:
            raise describe_system_error(error, self._path) from error
        self._check(self.version, FileVersion(size))
        return data

    def _check(self, version: FileVersion, now: FileVersion) -> None:
        change = version.find_change(now)
        if change:
            self.close()
            raise make_changed_error(self._path, change)

    def _look(self) -> tuple[int, tuple[tuple[str, str], ...]]:
        """Return size and a hash of head, middle and tail; of a small file, of all of it."""
        size = os.fstat(self._descriptor).st_size
        starts = [0, (size - _SAMPLE_BYTES) // 2, size - _SAMPLE_BYTES]
        pieces = [(start, _SAMPLE_BYTES) for start in starts]
        if size <= len(pieces) * _SAMPLE_BYTES:
            pieces = [(0, size)]
        sample = hashlib.sha256()
        for start, count in pieces:
            sample.update(os.pread(self._descriptor, count, start))
        return size, (("content hash", sample.hexdigest()[:32]),)


def open_local(path: str, version: FileVersion | None) -> BinaryIO:
    """Open a file for reading.

    Raises:
        StorageError: the system does not give it, or it has not the given version.
    """
    return cast(BinaryIO, io.BufferedReader(_LocalReader(path, version), _BUFFER_BYTES))


def describe_local(path: str) -> Description:
    """Return the version of a file.

    Raises:
        StorageError: the system does not give it.
    """
    with _LocalReader(path) as reader:
        return Description(reader.version)


def allow_many_open_files() -> None:
    """Let this process open as many files as the system allows without the superuser.

    Every lane holds a file open for each of the places it reads, and the usual limit is 1,024.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with contextlib.suppress(ValueError, OSError):  # some systems give less than they say
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
