"""Seekable streams over remote files: by ranges, or over one connection from the beginning."""

import functools
from collections.abc import Callable

from neobert_train.storage.http_files import HttpStream
from neobert_train.storage.readers import PositionedReader
from neobert_train.storage.retries import Network, retry
from neobert_train.storage.versions import FileVersion

# Small reads are served from a buffer of this size, which the caller lays over a reader.
BUFFER_BYTES = 1 << 18
# A request costs a round trip, so reading ahead grows while a file is read in order; a seek
# begins with only what is asked for. Every lane of a worker may hold a file open, so the sum of
# what is read ahead is kept in the hundreds of MiB.
_FIRST_AHEAD_BYTES = 1 << 20
_LARGEST_AHEAD_BYTES = 1 << 22
_LARGEST_REQUEST_BYTES = 1 << 24  # a failure costs no more than this
_LEAST_REQUEST_BYTES = 1 << 16


class BlockReader(PositionedReader):
    """Reads ranges, ahead of what is asked for.

    Args:
        read_range: the bytes in [start, stop), or the first of them where the line is slow.
        size: bytes in the file.
    """

    def __init__(self, read_range: Callable[[int, int], bytes], size: int) -> None:
        super().__init__()
        self._read_range, self._size = read_range, size
        self._block, self._block_start = memoryview(b""), 0
        self._ahead = 0
        self._most = _LARGEST_REQUEST_BYTES  # less where the last request was not answered whole

    def _find_size(self) -> int:
        return self._size

    def _read(self, count: int) -> memoryview:
        if self._position >= self._size:
            return memoryview(b"")
        if not 0 <= self._position - self._block_start < len(self._block):
            self._fetch(count)
        offset = self._position - self._block_start
        return self._block[offset : offset + count]

    def _fetch(self, count: int) -> None:
        is_next = self._position == self._block_start + len(self._block)
        grown = max(2 * self._ahead, _FIRST_AHEAD_BYTES)
        self._ahead = min(grown, _LARGEST_AHEAD_BYTES) if is_next else 0
        # A large read comes without its last part, which the buffer above asks for next.
        length = min(max(count + BUFFER_BYTES, self._ahead), self._most)
        stop = min(self._position + length, self._size)
        self._block = memoryview(b"")  # so that two blocks are never held at once
        self._block_start = self._position
        self._block = memoryview(self._read_range(self._position, stop))
        if len(self._block) < stop - self._position:
            self._most = max(len(self._block), _LEAST_REQUEST_BYTES)
        else:
            self._most = min(self._most * 5 // 4, _LARGEST_REQUEST_BYTES)

    def close(self) -> None:
        """Free the block."""
        self._block = memoryview(b"")
        super().close()


class ForwardReader(PositionedReader):
    """Reads one stream from its beginning, and again from there after a seek backwards."""

    def __init__(self, url: str, network: Network, version: FileVersion) -> None:
        super().__init__()
        self._url, self._network, self._size = url, network, version.size
        self._stream = HttpStream(url, version)

    def _find_size(self) -> int:
        if self._size is None:
            size = 0
            while data := self._read_at(size, _FIRST_AHEAD_BYTES):
                size += len(data)
            self._size = size
        return self._size

    def _read(self, count: int) -> bytes:
        if self._size is not None and self._position >= self._size:
            return b""
        return self._read_at(self._position, min(count, _LARGEST_REQUEST_BYTES))

    def _read_at(self, position: int, count: int) -> bytes:
        request = functools.partial(self._stream.read_at, position, count)
        return retry(request, self._url, self._network)

    def close(self) -> None:
        """Drop the connection."""
        if not self.closed:
            self._stream.close()
        super().close()
