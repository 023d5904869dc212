"""URLs without what may be secret in them, for everything that is shown or written."""

import re


def hide_credentials(text: str) -> str:
    """The text with every URL in it as `show_url` gives it."""
    return re.sub(r"[A-Za-z][\w+.-]*://[^\s'\"<>]+", lambda match: show_url(match[0]), text)


def show_url(url: str) -> str:
    """The URL without user, password, query and fragment, any of which may be a secret."""
    scheme, _, rest = url.partition("://")
    if scheme in ("http", "https") or "=" in rest:  # elsewhere `?` belongs to a glob
        rest = rest.partition("?")[0].partition("#")[0]
    authority, slash, path = rest.partition("/")
    host = authority.rpartition("@")[2]
    if "@" not in authority and re.search(r"^[^\[]*:.*[^\d]", host):
        return f"{scheme}://(not a host)"  # a password with a slash ends the authority early
    return f"{scheme}://{host}{slash}{path}"
