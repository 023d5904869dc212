"""What to write in place of a name that does not exist."""

import difflib
import re
from collections.abc import Iterable, Mapping

_LEAST_LETTERS = 3  # of a word that is looked for in descriptions


def suggest(name: str, known: Iterable[str]) -> str:
    """Return `did you mean NAME?` with the nearest name, or all names where none is near."""
    names = list(known)
    nearest = find_nearest(name, names)
    return f"did you mean {nearest}?" if nearest else f"choose among {', '.join(names)}"


def find_nearest(name: str, known: Iterable[str]) -> str | None:
    """Return the name that was perhaps meant; None where none is near."""
    return next(iter(difflib.get_close_matches(name, list(known), n=1)), None)


def find_setting(key: str, descriptions: Mapping[str, str]) -> str | None:
    """Return the setting that a key was perhaps meant to be; None where none is, or several may be.

    Args:
        key: with dots, of no setting.
        descriptions: of the settings that there are, by their keys.
    """
    section, _, name = key.partition(".")
    own = {known: text for known, text in descriptions.items() if known.startswith(f"{section}.")}
    leaves = {_get_leaf(known): known for known in own or descriptions}
    same = [known for known in descriptions if _get_leaf(known) == _get_leaf(key)]
    alike = difflib.get_close_matches(_get_leaf(key), list(leaves), n=1, cutoff=0.8)
    # Within a section, keys resemble each other by its name.
    close = [] if own else difflib.get_close_matches(key, list(descriptions), n=1, cutoff=0.75)
    described = _find_described(name, own) if own else _find_described(key, descriptions)
    found = same or [leaves[leaf] for leaf in alike] or close or described
    return next(iter(found or _find_described(_get_leaf(key), descriptions)), None)


def _find_described(name: str, descriptions: Mapping[str, str]) -> list[str]:
    """Return the setting whose name and description have all words of an unknown name, if it is one.

    Words begin with them: `eval_steps` is `trainer.evaluate_every_steps`. A name with all of them comes
    before others, if it is the only one. One word in a description alone says too little; of several
    settings that have more, it is the one that is described with the least: `learning_rate` is
    `optimizer.lr`, not what multiplies it.
    """
    words = re.split(r"[._]", name.lower())
    if min(map(len, words)) < _LEAST_LETTERS:
        return []

    def has_all(text: str) -> bool:
        spoken = text.lower().replace("_", " ")
        return all(re.search(rf"\b{re.escape(word)}", spoken) for word in words)

    named = [known for known in descriptions if has_all(_get_leaf(known))]
    if named or len(words) == 1:
        return named if len(named) == 1 else []
    found = [known for known, text in descriptions.items() if has_all(f"{_get_leaf(known)} {text}")]
    return sorted(found, key=lambda known: len(descriptions[known]))[:1]


def _get_leaf(key: str) -> str:
    return key.rsplit(".", 1)[-1]
