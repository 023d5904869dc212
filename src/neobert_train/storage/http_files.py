"""Files on web servers, read through the session of fsspec's HTTP file system.

fsspec's own reading takes the whole file where a server ignores the range, asks for sizes by HEAD
(which signed URLs refuse) and calls every failure of that "not found"; so the requests are ours.
Every function here is one attempt, which ends within the seconds it is given: `retries.retry` calls
it again.
"""

import asyncio
import contextlib
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any, TypeVar

import aiohttp
import fsspec
import yarl
from fsspec.asyn import sync

from neobert_train.storage.failures import BrokenAnswerError, StorageError
from neobert_train.storage.versions import Description, FileVersion, make_changed_error
from neobert_train.urls import show_url

T = TypeVar("T")

_CHUNK_BYTES = 1 << 20
# What comes more slowly counts as silence. A line of 10 Mbit/s gives more to each of 100 readers.
LEAST_BYTES_PER_SECOND = 8 << 10
_COMPRESSED_SUFFIXES = (".gz", ".zst", ".bz2", ".xz")


class _Limit:
    """When an attempt ends, and how many bytes must have come by then."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._end = time.monotonic() + seconds
        self.least_bytes = max(1, int(LEAST_BYTES_PER_SECOND * seconds))

    def begin(self) -> asyncio.Timeout:
        """Return a context that raises TimeoutError in what is awaited when time is up."""
        return asyncio.timeout(self._end - time.monotonic())


def get_http_file_system() -> Any:
    """Return fsspec's instance: one per process, which keeps connections open."""
    configured: dict[str, Any] = {}
    for protocol in ("http", "https"):
        configured |= fsspec.config.conf.get(protocol, {}).get("client_kwargs", {})
    client_kwargs = {
        "trust_env": True,  # proxies from the environment, as curl and the Hub's client do
        **configured,
        # aiohttp's own limits start anew at every byte, so that each attempt has one of ours.
        "timeout": aiohttp.ClientTimeout(total=None, sock_connect=None),
        # Bytes as they are stored: ranges count those, and a .gz is unpacked by its reader.
        "auto_decompress": False,
        "headers": {**configured.get("headers", {}), "Accept-Encoding": "identity"},
    }
    return fsspec.filesystem("http", get_client=_build_session, client_kwargs=client_kwargs)


async def _build_session(**options: Any) -> aiohttp.ClientSession:
    # aiohttp would let the 101st connection wait, and every stream that is being read holds one.
    options.setdefault("connector", aiohttp.TCPConnector(limit=0))
    return aiohttp.ClientSession(**options)


def describe_http(url: str, seconds: float) -> Description:
    """Return the version of a file and whether ranges work, by asking for one byte."""
    return _run(_describe, seconds, url)


def read_http_range(url: str, start: int, stop: int, version: FileVersion, seconds: float) -> bytes:
    """Return the bytes [start, stop) of a file of the given version.

    Fewer of them over a slow line: those that came in time.
    """
    return _run(_read_range, seconds, url, start, stop, version)


def list_http_links(folder: str, seconds: float) -> list[str]:
    """Return the URLs that the page of a folder links to."""

    # fsspec's own glob leaves out folders that it fails to list; here every one is retried.
    async def list_links(file_system: Any, limit: _Limit) -> list[str]:
        async with _answering(limit):
            links: list[str] = await file_system._ls(folder, detail=False)
        return links

    return _run(list_links, seconds)


def _run(function: Callable[..., Awaitable[T]], seconds: float, *arguments: Any) -> T:
    """Return `function(file_system, limit, *arguments)`, run by fsspec's event loop."""
    file_system = get_http_file_system()
    result: T = sync(file_system.loop, function, file_system, _Limit(seconds), *arguments)
    return result


@contextlib.asynccontextmanager
async def _answering(limit: _Limit) -> AsyncIterator[None]:
    try:
        async with limit.begin():
            yield
    except TimeoutError:
        raise BrokenAnswerError(f"no answer in {limit.seconds:.3g} seconds") from None


async def _describe(file_system: Any, limit: _Limit, url: str) -> Description:
    first_byte = {"Range": "bytes=0-0"}
    async with _request(file_system, limit, url, first_byte, accept=(416,)) as response:
        has_ranges = response.status == 206
        first, _, size = _parse_content_range(response.headers)
        if has_ranges and first == 0 and size is not None:
            return Description(_find_version(size, response))
        if response.status == 416 and size == 0:  # an empty file has no byte 0
            return Description(_find_version(0, response))
        if response.status == 200:
            size = response.content_length
            return Description(_find_version(size, response), can_seek=size == 0)
    async with _request(file_system, limit, url) as response:
        size = response.content_length
        can_seek = size == 0 or (has_ranges and first == 0 and size is not None)
        return Description(_find_version(size, response), can_seek)


def _find_version(size: int | None, response: aiohttp.ClientResponse) -> FileVersion:
    headers = response.headers
    marks = {
        "etag": headers.get("ETag", "").removeprefix("W/").strip('"'),
        "date": headers.get("Last-Modified", ""),
    }
    return FileVersion(size, tuple((kind, value) for kind, value in marks.items() if value))


def _check_version(
    url: str, version: FileVersion, size: int | None, response: aiohttp.ClientResponse
) -> None:
    change = version.find_change(_find_version(size, response))
    if change:
        raise make_changed_error(url, change)


async def _read_range(
    file_system: Any, limit: _Limit, url: str, start: int, stop: int, version: FileVersion
) -> bytes:
    wanted = stop - start
    headers = {"Range": f"bytes={start}-{stop - 1}"}
    async with _request(file_system, limit, url, headers, accept=(416,)) as response:
        if response.status == 200:
            raise BrokenAnswerError("the server ignored the range that was asked for")
        first, last, size = _parse_content_range(response.headers)
        if response.status == 416 and size is None:
            raise make_changed_error(url, f"fewer than {version.size:,} bytes")
        _check_version(url, version, size, response)
        if (first, last) != (start, stop - 1):
            raise BrokenAnswerError(
                f"bytes {first} to {last} came for {start} to {stop - 1} that were asked for"
            )
        data = await _receive(response, wanted + 1, limit)  # one more than should come
        is_over = response.content.at_eof()
    if len(data) > wanted or (is_over and len(data) < wanted):
        amount = "more" if len(data) > wanted else f"only {len(data)}"
        raise BrokenAnswerError(f"{amount} of the {wanted} bytes asked for came")
    return data


async def _receive(response: aiohttp.ClientResponse, count: int, limit: _Limit) -> bytes:
    """Return the next `count` bytes; fewer at the end of the answer, and where time is up.

    Raises:
        BrokenAnswerError: time is up, and they came more slowly than at the least rate.
    """
    chunks, missing = [], count
    try:
        async with limit.begin():
            while missing and (chunk := await response.content.read(missing)):
                chunks.append(chunk)
                missing -= len(chunk)
    except TimeoutError:
        received = count - missing
        if received < limit.least_bytes:
            raise BrokenAnswerError(
                f"only {received:,} bytes came in {limit.seconds:.3g} seconds"
            ) from None
    return b"".join(chunks)


class HttpStream:
    """One connection that gives a file from its beginning, for servers without ranges.

    Args:
        url: of the file.
        version: that it must have.
    """

    def __init__(self, url: str, version: FileVersion) -> None:
        self._url, self._version = url, version
        self._response: aiohttp.ClientResponse | None = None
        self._offset = 0

    def read_at(self, position: int, count: int, seconds: float) -> bytes:
        """Return up to `count` bytes from `position` on; none only at the end.

        Connects again where `position` lies behind, or the last attempt failed. Whatever lies
        between is read, at the least rate in every `seconds`.
        """
        if position < self._offset:
            self.close()
        try:
            return _run(self._read_at, seconds, position, count)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Drop the connection; the next read opens another."""
        response, self._response, self._offset = self._response, None, 0
        if response is not None:
            with contextlib.suppress(RuntimeError):  # at exit the loop may be gone
                get_http_file_system().loop.call_soon_threadsafe(response.close)

    async def _read_at(self, file_system: Any, limit: _Limit, position: int, count: int) -> bytes:
        if self._response is None:
            async with _answering(limit):
                self._response = await _open(file_system, self._url)
            size = self._response.content_length
            _check_version(self._url, self._version, size, self._response)
        while self._offset < position:
            if not await self._read(min(position - self._offset, _CHUNK_BYTES), limit):
                return b""
            limit = _Limit(limit.seconds)
        return await self._read(count, limit)

    async def _read(self, count: int, limit: _Limit) -> bytes:
        assert self._response is not None
        data = await _receive(self._response, count, limit)
        self._offset += len(data)
        is_over = len(data) < count and self._response.content.at_eof()
        if is_over and self._version.size not in (None, self._offset):
            raise BrokenAnswerError(f"only {self._offset} of {self._version.size} bytes came")
        return data


@contextlib.asynccontextmanager
async def _request(
    file_system: Any,
    limit: _Limit,
    url: str,
    headers: Mapping[str, str] | None = None,
    accept: tuple[int, ...] = (),
) -> AsyncIterator[aiohttp.ClientResponse]:
    async with _answering(limit):
        opened = await _open(file_system, url, headers, accept)
    async with opened as response:
        yield response


async def _open(
    file_system: Any,
    url: str,
    headers: Mapping[str, str] | None = None,
    accept: tuple[int, ...] = (),
) -> aiohttp.ClientResponse:
    """Return a response of status 200, 206 or one of `accept`; others raise."""
    session = await file_system.set_session()
    options = {**file_system.kwargs, "headers": {**file_system.kwargs.get("headers", {})}}
    options["headers"] |= headers or {}
    response: aiohttp.ClientResponse = await session.get(_to_sent_url(url), **options)
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
    """Return first byte, last byte and size of the file, each None where the header does not say."""
    match = re.match(r"bytes\s+(?:(\d+)-(\d+)|\*)/(\d+|\*)", headers.get("Content-Range", ""))
    if match is None:
        return None, None, None
    first, last = (int(group) if group else None for group in match.group(1, 2))
    return first, last, None if match[3] == "*" else int(match[3])
