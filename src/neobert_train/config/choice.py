"""What the kinds of a section have in common."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from neobert_train.config.setting import setting


@dataclass
class Choice:
    """A section whose settings depend on the kind that is chosen for it.

    Attributes:
        elsewhere: defaults of other sections, by section and setting, that come with the kind.
    """

    elsewhere: ClassVar[Mapping[str, Mapping[str, str]]] = {}
    kind: str = setting("", "What SECTION=KIND chooses.")

    def iter_problems(self) -> Iterator[str]:
        """Yield what is wrong with settings that are all in range."""
        yield from ()


def kind_setting(name: str, section: str) -> Any:
    """Return the field that records which kind of a section this is."""
    return setting(name, f"What {section}=KIND has chosen.")
