"""Which files paths, folders, globs and URLs name, and what they match that is left out.

Names that begin with `.` or `_` are left out, as Spark and pyarrow do: they belong to whatever wrote
the folder. So are files that describe a dataset, and those of no known format. What a user names
himself is read whatever its name; folders are followed through links, each once.
"""

import glob
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from neobert_train.storage.stored_files import (
    Network,
    StoredFile,
    forget_listings,
    is_url,
    list_files,
)
from neobert_train.urls import show_url

HIDDEN = "names that begin with . or _"
METADATA = "descriptions of a dataset"
UNKNOWN = "files of no known format"
FOLDERS = "folders, for which a glob needs **"
BROKEN = "links to nothing"
REPEATED = "links to folders that are read anyway"
SPECIAL = "no plain files"

# As `datasets` writes them and leaves them out.
_METADATA_NAMES = {
    "config.json", "dataset_dict.json", "dataset_info.json", "dataset_infos.json", "state.json",
}  # fmt: skip
_NAMES_SHOWN = 3


LeftOut = dict[str, list[str]]  # names by the reason


@dataclass(frozen=True)
class Listing:
    """What some paths name.

    Attributes:
        files: to be read, in the order of the paths and sorted within each.
        problems: paths that name nothing to read.
        left_out: what was matched and is not read.
    """

    files: list[StoredFile]
    problems: list[str]
    left_out: LeftOut


def list_paths(paths: Sequence[str], network: Network, is_known: Callable[[str], bool]) -> Listing:
    """List the files of a source.

    Args:
        paths: files, folders, globs and URLs.
        network: how patiently remote ones are listed.
        is_known: whether the name of a file in a folder, or of one that a glob matches, tells a
            format that is read.
    """
    files: dict[str, StoredFile] = {}  # by real path: a file named in two ways is read once
    problems: list[str] = []
    left_out: LeftOut = {}
    forget_listings(paths)
    for path in paths:
        selection = _Selection(path, is_known)
        try:
            found = selection.list_url(network) if is_url(path) else selection.list_local(network)
        except OSError as error:
            problems.append(str(error))
            continue
        if not found:
            cause = "no such file, and no files in such a folder or glob"
            if selection.left_out:
                cause = f"nothing in it is read: {describe_left_out(selection.left_out)}"
            problems.append(f"{show_url(path) if is_url(path) else path}: {cause}")
        for file in found:
            key = file.path if file.is_remote else os.path.realpath(file.path)
            files.setdefault(key, file)
        for reason, names in selection.left_out.items():
            left_out.setdefault(reason, []).extend(names)
    return Listing(list(files.values()), problems, left_out)


def describe_left_out(left_out: LeftOut) -> str:
    """Return counts by reason with a few names, such as `links to nothing: 1 (a.jsonl)`."""
    parts = []
    for reason, names in left_out.items():
        more = ", ..." if len(names) > _NAMES_SHOWN else ""
        parts.append(f"{reason}: {len(names)} ({', '.join(names[:_NAMES_SHOWN])}{more})")
    return "; ".join(parts)


class _Selection:
    """The files that one path names.

    Attributes:
        left_out: what it matches and is not read.

    Args:
        path: a file, folder, glob or URL.
        is_known: as in `list_paths`.
    """

    def __init__(self, path: str, is_known: Callable[[str], bool]) -> None:
        self._path = path if is_url(path) else os.path.expanduser(path)
        self._is_known = is_known
        # Written `_old/*.parquet`, these names are asked for.
        self._asked = [part for part in path.split("/") if part.startswith((".", "_"))]
        self.left_out: LeftOut = {}

    def list_url(self, network: Network) -> list[StoredFile]:
        """Return the files that a URL names, sorted."""
        found = list_files(self._path, network)
        if [file.path for file in found] == [self._path]:
            return found
        return [file for file in found if self._selects_url(file.path)]

    def _selects_url(self, url: str) -> bool:
        *folders, name = url.split("/")
        reason = HIDDEN if any(map(self._is_hidden, folders)) else self._find_reason(url, name)
        return self._note(reason, show_url(url))

    def list_local(self, network: Network) -> list[StoredFile]:
        """Return the files that a path, folder or glob names, sorted."""
        if os.path.isfile(self._path):
            return [StoredFile(self._path, network)]
        if os.path.isdir(self._path):
            top = str(Path(self._path))
            folders = self._walk("" if top == "." else top)
            matched = {file for _, files in folders for file in files}
        else:
            matched = set(self._match(self._path))
        return [StoredFile(name, network) for name in sorted(matched) if self._selects(name)]

    def _selects(self, path: str) -> bool:
        if os.path.isfile(path):
            return self._note(self._find_reason(path, os.path.basename(path)), path)
        if os.path.isdir(path):
            reason = HIDDEN if self._is_hidden(os.path.basename(path)) else FOLDERS
            return self._note(None if "**" in self._path else reason, path) and False
        return self._note(BROKEN if os.path.islink(path) else SPECIAL, path)

    def _match(self, pattern: str) -> Iterator[str]:
        """Yield what a glob matches; `**` descends as into a folder, so that loops of links end."""
        parts = pattern.split("/")
        if "**" not in parts:
            yield from glob.glob(pattern)
            return
        place = parts.index("**")
        before, after = "/".join([*parts[:place], ""]), "/".join(parts[place + 1 :]) or "*"
        for base in glob.glob(before) if before else [""]:
            for folder, _ in self._walk(base):
                yield from self._match(os.path.join(glob.escape(folder), after))

    def _walk(self, top: str) -> Iterator[tuple[str, list[str]]]:
        """Yield every folder below `top`, each once, with what it holds; linked ones after all others."""
        seen: set[str] = set()
        folders, links = [top], list[str]()
        while folders or links:
            folder = folders.pop() if folders else links.pop(0)
            real = os.path.realpath(folder)
            if real in seen:
                self._note(REPEATED, f"{folder}/")
                continue
            seen.add(real)
            files = []
            for name in sorted(os.listdir(folder or ".")):
                path = os.path.join(folder, name)
                if not os.path.isdir(path):
                    files.append(path)
                elif self._note(HIDDEN if self._is_hidden(name) else None, f"{path}/"):
                    (links if os.path.islink(path) else folders).append(path)
            yield folder, files

    def _find_reason(self, path: str, name: str) -> str | None:
        """Return why a file in a folder, or one that a glob matches, is not read."""
        if self._is_hidden(name):
            return HIDDEN
        if name in _METADATA_NAMES:
            return METADATA
        return None if self._is_known(path) else UNKNOWN

    def _is_hidden(self, name: str) -> bool:
        is_asked = any(fnmatchcase(name, pattern) for pattern in self._asked)
        return name.startswith((".", "_")) and not is_asked

    def _note(self, reason: str | None, name: str) -> bool:
        """Note what is left out for a reason; return whether there is none."""
        if reason is not None:
            self.left_out.setdefault(reason, []).append(name)
        return reason is None
