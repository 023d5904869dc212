"""Files of object stores and the Hub, through whichever file system fsspec knows for the URL."""

import re
from typing import Any

import fsspec
from fsspec.registry import known_implementations

from neobert_train.data.failures import BrokenAnswerError, StorageError
from neobert_train.data.http_files import Description, make_changed_error
from neobert_train.data.retries import Network
from neobert_train.urls import show_url


def describe_object(url: str, network: Network) -> Description:
    """The size of a file, every part of which can be read."""
    info = _build_file_system(url, network).info(url)
    if info["type"] == "directory":
        raise IsADirectoryError(url)
    if info["size"] is None:
        raise StorageError(f"{show_url(url)}: its storage does not tell the size: copy it first")
    return Description(info["size"], can_seek=True)


def read_object_range(url: str, network: Network, start: int, stop: int, size: int) -> bytes:
    """Bytes [start, stop) of a file of `size` bytes; none are missing."""
    file_system = _build_file_system(url, network)
    # The Hub's opens a file for each range, and would read 5 MiB ahead in it for nothing.
    options = {} if file_system.async_impl else {"cache_type": "none"}
    data = file_system.cat_file(url, start=start, end=stop, **options)
    if len(data) != stop - start:
        now = describe_object(url, network).size
        if now != size:
            raise make_changed_error(url, size, now)
        raise BrokenAnswerError(f"{len(data)} of the {stop - start} bytes asked for came")
    return data


def list_objects(pattern: str, network: Network) -> list[str]:
    """URLs of the files that a glob matches or that lie below a folder; else the URL itself."""
    file_system = _build_file_system(pattern, network)
    file_system.invalidate_cache()
    # `?` before `=` is a version or a signature, not a glob.
    if re.search(r"[*\[]|\?(?!.*=)", pattern):
        found = file_system.glob(pattern, detail=True)
    else:
        try:
            if file_system.info(pattern)["type"] != "directory":
                return [pattern]
        except FileNotFoundError:
            if not pattern.endswith("/"):
                return [pattern]  # opening it tells what is missing
            raise
        found = file_system.find(pattern, detail=True)
    files = [name for name, info in found.items() if info["type"] == "file"]
    return [file_system.unstrip_protocol(name) for name in files]


def _build_file_system(url: str, network: Network) -> Any:
    """fsspec's instance: one a process (for some, a thread) and set of options."""
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
    # do without its listings: what it listed stays as it was in this process until `list_objects`.
    options: dict[str, Any] = {} if protocol == "hf" else {"use_listings_cache": False}
    if protocol in ("s3", "s3a"):
        configured = fsspec.config.conf.get("s3", {}).get("config_kwargs", {})
        seconds = network.timeout_seconds
        options["config_kwargs"] = configured | {
            "connect_timeout": seconds,
            "read_timeout": seconds,
        }
    return file_system_class(**options)
