"""Folders that are put together as a draft and then put in place, beside what others have there."""

import contextlib
import os
import stat
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath

from neobert_train.config.typed import parse
from neobert_train.errors import InputError
from neobert_train.files import (
    TEMPORARY_PREFIX,
    DamagedFileError,
    clear_drafts,
    hash_file,
    is_at,
    read_checked_json,
    remove,
    sync_folder,
    sync_tree,
    try_lock,
    write_checked_json,
)

# Lists the files that `owned_folder` put into a folder.
OWNED_FILE = ".neobert_train.json"
# What a folder holds, by a file or folder that only such a one has.
_MARKS = {
    "config.yaml": "a training run", "embedding.yaml": "an embedder", "cells": "an evaluation",
    OWNED_FILE: "an exported model",
}  # fmt: skip
_SHOWN_PROBLEMS = 5


@dataclass(frozen=True)
class _Owned:
    """The files of a folder that are ours: the sha256 that each may have, by name.

    While files are replaced they may have the old one or the new one.
    """

    files: dict[str, list[str]]


@contextlib.contextmanager
def new_folder(output: Path) -> Iterator[Path]:
    """Open a draft that becomes the folder `output` when the block ends without an error.

    Raises:
        InputError: there is something at `output` other than an empty folder, or it cannot be written.
    """
    check_new_folder(output)
    with _explain(output):
        output.parent.mkdir(parents=True, exist_ok=True)
        with _open_draft(output.with_name(_name_draft(output))) as draft:
            yield draft
            sync_tree(draft)
            check_new_folder(output)
            draft.rename(output)
            sync_folder(output.parent)


def check_new_folder(output: Path) -> None:
    """Raise InputError where there is something at `output` other than an empty folder."""
    _check_kind(output)
    if output.exists() and any(output.iterdir()):
        raise InputError(f"{output} exists: write output=... to choose another folder")


def refuse_others(output: Path, own_mark: str) -> None:
    """Raise InputError where a folder holds what another command makes, which would be damaged.

    Args:
        output: where a command is about to write.
        own_mark: what the command itself makes there, a key of `_MARKS`.
    """
    for mark, kind in _MARKS.items():
        if mark != own_mark and (output / mark).exists():
            raise InputError(f"{output} holds {kind}: write output=... to choose another folder")


@contextlib.contextmanager
def owned_folder(output: Path, unlisted: Mapping[str, str]) -> Iterator[Path]:
    """Open a draft whose files are put into the folder `output` when the block ends without an error.

    Of the files in `output` those that an earlier call put there, and that nobody edited since, are
    replaced one by one, or removed where the draft has none of that name. All others stay. When that
    is interrupted, the next call takes up what it finds.

    Args:
        output: is made where it is missing.
        unlisted: sha256 by name of files that are ours though no list says so.

    Raises:
        InputError: a file that is not ours lies where one of the draft belongs, `output` is a link or a
            file, or it cannot be written; nothing was written then.
    """
    _check_kind(output)
    if not output.exists():
        with new_folder(output) as draft:
            yield draft
            files = {name: [digest] for name, digest in _hash_files(draft).items()}
            write_checked_json(draft / OWNED_FILE, asdict(_Owned(files)))
        return
    with _explain(output):
        _read_owned(output)
        with _open_draft(output / _name_draft(output)) as draft:
            clear_drafts(output, [output / OWNED_FILE])
            yield draft
            sync_tree(draft)
            _replace_files(draft, output, unlisted)


def list_owned_files(output: Path) -> list[str]:
    """Return the names of all that `owned_folder` put into a folder, its list included.

    Raises:
        InputError: the list is damaged.
    """
    return [OWNED_FILE, *_read_owned(output).files]


def _replace_files(draft: Path, output: Path, unlisted: Mapping[str, str]) -> None:
    new = _hash_files(draft)
    owned = {name: [digest] for name, digest in unlisted.items()} | _read_owned(output).files
    found = {name: _find_hash(output, name) for name in {**owned, **new}}
    problems = [
        _describe_obstacle(output / name, found[name], name in owned)
        for name, digest in new.items()
        if found[name] not in (None, digest, *owned.get(name, ()))
    ]
    if problems:
        more = [f"and {len(problems) - _SHOWN_PROBLEMS} more"] if len(problems) > 5 else []
        raise InputError(
            f"{output} holds files that would be written over: move them, or write output=... to "
            f"choose another folder:\n  " + "\n  ".join(problems[:_SHOWN_PROBLEMS] + more)
        )
    gone = [name for name in owned if name not in new and found[name] in owned[name]]
    between = {name: [digest, *owned.get(name, ())] for name, digest in new.items()}
    between |= {name: owned[name] for name in gone}
    write_checked_json(output / OWNED_FILE, asdict(_Owned(between)))
    for name in new:
        (output / name).parent.mkdir(parents=True, exist_ok=True)
        (draft / name).replace(output / name)
    for name in gone:
        (output / name).unlink()
    sync_folder(output)
    final = {name: [digest] for name, digest in new.items()}
    write_checked_json(output / OWNED_FILE, asdict(_Owned(final)))


def _read_owned(output: Path) -> _Owned:
    file = output / OWNED_FILE
    if not os.path.lexists(file):
        return _Owned({})
    try:
        if file.is_symlink():
            raise DamagedFileError("it is a link")
        owned: _Owned = parse(_Owned, read_checked_json(file))
        for name in owned.files:
            path = PurePosixPath(name)
            if path.is_absolute() or ".." in path.parts or not path.name or "\0" in name:
                raise DamagedFileError(f"it lists {name!r}, which is not in the folder")
    except (DamagedFileError, ValueError) as error:
        raise InputError(
            f"{file} cannot be read ({error}): remove it, and what an export wrote beside it, or write "
            f"output=... to choose another folder"
        ) from error
    return owned


def _find_hash(output: Path, name: str) -> str | None:
    """Find the sha256 of a file; None where nothing is, and an empty text where no file can be."""
    path = output
    for part in PurePosixPath(name).parts:
        if path != output and not stat.S_ISDIR(path.lstat().st_mode):
            return ""
        path /= part
        if not os.path.lexists(path):
            return None
    return hash_file(path) if stat.S_ISREG(path.lstat().st_mode) else ""


def _describe_obstacle(path: Path, digest: str | None, is_owned: bool) -> str:
    if not digest:
        return f"{path} is a link or no regular file"
    return f"{path} was edited since it was exported" if is_owned else f"{path} is of no export"


def _hash_files(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): hash_file(path) for path in files}


def _check_kind(output: Path) -> None:
    if output.is_symlink() or (output.exists() and not output.is_dir()):
        kind = "a link" if output.is_symlink() else "no folder"
        raise InputError(f"{output} is {kind}: write output=... to choose a folder")


def _name_draft(output: Path) -> str:
    return f"{TEMPORARY_PREFIX}{output.name}.neobert_train"


@contextlib.contextmanager
def _open_draft(path: Path) -> Iterator[Path]:
    """Make a folder of this process's own, empty; removed at the end unless it was renamed."""
    descriptor = _lock_folder(path)
    try:
        for entry in path.iterdir():  # left by a killed process
            remove(entry)
        yield path
    finally:
        if is_at(descriptor, path):
            remove(path)
        os.close(descriptor)


def _lock_folder(path: Path) -> int:
    while True:
        with contextlib.suppress(FileExistsError):
            path.mkdir()
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:
            continue  # another process has just finished with it
        except NotADirectoryError:
            raise InputError(f"{path} is no folder: remove it") from None
        if not try_lock(descriptor):
            os.close(descriptor)
            raise InputError(f"another process is writing {path}: wait until it has ended")
        if is_at(descriptor, path):
            return descriptor
        os.close(descriptor)


@contextlib.contextmanager
def _explain(output: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno is None:
            raise  # a library's own error, which is not about the folder
        raise InputError(
            f"{output} cannot be written ({error.strerror}): make room or fix its permissions, "
            f"or write output=... to choose another folder"
        ) from error
