"""What is tokenised in one call: enough to amortise its overhead, within bounded memory."""

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from neobert_train.errors import InputError

Entry = TypeVar("Entry")

MOST_ENTRIES = 64
ENOUGH_CHARACTERS = 1 << 20


def iter_groups(
    entries: Iterable[Entry],
    count_characters: Callable[[Entry], int],
    enough: int = ENOUGH_CHARACTERS,
    first: int = MOST_ENTRIES,
) -> Iterator[list[Entry]]:
    """Give entries in groups of up to 64, none empty; an error comes after what was read before it.

    Args:
        entries: in order; none is read beyond a group before the group is given.
        count_characters: of an entry.
        enough: characters with which a group ends, whatever its number of entries.
        first: entries of the first group; the next ones double.
    """
    group: list[Entry] = []
    characters, most_entries = 0, first
    try:
        for entry in entries:
            group.append(entry)
            characters += count_characters(entry)
            if len(group) == most_entries or characters >= enough:
                yield group
                group, characters = [], 0
                most_entries = min(2 * most_entries, MOST_ENTRIES)
    except (InputError, OSError):
        if group:
            yield group
        raise
    if group:
        yield group
