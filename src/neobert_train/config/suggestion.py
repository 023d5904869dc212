"""What to write in place of a name that does not exist."""

import difflib
from collections.abc import Iterable


def suggest(name: str, known: Iterable[str]) -> str:
    """Return `did you mean NAME?` with the nearest name, or all names where none is near."""
    names = list(known)
    nearest = find_nearest(name, names)
    return f"did you mean {nearest}?" if nearest else f"choose among {', '.join(names)}"


def find_nearest(name: str, known: Iterable[str]) -> str | None:
    """Return the name that was perhaps meant; None where none is near."""
    return next(iter(difflib.get_close_matches(name, list(known), n=1)), None)
