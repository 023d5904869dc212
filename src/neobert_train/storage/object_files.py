"""Files of object stores and the Hub, through whichever file system fsspec knows for the URL."""

import asyncio
import functools
import re
import time
from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import Any

import fsspec
from fsspec.asyn import sync
from fsspec.registry import known_implementations

from neobert_train.storage.failures import BrokenAnswerError, StorageError
from neobert_train.storage.retries import run_aside
from neobert_train.storage.versions import Description, FileVersion, make_changed_error
from neobert_train.urls import show_url

# A store gives a range whole or not at all. Over a slow line one of this size is in time.
_LEAST_RANGE_BYTES = 1 << 16
# Marks of a version, and their names in what the file systems of stores say of a file.
_MARKS = {
    "etag": ("ETag", "etag"),
    "md5": ("md5Hash", "content_md5"),
    "date": ("LastModified", "last_modified", "updated", "mtime", "modified", "created"),
}


def describe_object(url: str, seconds: float) -> Description:
    """Return the version of a file, every part of which can be read."""
    return _describe(_Store(url, seconds), url)


class ObjectRange:
    """The bytes [start, stop) of a file of the given version, or the first of them.

    Each attempt asks for a quarter of what the one before did, in case the line is slow.
    """

    def __init__(self, url: str, start: int, stop: int, version: FileVersion) -> None:
        self._url, self._start, self._version = url, start, version
        self._length = stop - start

    def read(self, seconds: float) -> bytes:
        """Return what this attempt asks for; no byte of it is missing."""
        store, length = _Store(self._url, seconds), self._length
        self._length = min(length, max(_LEAST_RANGE_BYTES, length // 4))
        # The Hub's opens a file for each range, and would read 5 MiB ahead in it for nothing.
        options = {} if store.file_system.async_impl else {"cache_type": "none"}
        data: bytes = store.call(
            "cat_file", self._url, start=self._start, end=self._start + length, **options
        )
        if len(data) != length:
            change = self._version.find_change(_describe(store, self._url).version)
            if change:
                raise make_changed_error(self._url, change)
            raise BrokenAnswerError(f"{len(data)} of the {length} bytes asked for came")
        return data


def forget_listings(url: str) -> None:
    """Let the store of a URL be asked again for what it listed before in this process."""
    _build_file_system(url).invalidate_cache()


def list_objects(pattern: str, seconds: float) -> list[tuple[str, Description | None]]:
    """Return the files that a glob matches or that lie below a folder; else the URL itself."""
    store = _Store(pattern, seconds)
    # `?` before `=` is a version or a signature, not a glob.
    if re.search(r"[*\[]|\?(?!.*=)", pattern):
        found = store.call("glob", pattern, detail=True)
    else:
        try:
            info = store.call("info", pattern)
        except FileNotFoundError:
            if not pattern.endswith("/"):
                return [(pattern, None)]  # opening it tells what is missing
            raise
        if info["type"] != "directory":
            return [(pattern, _to_description(pattern, info))]
        found = store.call("find", pattern, detail=True)
    named = ((store.file_system.unstrip_protocol(name), info) for name, info in found.items())
    return [(url, _to_description(url, info)) for url, info in named if info["type"] == "file"]


class _Store:
    """A file system, all calls of which together are given up after so many seconds."""

    def __init__(self, url: str, seconds: float) -> None:
        self.file_system = _build_file_system(url)
        self._seconds = seconds
        self._end = time.monotonic() + seconds

    def call(self, method: str, *arguments: Any, **options: Any) -> Any:
        """Return what a method of the file system returns."""
        seconds = self._end - time.monotonic()
        try:
            if self.file_system.async_impl:
                function = getattr(self.file_system, f"_{method}")
                awaited = functools.partial(function, *arguments, **options)
                return sync(self.file_system.loop, _await_within, awaited, seconds)
            function = getattr(self.file_system, method)
            return run_aside(functools.partial(function, *arguments, **options), seconds)
        except TimeoutError as error:
            raise BrokenAnswerError(f"no whole answer in {self._seconds:.3g} seconds") from error


def _describe(store: _Store, url: str) -> Description:
    return _to_description(url, store.call("info", url))


def _to_description(url: str, info: dict[str, Any]) -> Description:
    if info["type"] == "directory":
        raise IsADirectoryError(url)
    if info["size"] is None:
        raise StorageError(f"{show_url(url)}: its storage does not tell the size: copy it first")
    return Description(_find_version(info))


def _find_version(info: dict[str, Any]) -> FileVersion:
    large = info.get("lfs") or {}  # of the Hub
    values = {"sha256": large.get("sha256"), "git hash": info.get("blob_id")}
    for kind, names in _MARKS.items():
        values[kind] = next((info[name] for name in names if info.get(name)), None)
    marks = ((kind, _to_mark(value)) for kind, value in values.items() if value)
    return FileVersion(info["size"], tuple(marks))


def _to_mark(value: Any) -> str:
    # Listings and answers about one file differ in the type of dates, and in fractions of a second.
    if isinstance(value, datetime):
        value = value.timestamp()
    return str(int(value)) if isinstance(value, float) else str(value).strip('"')


async def _await_within(function: Callable[[], Awaitable[Any]], seconds: float) -> Any:
    async with asyncio.timeout(seconds):
        return await function()


def _build_file_system(url: str) -> Any:
    """Return fsspec's instance: one per process (for some, per thread)."""
    protocol = url.partition("://")[0]
    try:
        file_system_class = fsspec.get_filesystem_class(protocol)
    except ValueError:
        raise StorageError(
            f"{show_url(url)}: the protocol {protocol}:// is not known: write a path, or a URL that "
            f"begins with https://, s3://, gs:// or hf://"
        ) from None
    except ImportError:
        package = known_implementations[protocol]["class"].partition(".")[0]
        raise StorageError(
            f"{show_url(url)}: reading {protocol}:// needs a package: pip install {package}"
        ) from None
    # A size that a listing once gave may be that of an older file. The Hub's file system cannot
    # do without its listings: what it listed stays as it was in this process until `forget_listings`.
    options: dict[str, Any] = {} if protocol == "hf" else {"use_listings_cache": False}
    return file_system_class(**options)
