"""What tells whether a file is still the one that a run began with."""

from dataclasses import dataclass

from neobert_train.storage.failures import StorageError
from neobert_train.urls import show_url


@dataclass(frozen=True, slots=True)
class FileVersion:
    """The size of a file, and marks that are others once its content is.

    Attributes:
        size: bytes; None where its storage does not tell.
        marks: kind and value of each, such as ("etag", "5d8c72a5"); none where its storage tells nothing.
    """

    size: int | None
    marks: tuple[tuple[str, str], ...] = ()

    def find_change(self, now: "FileVersion") -> str | None:
        """Return how another version differs, such as `6 bytes instead of 5`; None if it does not.

        One mark that agrees is enough: mirrors of one server may give a file other ETags.
        """
        if None not in (self.size, now.size) and self.size != now.size:
            return f"{now.size:,} bytes instead of {self.size:,}"
        earlier, later = dict(self.marks), dict(now.marks)
        common = [kind for kind in earlier if kind in later]
        if common and all(earlier[kind] != later[kind] for kind in common):
            kind = common[0]
            return f"{kind} {later[kind]} instead of {earlier[kind]}"
        return None


@dataclass(frozen=True, slots=True)
class Description:
    """What a storage says of a file.

    Attributes:
        version: of the file.
        can_seek: whether any part of it can be read without what is before it.
    """

    version: FileVersion
    can_seek: bool = True


def make_changed_error(path: str, change: str) -> StorageError:
    """Return the error for a file that is not the one that was begun with."""
    shown = show_url(path) if "://" in path else path
    return StorageError(
        f"{shown} was changed while the run reads it ({change}): restore it, or read a "
        f"copy that stays as it is"
    )
