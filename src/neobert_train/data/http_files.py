"""Files on web servers, read through the session of fsspec's HTTP file system.

fsspec's own reading takes the whole file where a server ignores the range, asks for sizes by HEAD
(which signed URLs refuse) and calls every failure of that "not found"; so the requests are ours.
Every function here is one attempt: `retries.retry` calls it again.
"""

import contextlib
import re
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any

import aiohttp
import fsspec
import yarl
from fsspec.asyn import sync

from neobert_train.data.failures import BrokenAnswerError, StorageError
from neobert_train.data.retries import Network
from neobert_train.urls import show_url

_CHUNK_BYTES = 1 << 20
_COMPRESSED_SUFFIXES = (".gz", ".zst", ".bz2", ".xz")


@dataclass(frozen=True, slots=True)
class Description:
    """What a server says of a file.

    Attributes:
        size: bytes, None where it does not tell.
        can_seek: whether any range of it can be asked for.
    """

    size: int | None
    can_seek: bool


def get_http_file_system(network: Network) -> Any:
    """fsspec's instance for these timeouts: one a process, which keeps connections open."""
    configured: dict[str, Any] = {}
    for protocol in ("http", "https"):
        configured |= fsspec.config.conf.get(protocol, {}).get("client_kwargs", {})
    seconds = network.timeout_seconds
    client_kwargs = {
        "trust_env": True,  # proxies from the environment, as curl and the Hub's client do
        **configured,
        # No limit on the whole: a large block over a slow line may take its time.
        "timeout": aiohttp.ClientTimeout(
            total=None, connect=seconds, sock_connect=seconds, sock_read=seconds
        ),
        # Bytes as they are stored: ranges count those, and a .gz is unpacked by its reader.
        "auto_decompress": False,
        "headers": {**configured.get("headers", {}), "Accept-Encoding": "identity"},
    }
    return fsspec.filesystem("http", client_kwargs=client_kwargs)


def describe_http(url: str, network: Network) -> Description:
    """Size and whether ranges work, by asking for one byte."""
    file_system = get_http_file_system(network)
    return sync(file_system.loop, _describe, file_system, url)


def read_http_range(url: str, network: Network, start: int, stop: int, size: int) -> bytes:
    """Bytes [start, stop) of a file of `size` bytes; none are missing."""
    file_system = get_http_file_system(network)
    return sync(file_system.loop, _read_range, file_system, url, start, stop, size)


async def _describe(file_system: Any, url: str) -> Description:
    async with _request(file_system, url, {"Range": "bytes=0-0"}, accept=(416,)) as response:
        has_ranges = response.status == 206
        first, _, size = _parse_content_range(response.headers)
        if has_ranges and first == 0 and size is not None:
            return Description(size, can_seek=True)
        if response.status == 416 and size == 0:  # an empty file has no byte 0
            return Description(0, can_seek=True)
        if response.status == 200:
            return Description(response.content_length, can_seek=response.content_length == 0)
    async with _request(file_system, url) as response:
        size = response.content_length
    return Description(size, can_seek=size == 0 or (has_ranges and first == 0 and size is not None))


async def _read_range(file_system: Any, url: str, start: int, stop: int, size: int) -> bytes:
    wanted, received, chunks = stop - start, 0, []
    headers = {"Range": f"bytes={start}-{stop - 1}"}
    async with _request(file_system, url, headers, accept=(416,)) as response:
        if response.status == 200:
            raise BrokenAnswerError("the server ignored the range that was asked for")
        first, last, total = _parse_content_range(response.headers)
        if response.status == 416 or total not in (None, size):
            raise make_changed_error(url, size, total)
        if (first, last) != (start, stop - 1):
            raise BrokenAnswerError(
                f"bytes {first} to {last} came for {start} to {stop - 1} that were asked for"
            )
        async for chunk in response.content.iter_any():
            received += len(chunk)
            chunks.append(chunk)
            if received > wanted:
                break
    if received != wanted:
        amount = "more" if received > wanted else f"only {received}"
        raise BrokenAnswerError(f"{amount} of the {wanted} bytes asked for came")
    return b"".join(chunks)


class HttpStream:
    """One connection that gives a file from its beginning, for servers without ranges.

    Args:
        url, network: as in `StoredFile`.
        size: bytes that must come, None where the server does not tell.
    """

    def __init__(self, url: str, network: Network, size: int | None) -> None:
        self._url, self._size = url, size
        self._file_system = get_http_file_system(network)
        self._response: aiohttp.ClientResponse | None = None
        self._offset = 0

    def read_at(self, position: int, count: int) -> bytes:
        """`count` bytes from `position` on, fewer at the end alone.

        Connects again where `position` lies behind, or the last attempt failed.
        """
        if position < self._offset:
            self.close()
        try:
            return sync(self._file_system.loop, self._read_at, position, count)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Drop the connection; the next read opens another."""
        response, self._response, self._offset = self._response, None, 0
        if response is not None:
            with contextlib.suppress(RuntimeError):  # at exit the loop may be gone
                self._file_system.loop.call_soon_threadsafe(response.close)

    async def _read_at(self, position: int, count: int) -> bytes:
        if self._response is None:
            self._response = await _open(self._file_system, self._url)
            total = self._response.content_length
            if self._size is not None and total not in (None, self._size):
                raise make_changed_error(self._url, self._size, total)
        while self._offset < position:
            if not await self._read(min(position - self._offset, _CHUNK_BYTES)):
                return b""
        chunks: list[bytes] = []
        while count > 0 and (chunk := await self._read(count)):
            chunks.append(chunk)
            count -= len(chunk)
        return b"".join(chunks)

    async def _read(self, count: int) -> bytes:
        assert self._response is not None
        chunk = await self._response.content.read(count)
        self._offset += len(chunk)
        if not chunk and self._size is not None and self._offset != self._size:
            raise BrokenAnswerError(f"only {self._offset} of {self._size} bytes came")
        return chunk


@contextlib.asynccontextmanager
async def _request(
    file_system: Any, url: str, headers: Mapping[str, str] | None = None, accept: tuple = ()
) -> AsyncIterator[aiohttp.ClientResponse]:
    async with await _open(file_system, url, headers, accept) as response:
        yield response


async def _open(
    file_system: Any, url: str, headers: Mapping[str, str] | None = None, accept: tuple = ()
) -> aiohttp.ClientResponse:
    """A response of status 200, 206 or one of `accept`; others raise."""
    session = await file_system.set_session()
    options = {**file_system.kwargs, "headers": {**file_system.kwargs.get("headers", {})}}
    options["headers"] |= headers or {}
    response = await session.get(_to_sent_url(url), **options)
    try:
        if response.status in accept:
            return response
        response.raise_for_status()
        if response.status not in (200, 206):
            raise BrokenAnswerError(f"HTTP {response.status}, which carries no file")
        encoding = response.headers.get("Content-Encoding", "identity") or "identity"
        if encoding != "identity" and not yarl.URL(url).path.endswith(_COMPRESSED_SUFFIXES):
            raise StorageError(
                f"{show_url(url)}: the server sends it packed with {encoding} though it was asked "
                f"not to: read it from another server, or from a local copy"
            )
    except BaseException:
        response.close()
        raise
    return response


def _to_sent_url(url: str) -> yarl.URL:
    # A URL that needs no quoting is sent to the letter, as its signature may cover the spelling.
    is_quoted = re.fullmatch(r"(?:[!$-;=?-Z\\_a-z~\[\]]|&|%[0-9A-Fa-f]{2})*", url) is not None
    try:
        parsed = yarl.URL(url, encoded=is_quoted)
        if not parsed.host or parsed.port is None:
            raise ValueError
        return parsed
    except ValueError:  # its message may quote a part of a password
        raise StorageError(
            f"{show_url(url)} is not a URL: write reserved characters of a user name or password "
            f"as %2F for `/`, %3F for `?`, %23 for `#`, %40 for `@`"
        ) from None


def _parse_content_range(headers: Mapping[str, str]) -> tuple[int | None, int | None, int | None]:
    """First byte, last byte and size of the file, each None where it is not told."""
    match = re.match(r"bytes\s+(?:(\d+)-(\d+)|\*)/(\d+|\*)", headers.get("Content-Range", ""))
    if match is None:
        return None, None, None
    first, last = (int(group) if group else None for group in match.group(1, 2))
    return first, last, None if match[3] == "*" else int(match[3])


def make_changed_error(url: str, size: int, total: int | None) -> StorageError:
    """The file is not the one that was begun with."""
    now = "is shorter" if total is None else f"has {total}"
    return StorageError(
        f"{show_url(url)} was changed while it was read: it had {size} bytes and now {now}; "
        f"start again, or read a copy that stays as it is"
    )
