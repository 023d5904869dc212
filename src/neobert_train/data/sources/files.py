"""Files by path, folder, glob or URL, divided into units."""

import glob
import logging
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from neobert_train.config.data_schema import (
    BadRecordPolicy,
    FileFormat,
    SourceConfig,
)
from neobert_train.data.sources.parquet import check_parquet_file, list_parquet_units
from neobert_train.data.sources.source import SettingError, Unit
from neobert_train.data.sources.text import (
    COMPRESSED_SUFFIXES,
    TextLayout,
    check_text_file,
    is_sequential,
    list_text_units,
)
from neobert_train.data.storage import Network, StoredFile, is_url, list_files
from neobert_train.errors import InputError

logger = logging.getLogger(__name__)

# Several units a lane even out what lanes read in an epoch, and let each read in several places.
_UNITS_PER_LANE = 4
_BAD_RECORDS_LOOKED_PAST = 100
# Files that are opened before training begins; the others are when they are read.
_LOCAL_FILES_CHECKED = 1024
_REMOTE_FILES_CHECKED = 8
_SUFFIXES = {
    ".parquet": FileFormat.parquet,
    ".jsonl": FileFormat.jsonl,
    ".ndjson": FileFormat.jsonl,
    ".json": FileFormat.jsonl,
    ".txt": FileFormat.text,
    ".text": FileFormat.text,
}


def build_file_units(
    source: SourceConfig,
    paths: Sequence[str],
    network: Network,
    num_lanes: int,
    on_bad_record: BadRecordPolicy,
) -> list[Unit]:
    """The units of files, several a lane where the files hold enough documents.

    Args:
        source: how documents lie in the files.
        paths: files, folders, globs and URLs.
        network: how patiently remote ones are read.
        num_lanes: lanes that share the units.
        on_bad_record: what unreadable files do.

    Raises:
        InputError: listing every file that is missing, empty, of unknown format, unreadable, or
            without the column; of many files those that were looked into. With the policy `skip`,
            unreadable files are left out with a warning instead, as long as one file remains.
    """
    files, problems = expand_paths(paths, network)
    bad = {}
    for file, error in _check_files(source, files, on_bad_record):
        if on_bad_record is BadRecordPolicy.skip and not isinstance(error, SettingError):
            logger.warning("left out: %s", error)
            bad[file] = error
        else:
            problems.append(str(error))
    if bad and len(bad) == len(files):
        problems.append("no readable file is left in data.paths")
    if problems:
        raise InputError.from_problems(problems)
    parts = -(-_UNITS_PER_LANE * num_lanes // max(1, len(files)))
    sound = [file for file in files if file not in bad]
    can_seek = all(file.can_seek() for file in sound[:1])
    _warn_of_sequential_files(source, sound, parts, can_seek)
    return [unit for file in sound for unit in _list_units(source, file, parts, can_seek)]


def expand_paths(paths: Sequence[str], network: Network) -> tuple[list[StoredFile], list[str]]:
    """Files named by paths, folders, globs and URLs, sorted within each; and what matches nothing."""
    files: dict[str, StoredFile] = {}  # by real path: a file named in two ways is read once
    problems: list[str] = []
    for path in paths:
        try:
            found = list_files(path, network) if is_url(path) else _list_local_files(path)
        except OSError as error:
            problems.append(str(error))
            continue
        if not found:
            problems.append(
                f"{path}: no such file, and no readable format in such a folder or glob"
            )
        for file in found:
            key = file if is_url(file) else os.path.realpath(file)
            files.setdefault(key, StoredFile(file, network))
    return list(files.values()), problems


def _list_local_files(path: str) -> list[str]:
    pattern = os.path.expanduser(path)
    if os.path.isdir(pattern):
        inside = (file for file in Path(pattern).rglob("*") if file.is_file())
        return sorted(str(file) for file in inside if find_format(str(file)))
    if os.path.isfile(pattern):
        return [pattern]
    return sorted(f for f in glob.glob(pattern, recursive=True) if os.path.isfile(f))


def _check_files(
    source: SourceConfig, files: Sequence[StoredFile], on_bad_record: BadRecordPolicy
) -> list[tuple[StoredFile, InputError]]:
    """Look into files before training; of very many, into some that lie evenly among them."""
    remote = any(file.is_remote for file in files)
    most = _REMOTE_FILES_CHECKED if remote else _LOCAL_FILES_CHECKED
    step = max(1, -(-len(files) // most))
    chosen = files[::step]
    tolerance = _BAD_RECORDS_LOOKED_PAST if on_bad_record is BadRecordPolicy.skip else 0
    with ThreadPoolExecutor(max_workers=_REMOTE_FILES_CHECKED) as pool:
        errors = pool.map(lambda file: _find_error(source, file, tolerance), chosen)
        return [
            (file, error) for file, error in zip(chosen, errors, strict=True) if error is not None
        ]


def _find_error(source: SourceConfig, file: StoredFile, tolerance: int) -> InputError | None:
    try:
        known = _get_format(source, file)
        if file.get_size() == 0:
            raise InputError(f"{file.path} is empty")
        if known is FileFormat.parquet:
            check_parquet_file(file, source.column, source.id_column)
        else:
            check_text_file(file, get_layout(source, known), tolerance)
    except InputError as error:
        return error
    except OSError as error:
        return InputError(str(error))
    return None


def _list_units(
    source: SourceConfig, file: StoredFile, parts: int, can_seek: bool
) -> Sequence[Unit]:
    known = _get_format(source, file)
    if known is FileFormat.parquet:
        return list_parquet_units(file, source.column, source.id_column, parts)
    return list_text_units(file, get_layout(source, known), parts, can_seek)


def get_layout(source: SourceConfig, file_format: FileFormat) -> TextLayout:
    """How documents lie in a file of JSON Lines or text."""
    if file_format is FileFormat.jsonl:
        return TextLayout("jsonl", source.column, source.id_column)
    return TextLayout(source.text_documents.value)


def _get_format(source: SourceConfig, file: StoredFile) -> FileFormat:
    known = find_format(file.path) if source.format is FileFormat.auto else source.format
    if known is None:
        raise SettingError(
            f"{file.path}: its name does not tell the format: write data.format=parquet, jsonl or "
            f"text"
        )
    return known


def find_format(path: str) -> FileFormat | None:
    """The format that the name of a file tells, if it does."""
    name = path.split("?", 1)[0].lower() if is_url(path) else path.lower()
    for suffix in COMPRESSED_SUFFIXES:
        name = name.removesuffix(suffix)
    return _SUFFIXES.get(os.path.splitext(name)[1])


def _warn_of_sequential_files(
    source: SourceConfig, files: Sequence[StoredFile], parts: int, can_seek: bool
) -> None:
    """Say what it costs that some files cannot be entered in their middle."""
    formats = [(file, _get_format(source, file)) for file in files]
    texts = [file for file, known in formats if known is not FileFormat.parquet]
    slow = [
        file
        for file in texts
        if is_sequential(file.path, get_layout(source, _get_format(source, file)))
    ]
    if not can_seek:
        slow = texts
    # A file that is one document is always read whole.
    if slow and source.text_documents.value != "file":
        often = f" {parts} times an epoch, once for each of its parts, and" if parts > 1 else ""
        logger.warning(
            "%d of %d files, such as %s, can be read from the beginning alone: each is read%s again "
            "up to its place at a resume; `prepare` reads it once",
            len(slow), len(files), slow[0].path, often,
        )  # fmt: skip
