"""The Hugging Face Hub: names with a revision, downloads, and what its errors mean."""

import functools
import re
from collections.abc import Iterator, Sequence
from http import HTTPStatus
from pathlib import Path
from typing import Any

from neobert_train.errors import InputError
from neobert_train.urls import hide_credentials

REQUEST_SECONDS = 60.0
_COMMIT = re.compile("[0-9a-f]{40}")
_SHOWN_CHARACTERS = 300
_LOGIN = "log in with `hf auth login`, or set HF_TOKEN"


class HubError(InputError):
    """A request to the Hub that failed, in words that hold no token and no credentials."""


def split_revision(name: str) -> tuple[str, str | None]:
    """Return the repository and the revision (a branch, tag or commit) of `org/name@revision`."""
    repository, _, revision = name.partition("@")
    return repository, revision or None


def download_files(name: str, patterns: Sequence[str], kind: str = "model") -> Path:
    """Return the folder of the files of a repository that match patterns, downloaded if need be.

    Args:
        name: `org/name` or `org/name@revision`.
        patterns: globs of file names.
        kind: model or dataset.

    Raises:
        HubError: there is no such repository or revision, or it cannot be reached and is not in the
            cache.
    """
    from huggingface_hub import snapshot_download

    repository, revision = split_revision(name)
    try:
        bound_waits(REQUEST_SECONDS)
        folder = snapshot_download(
            repository, repo_type=kind, revision=revision, allow_patterns=list(patterns)
        )
    except Exception as error:  # whatever the Hub client or the network raises
        raise HubError(describe_hub_error(error, repository, revision)) from error
    return Path(folder)


def pin_revision(name: str, folder: Path) -> str:
    """Return the name of a repository with the commit that was downloaded into a folder."""
    is_snapshot = folder.parent.name == "snapshots" and _COMMIT.fullmatch(folder.name)
    return f"{split_revision(name)[0]}@{folder.name}" if is_snapshot else name


@functools.lru_cache(maxsize=1)
def bound_waits(seconds: float) -> None:
    """Bound every connect, read and write of huggingface_hub in this process.

    Some of its functions pass `timeout=None`, which overrides the default of the client.
    """
    from huggingface_hub import get_session, set_client_factory

    def bound(request: Any) -> None:
        limits = request.extensions.get("timeout", {})
        request.extensions["timeout"] = {
            phase: seconds if limits.get(phase) is None else limits[phase]
            for phase in ("connect", "read", "write", "pool")
        }

    session = get_session()
    client, before = type(session), session.event_hooks["request"]
    hooks = {
        "request": [*(hook for hook in before if getattr(hook, "__name__", "") != "bound"), bound]
    }
    set_client_factory(lambda: client(event_hooks=hooks, follow_redirects=True, timeout=seconds))


def describe_hub_error(error: BaseException, repository: str, revision: str | None = None) -> str:
    """Return what went wrong with a request about a repository, and what to do about it."""
    from huggingface_hub import errors

    causes = list(_iter_causes(error))
    kinds = {kind for cause in causes for kind in type(cause).__mro__}
    status = find_status(error)
    if errors.OfflineModeIsEnabled in kinds:
        return "HF_HUB_OFFLINE is set, and the files are not in the cache: unset it"
    if errors.HFValidationError in kinds:
        return f"'{repository}' is no name of a repository, which is org/name"
    if errors.GatedRepoError in kinds:
        return f"the owners of {repository} have to give access: ask on its page, and {_LOGIN}"
    if errors.RevisionNotFoundError in kinds:
        return f"{repository} has no branch, tag or commit {revision or 'main'}"
    if errors.LocalTokenNotFoundError in kinds:
        return f"there is no token: {_LOGIN}"
    if status == 401 and not _is_logged_in():
        return f"the Hub answers without a login only what is public: {_LOGIN}"
    if errors.RepositoryNotFoundError in kinds and status != 401:
        return f"the Hub has no repository {repository}, or the token may not see it: {_LOGIN}"
    if status == 401:
        return f"the Hub does not accept the token: {_LOGIN} to a valid one"
    if status == 403:
        return f"the token may not do this with {repository}{_quote_server(causes)}: {_LOGIN} to another"
    if status is not None:
        phrase = HTTPStatus(status).phrase if status in HTTPStatus._value2member_map_ else ""
        return f"the Hub answers {status} {phrase}{_quote_server(causes)}"
    # Of a file that is not in the cache, what kept it from being downloaded.
    reasons = [cause for cause in causes if not isinstance(cause, errors.LocalEntryNotFoundError)]
    reason = (reasons or causes)[0]
    return f"the Hub cannot be reached ({_shorten(f'{type(reason).__name__}: {reason}')})"


def find_status(error: BaseException) -> int | None:
    """Find the HTTP status behind an error."""
    for cause in _iter_causes(error):
        status = getattr(getattr(cause, "response", None), "status_code", None)
        if isinstance(status, int):
            return status
    return None


def _iter_causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__


def _is_logged_in() -> bool:
    from huggingface_hub import get_token

    return get_token() is not None


def _quote_server(causes: Sequence[BaseException]) -> str:
    said = next((text for cause in causes if (text := getattr(cause, "server_message", None))), "")
    return f" ({_shorten(said)})" if said else ""


def _shorten(text: str) -> str:
    """Return foreign text in one line, without the token and what may be secret in URLs."""
    from huggingface_hub import get_token

    token = get_token()
    line = " ".join(hide_credentials(text.replace(token, "(hidden)") if token else text).split())
    return line if len(line) <= _SHOWN_CHARACTERS else f"{line[:_SHOWN_CHARACTERS]}..."
