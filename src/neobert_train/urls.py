"""URLs without what may be secret in them, for everything that is shown or written.

User names, passwords, queries and fragments may be secrets. A password that is not percent-encoded may
hold any character, also those that end the authority of a URL, so where it is not certain what a part
is, the part is left out.
"""

import re
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

_SCHEME = r"[A-Za-z][A-Za-z0-9+.-]{0,30}://"
# Where @ and ? are characters of a name: a revision, and a sign of a glob.
_OBJECT_STORES = {"hf", "s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "adl", "oss", "file"}
_LEFT_OUT = "(hidden)"
_SIGNED = re.compile(
    r"(X-(Amz|Goog|Oss)-[\w-]+|AWSAccessKeyId|GoogleAccessId|Key-Pair-Id|Policy|Signature|Expires"
    r"|sig|se|sp|sr|st|sv|spr|sip|sk(oid|tid|t|e|s|v)|(access_)?token)=",
    re.IGNORECASE,
)
_PUNCTUATION = "]:;,.)'\">"


def show_url(url: str) -> str:
    """Return a URL without user, password, query and fragment."""
    scheme, _, rest = url.strip().partition("://")
    authority, tail = re.fullmatch(r"([^/?#]*)(.*)", rest, re.DOTALL).groups()  # type: ignore[union-attr]
    path = re.split("[?#]", tail, maxsplit=1)[0]
    is_object = scheme.lower() in _OBJECT_STORES
    if "@" in tail and (not is_object or ":" in rest[: rest.rindex("@")]):
        # A password with a slash or the like ends the authority early; its end is the last @.
        shown = path.rpartition("@")[2] if "@" in path and "@" not in tail[len(path) :] else ""
        return f"{scheme}://{_LEFT_OUT}{f'@{shown}' if shown else ''}"
    host = authority.rpartition("@")[2]
    if not _is_host(host):
        return f"{scheme}://{_LEFT_OUT}"
    is_name = is_object and "=" not in tail[len(path) :]
    return f"{scheme}://{host}{tail if is_name else path}"


def show_value(value: str) -> str:
    """Return a setting, which may be a URL or end in one, with the URL as `show_url` gives it."""
    begin = re.search(_SCHEME, value)
    return value[: begin.start()] + show_url(value[begin.start() :]) if begin else value


def hide_in_values(value: Any, show: Callable[[str], str] = show_value) -> Any:
    """Return a setting, or a list or dictionary of them, with every text as `show` gives it."""
    if isinstance(value, str):
        return show(value)
    if isinstance(value, list):
        return [hide_in_values(entry, show) for entry in value]
    if isinstance(value, dict):
        return {key: hide_in_values(entry, show) for key, entry in value.items()}
    return value


def identify_value(value: str) -> str:
    """Return a setting with what tells the content of a URL from others: all but who asks, and how.

    That is the same with the signature of tomorrow. It may hold secrets: hash it, and do not show it.
    """
    begin = re.search(_SCHEME, value)
    if begin is None:
        return value
    query = re.split("[?]", value, maxsplit=1)[1:]
    kept = [part for part in "".join(query).split("&") if not _SIGNED.match(part)]
    return (
        "?".join([show_value(value), "&".join(kept)]) if query and any(kept) else show_value(value)
    )


def hide_credentials(text: str) -> str:
    """Return free text, such as the error of a library, with its URLs as `show_url` gives them.

    A password with white space is found up to the last @ of its line.
    """
    text = "\n".join(map(_hide_login, text.split("\n")))
    return re.sub(rf"{_SCHEME}\S*", lambda match: _show_word(match[0]), text)


def _hide_login(line: str) -> str:
    """Return a line without what may be a user name and password between :// and its last @."""
    before, _, after = line.rpartition("@")
    begin = re.search(rf"({_SCHEME})[^/\s@]*:", before)
    if begin is None:
        return line
    word = after.split(maxsplit=1)[0] if after[:1].strip() else ""
    is_certain = "@" not in before[begin.end(1) :]
    shown = _show_word(f"{begin[1]}{word}") if is_certain else f"{begin[1]}{_LEFT_OUT}"
    return f"{before[: begin.start()]}{shown}{after[len(word) :]}"


def _show_word(word: str) -> str:
    url = word.rstrip(_PUNCTUATION)
    return show_url(url) + word[len(url) :]


def _is_host(host: str) -> bool:
    try:
        return urlsplit(f"//{host}").port != -1  # a port that is no number raises
    except ValueError:
        return False
