"""Files compressed with gzip, bzip2, xz or zstandard, as streams that notice where they are cut."""

import bz2
import gzip
import io
import lzma
import zlib
from collections.abc import Callable
from functools import partial
from typing import Any, BinaryIO

import zstandard

from neobert_train.storage.stored_files import is_url

# What reading a damaged or vanished file raises, compressed or not.
READ_ERRORS = (OSError, EOFError, zlib.error, lzma.LZMAError, zstandard.ZstdError)

_READ_BYTES = 1 << 16
_MOST_BYTES_GIVEN = 1 << 20
# Its decompressor knows no such limit, and may give 32 KiB for a byte.
_ZSTANDARD_READ_BYTES = 1 << 11
_LARGEST_WINDOW_BYTES = 1 << 31  # as `zstd --long=31` writes


class _Frames(io.RawIOBase):
    """Reads compressed streams that follow one another; raises EOFError where the last is cut off.

    The readers of `bz2`, `lzma` and `zstandard` take files that are cut off or damaged between two
    streams for short ones, that of `zstandard` any file that is cut off.

    Args:
        start: makes the decompressor of one stream.
        read_bytes: bytes decompressed at a time.
        limits: what its `decompress` takes beside the bytes.
        file: the compressed file.
    """

    def __init__(
        self, start: Callable[[], Any], read_bytes: int, limits: tuple[int, ...], file: BinaryIO
    ) -> None:
        self._start, self._read_bytes, self._limits, self._file = start, read_bytes, limits, file
        self._stream, self._is_begun = start(), False
        self._data = memoryview(b"")

    def readable(self) -> bool:
        """Return True."""
        return True

    def readinto(self, buffer: Any, /) -> int:
        """Fill the buffer in part; gives nothing only at the end."""
        while not self._data:
            block = self._stream.unused_data if self._stream.eof else b""
            if self._stream.eof:
                self._stream, self._is_begun = self._start(), False
            if getattr(self._stream, "needs_input", True):
                block = block or self._file.read(self._read_bytes)
                if not block and self._is_begun:
                    raise EOFError("the compressed file ends before its end-of-stream marker")
                if not block:
                    return 0
                if not self._is_begun:
                    block = block.lstrip(b"\0")  # xz pads its streams
                    self._is_begun = bool(block)
            if self._is_begun:
                self._data = memoryview(self._stream.decompress(block, *self._limits))
        count = min(len(buffer), len(self._data))
        buffer[:count], self._data = self._data[:count], self._data[count:]
        return count


def _start_zstandard() -> Any:
    return zstandard.ZstdDecompressor(max_window_size=_LARGEST_WINDOW_BYTES).decompressobj()


_OPENERS: dict[str, Callable[[BinaryIO], Any]] = {
    ".gz": partial(gzip.open, mode="rb"),
    ".bz2": partial(_Frames, bz2.BZ2Decompressor, _READ_BYTES, (_MOST_BYTES_GIVEN,)),
    ".xz": partial(_Frames, lzma.LZMADecompressor, _READ_BYTES, (_MOST_BYTES_GIVEN,)),
    ".zst": partial(_Frames, _start_zstandard, _ZSTANDARD_READ_BYTES, ()),
}
COMPRESSED_SUFFIXES = tuple(_OPENERS)


def get_file_name(path: str) -> str:
    """Return a path or URL in lower case without the query, which suffixes are looked for in."""
    return path.partition("?")[0].lower() if is_url(path) else path.lower()


def is_compressed(path: str) -> bool:
    """Return whether the name of a file says that it is compressed."""
    return get_file_name(path).endswith(COMPRESSED_SUFFIXES)


def decompress(path: str, file: BinaryIO) -> Any:
    """Return the stream that a file holds, compressed or not, by its name; close it.

    Reading it raises READ_ERRORS.
    """
    for suffix, open_stream in _OPENERS.items():
        if get_file_name(path).endswith(suffix):
            stream = open_stream(file)
            return io.BufferedReader(stream) if isinstance(stream, io.RawIOBase) else stream
    return file
