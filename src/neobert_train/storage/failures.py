"""Classify read failures as transient or permanent, and describe the permanent ones.

The messages hold no credentials: no user names, passwords, query strings of signed URLs.
"""

import errno
import os
import re
from collections.abc import Iterator
from http import HTTPStatus
from urllib.parse import urlsplit

import aiohttp
import psutil
from aiohttp.http_exceptions import HttpProcessingError

from neobert_train.errors import InputError
from neobert_train.urls import hide_credentials, show_url

# The packages below the file systems, whose errors are not all OSErrors.
_NETWORK_PACKAGES = {
    "aiobotocore", "aiohttp", "botocore", "gcsfs", "google", "hf_xet", "http", "httpcore",
    "httpcore2", "httpx", "httpx2", "requests", "urllib3",
}  # fmt: skip
_PERMANENT = (
    FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError,
    aiohttp.InvalidURL, aiohttp.NonHttpUrlClientError, aiohttp.TooManyRedirects,
    aiohttp.ClientConnectorCertificateError,
)  # fmt: skip
_TOO_MANY_FILES = (errno.EMFILE, errno.ENFILE)
_LEAST_MEMORY_BYTES = 2 << 30
_FIXES = {
    errno.EMFILE: "raise the limit of open files (ulimit -n 65536), or lower data.shuffle_units",
    errno.ENFILE: "end what holds too many files open on this machine, or raise fs.file-max",
    errno.EACCES: "give the user of this process the right to read it",
    errno.EPERM: "give the user of this process the right to read it",
    errno.ENOENT: "restore it",
    errno.ENOMEM: "free memory, for example by fewer data.num_workers",
    errno.ESTALE: "mount its network file system again",
    errno.EIO: "check its disk or network file system (dmesg)",
}
_LOGINS = {
    "hf": "log in again with `hf auth login`, and ask for access on the page of a gated repository",
    "s3": "log in again, e.g. with `aws sso login` or `aws configure`",
    "gs": "log in again with `gcloud auth application-default login`",
}


class StorageError(InputError, OSError):
    """A file that cannot be read: names the URL without its credentials, the cause and the fix.

    Attributes:
        is_permanent: whether another attempt is pointless (no such file, no access, no such
            protocol). Otherwise the retries are spent, which says nothing about the file itself.
    """

    def __init__(self, message: str, is_permanent: bool = True) -> None:
        super().__init__(message)
        self.is_permanent = is_permanent


class BrokenAnswerError(Exception):
    """An answer that is not what was asked for: cut short, other bytes. Worth another attempt."""


def is_transient(error: BaseException) -> bool:
    """Return whether the same request may well succeed later."""
    status = _find_status(error)
    if status is not None:
        return status in (408, 425, 429) or status >= 500
    causes = list(iter_causes(error))
    if _find_number(error) in _TOO_MANY_FILES:
        return False
    if any(isinstance(cause, _PERMANENT) or _lacks_credentials(cause) for cause in causes):
        return False
    passing = (OSError, EOFError, BrokenAnswerError)
    return any(isinstance(cause, passing) or _is_of_network(cause) for cause in causes)


def _is_of_network(error: BaseException) -> bool:
    return type(error).__module__.partition(".")[0] in _NETWORK_PACKAGES


def _lacks_credentials(error: BaseException) -> bool:
    # botocore.NoCredentialsError, google.auth's DefaultCredentialsError, botocore's TokenRetrieval
    return bool(re.search("Credential|Token|RefreshError", type(error).__name__))


def iter_causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yield the error, what it was raised from, and so on."""
    while error is not None:
        yield error
        error = error.__cause__


def _find_status(error: BaseException) -> int | None:
    """Return the HTTP status behind an error of aiohttp, httpx, requests, botocore or gcsfs."""
    causes = list(iter_causes(error))
    if any(isinstance(cause, HttpProcessingError) for cause in causes):
        return None  # aiohttp's word for an answer cut short or garbled, which it gives a code 400
    for cause in causes:
        response = getattr(cause, "response", None)
        if isinstance(response, dict):  # botocore
            candidates = [response.get("ResponseMetadata", {}).get("HTTPStatusCode")]
        else:
            candidates = [getattr(response, "status_code", None)]  # httpx, requests, the Hub
        candidates += [getattr(cause, "status", None), getattr(cause, "code", None)]
        for status in candidates:
            if isinstance(status, int) and 400 <= status < 600:
                return int(status)
    return None


def is_of_system(error: BaseException) -> bool:
    """Return whether the system or the network failed, which says nothing about a file's content.

    The errors of readers about what they read have no number of the system's.
    """
    if isinstance(error, MemoryError):
        # Where there is memory left, damage has made up a length that no machine has.
        available: int = psutil.virtual_memory().available
        return available < _LEAST_MEMORY_BYTES
    kinds = (StorageError, ConnectionError, TimeoutError)
    return _find_status(error) is not None or any(
        isinstance(cause, (*kinds, *_PERMANENT))
        or _is_of_network(cause)
        or getattr(cause, "errno", None) is not None
        for cause in iter_causes(error)
    )


def _find_number(error: BaseException) -> int | None:
    """Return the number of the system's error; those of name resolution are below 0."""
    numbers = (getattr(cause, "errno", None) for cause in iter_causes(error))
    return next((number for number in numbers if isinstance(number, int) and number > 0), None)


def describe_system_error(error: BaseException, name: str) -> StorageError:
    """Return what the system or the network says of a file, and the fix."""
    number = errno.ENOMEM if isinstance(error, MemoryError) else _find_number(error)
    reason = explain(error) if number is None else os.strerror(number)
    fix = _FIXES.get(number or 0, "check its storage, and that it may be read")
    return StorageError(f"{name}: cannot be read ({reason}): {fix}; the same command continues")


def describe_permanent(error: BaseException, url: str) -> StorageError | None:
    """Return what is wrong with a file, and the fix; None for an error that no storage raises."""
    shown, host, status = show_url(url), get_host(url), _find_status(error)
    if _find_number(error) in _TOO_MANY_FILES:
        return describe_system_error(error, shown)
    causes = tuple(iter_causes(error))
    refused = any(isinstance(c, PermissionError) or _lacks_credentials(c) for c in causes)
    if status in (401, 403, 407) or (refused and status != 404):
        fix = _LOGINS.get(_get_service(url), "get a new token or a newly signed URL")
        return StorageError(
            f"{shown}: access was refused ({explain(error)}): the token may be missing, expired "
            f"or without access to {host}; {fix}"
        )
    if status in (404, 410) or any(isinstance(c, FileNotFoundError) for c in causes):
        private = "; a private one needs `hf auth login`" if _get_service(url) == "hf" else ""
        answer = f" ({explain(error)})" if status else ""
        return StorageError(f"{shown}: no such file{answer}: check its name on {host}{private}")
    if isinstance(error, IsADirectoryError):
        return StorageError(f"{shown} is a folder: name the files in it, e.g. by a glob")
    if isinstance(error, aiohttp.RedirectClientError):
        target = hide_credentials(str(error).partition(" ")[0])
        return StorageError(
            f"{shown}: {host} answers with a redirect to {target}, and only those to http:// and "
            f"https:// are followed: write the URL of the file itself"
        )
    if isinstance(error, aiohttp.TooManyRedirects):
        return StorageError(f"{shown}: {host} answers with redirects without end: check the URL")
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        fix = "trust its authority on this machine (SSL_CERT_FILE), or check the clock"
        return StorageError(f"{shown}: the certificate of {host} is not trusted: {fix}")
    if (
        status
        or isinstance(error, (OSError, ValueError, NotImplementedError))
        or any(map(_is_of_network, causes))
    ):
        return StorageError(f"{shown}: cannot be read ({explain(error)}): check the URL")
    return None


def explain(error: BaseException) -> str:
    """Return the cause in a few words, free of URLs' credentials."""
    status = _find_status(error)
    if status is not None:
        known = status in HTTPStatus._value2member_map_
        return f"HTTP {status} {HTTPStatus(status).phrase}" if known else f"HTTP {status}"
    text = hide_credentials(str(error))
    text = re.sub(r"\?[^\s'\"<>]*=[^\s'\"<>]*", "", text)  # urllib3 quotes the path and the query
    if isinstance(error, BrokenAnswerError):
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def get_host(url: str) -> str:
    """Return who serves a URL, in words for a message."""
    if _get_service(url) == "hf":
        return "huggingface.co"
    try:
        return urlsplit(show_url(url)).netloc or "the storage"
    except ValueError:  # such as an IPv6 address without its bracket
        return "the storage"


def _get_service(url: str) -> str:
    """Return whose login opens the URL, a key of `_LOGINS` where one does."""
    scheme = url.partition("://")[0]
    host = show_url(url).partition("://")[2].partition("/")[0]
    if scheme in ("http", "https"):
        return "hf" if host == "huggingface.co" or host.endswith(".huggingface.co") else scheme
    return {"gcs": "gs", "s3a": "s3"}.get(scheme, scheme)
