"""Files to read, wherever they are: on a local disk, a web server, or an object store.

A remote file is read in blocks, each by a request of its own under `retries.retry`: a failure
costs one block, never the file. Servers that know no ranges are read from the beginning, by one
connection that is made again after a failure.
"""

import contextlib
import fnmatch
import functools
import io
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import BinaryIO, cast
from urllib.parse import unquote

from neobert_train.storage.failures import StorageError
from neobert_train.storage.http_files import (
    describe_http,
    list_http_links,
    read_http_range,
)
from neobert_train.storage.local_files import describe_local, open_local
from neobert_train.storage.object_files import ObjectRange, describe_object, list_objects
from neobert_train.storage.object_files import forget_listings as forget_store_listings
from neobert_train.storage.remote_readers import BUFFER_BYTES, BlockReader, ForwardReader
from neobert_train.storage.retries import Network, retry
from neobert_train.storage.versions import Description, FileVersion, make_changed_error
from neobert_train.urls import show_url

__all__ = ["Network", "StorageError", "StoredFile", "forget_listings", "is_url", "list_files"]


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A local or remote file; small, and opened by whichever process it is sent to.

    Every method can raise StorageError. Once it is identified, a file that changes is an error.

    Attributes:
        path: local path or URL, such as `https://...`, `s3://...`, `hf://datasets/...`.
        network: patience with a remote file.
        known: what its storage said of it when the run began; None to ask each time.
    """

    path: str
    network: Network = field(default_factory=Network)
    known: Description | None = None

    @property
    def is_remote(self) -> bool:
        """Whether the path is a URL."""
        return is_url(self.path)

    @property
    def name(self) -> str:
        """Path, or URL without its credentials, for messages."""
        return show_url(self.path) if self.is_remote else self.path

    def identify(self) -> "StoredFile":
        """Return the file with what its storage says of it now."""
        return self if self.known else replace(self, known=self._ask())

    @property
    def version(self) -> FileVersion:
        """Return what tells whether the file has changed."""
        return self._describe().version

    def get_size(self) -> int:
        """Return the size in bytes; reads the whole file where its server does not tell."""
        size = self.version.size
        if size is not None:
            return size
        with self.open() as file:
            return file.seek(0, io.SEEK_END)

    def can_seek(self) -> bool:
        """Return whether a part can be read without what is before it; web servers differ in this."""
        return self._describe().can_seek

    def open(self) -> BinaryIO:
        """Return a buffered binary stream at the beginning of the file; close it.

        It seeks in any case. Where `can_seek` is False, going forward reads what lies between
        and going back reads from the beginning: correct, but slow.
        """
        if not self.is_remote:
            return open_local(self.path, self.known.version if self.known else None)
        described = self._describe()
        if self.known and not _is_http(self.path):  # each answer of a web server tells by itself
            change = self.known.version.find_change(self._ask().version)
            if change:
                raise make_changed_error(self.path, change)
        raw: io.RawIOBase
        if described.can_seek:
            assert described.version.size is not None
            raw = BlockReader(self._build_read_range(described.version), described.version.size)
        else:
            raw = ForwardReader(self.path, self.network, described.version)
        return cast(BinaryIO, io.BufferedReader(raw, BUFFER_BYTES))

    def _describe(self) -> Description:
        return self.known or self._ask()

    def _ask(self) -> Description:
        if not self.is_remote:
            return describe_local(self.path)
        describe = describe_http if _is_http(self.path) else describe_object
        request = functools.partial(describe, self.path)
        return retry(request, self.path, self.network)

    def _build_read_range(self, version: FileVersion) -> Callable[[int, int], bytes]:
        def read_range(start: int, stop: int) -> bytes:
            request: Callable[[float], bytes]
            if _is_http(self.path):
                request = functools.partial(read_http_range, self.path, start, stop, version)
            else:
                request = ObjectRange(self.path, start, stop, version).read
            return retry(request, self.path, self.network)

        return read_range


def is_url(path: str) -> bool:
    """Return whether a path names something remote."""
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", path) is not None


def forget_listings(paths: Iterable[str]) -> None:
    """Let the object stores of URLs be asked again for what they listed before in this process."""
    stores = {path.partition("://")[0]: path for path in paths if is_url(path)}
    for path in stores.values():
        if not _is_http(path):
            with contextlib.suppress(StorageError):  # an unknown protocol, as listing will tell
                forget_store_listings(path)


def list_files(pattern: str, network: Network) -> list[StoredFile]:
    """Return the files that a URL names, sorted; none where a folder or glob holds none.

    A glob gives what it matches. A folder gives all files below it in an object store, and the
    files that its page links to on a web server, where it must end in `/`. Any other URL gives
    itself, unseen.

    Raises:
        StorageError: the folder cannot be listed.
    """
    if _is_http(pattern):
        urls = sorted(set(_list_web_files(pattern, network)))
        return [StoredFile(url, network) for url in urls]
    request = functools.partial(list_objects, pattern)
    found = dict(retry(request, pattern, network))
    return [StoredFile(url, network, found[url]) for url in sorted(found)]


def _list_web_files(pattern: str, network: Network) -> list[str]:
    scheme, _, rest = pattern.partition("://")
    host, _, path = rest.partition("/")
    if not re.search(r"[*\[]", path):  # not `?`, which begins a query
        is_folder = pattern.endswith("/")
        return _list_page(pattern, network, "*", files=True) if is_folder else [pattern]
    if "**" in path:
        raise StorageError(
            f"{show_url(pattern)}: `**` cannot be matched on a web server: write one `*` a folder"
        )
    folders = [f"{scheme}://{host}/"]
    *above, last = path.split("/")
    for name in above:
        if re.search(r"[*\[]", name):
            found = [_list_page(folder, network, name, files=False) for folder in folders]
            folders = [folder for group in found for folder in group]
        else:
            folders = [f"{folder}{name}/" for folder in folders]
    found = [_list_page(folder, network, last or "*", files=True) for folder in folders]
    return [file for group in found for file in group]


def _list_page(folder: str, network: Network, pattern: str, files: bool) -> list[str]:
    """Return the files, or else the folders, that the page of a folder links to."""
    found = []
    for url in retry(functools.partial(list_http_links, folder), folder, network):
        # A page that was redirected from http may name its files by https.
        place = re.sub("^https:", "http:", url)
        prefix = re.sub("^https:", "http:", folder)
        name, slash, below = place.removeprefix(prefix).partition("/")
        is_link = bool(name) and not below and place.startswith(prefix)
        # Pages of Apache link to themselves sorted in other ways: `?C=M;O=A`.
        is_wanted = is_link and "?" not in name and bool(slash) is not files
        if is_wanted and fnmatch.fnmatchcase(unquote(name), pattern):
            found.append(url)
    return found


def _is_http(path: str) -> bool:
    return path.lower().startswith(("http://", "https://"))
