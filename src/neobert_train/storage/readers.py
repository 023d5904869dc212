"""A position in a file, and what the methods of an io stream make of it."""

import io
from abc import abstractmethod
from typing import Any


class PositionedReader(io.RawIOBase):
    """A stream whose subclasses say how large it is, and read at its position."""

    def __init__(self) -> None:
        self._position = 0

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True, at whatever price."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        """Set the position, possibly past the end; costs no request but to find the end."""
        if whence not in (io.SEEK_SET, io.SEEK_CUR, io.SEEK_END):
            raise ValueError(f"whence is {whence}, not 0, 1 or 2")
        base = 0
        if whence == io.SEEK_CUR:
            base = self._position
        elif whence == io.SEEK_END:
            base = self._find_size()
        if base + offset < 0:
            raise ValueError(f"seek to {base + offset}, before the beginning of the file")
        self._position = base + offset
        return self._position

    def readinto(self, buffer: Any, /) -> int:
        """Fill the buffer, or a part of it where that takes more than one request."""
        if self.closed:
            raise ValueError("read of a closed file")
        if not len(buffer):
            return 0
        data = self._read(len(buffer))
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)

    @abstractmethod
    def _find_size(self) -> int:
        """Return the size of the file, in bytes."""

    @abstractmethod
    def _read(self, count: int) -> bytes | memoryview:
        """Return up to `count` bytes at the position; none only at the end."""
