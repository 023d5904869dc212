"""Local files by path, folder or glob, divided into units."""

import glob
import logging
import os
from collections.abc import Sequence
from pathlib import Path

from neobert_train.config.data_schema import BadRecordPolicy, FileFormat, TextDocuments
from neobert_train.data.sources.parquet import list_parquet_units
from neobert_train.data.sources.source import SettingError, Unit
from neobert_train.data.sources.text import COMPRESSED_SUFFIXES, check_text_file, list_text_units
from neobert_train.errors import InputError

logger = logging.getLogger(__name__)

# Several units a lane even out what lanes read in an epoch.
_UNITS_PER_LANE = 4
_BAD_RECORDS_LOOKED_PAST = 100
_SUFFIXES = {
    ".parquet": FileFormat.parquet,
    ".jsonl": FileFormat.jsonl,
    ".ndjson": FileFormat.jsonl,
    ".json": FileFormat.jsonl,
    ".txt": FileFormat.text,
    ".text": FileFormat.text,
}


def build_file_units(
    paths: Sequence[str],
    file_format: FileFormat,
    column: str,
    text_documents: TextDocuments,
    num_lanes: int,
    on_bad_record: BadRecordPolicy,
) -> list[Unit]:
    """The units of local files, at least one a lane where the files hold enough documents.

    Raises:
        InputError: listing every file that is missing, empty, of unknown format, unreadable, or
            without the column. With the policy `skip`, unreadable files are left out with a
            warning instead, as long as one file remains.
    """
    files, problems = expand_paths(paths)
    parts = -(-_UNITS_PER_LANE * num_lanes // max(1, len(files)))
    units: list[Unit] = []
    skipped = 0
    for file in files:
        try:
            units += _list_units(file, file_format, column, text_documents, parts, on_bad_record)
        except SettingError as error:
            problems.append(str(error))
        except InputError as error:
            if on_bad_record is BadRecordPolicy.skip:
                logger.warning("left out: %s", error)
                skipped += 1
            else:
                problems.append(str(error))
    if skipped and skipped == len(files):
        problems.append("no readable file is left in data.paths")
    if problems:
        raise InputError.from_problems(problems)
    return units


def expand_paths(paths: Sequence[str]) -> tuple[list[str], list[str]]:
    """Files named by paths, folders and globs, sorted within each; and what matches nothing."""
    files: dict[str, str] = {}  # by real path: a file named in two ways is read once
    problems: list[str] = []
    for path in paths:
        pattern = os.path.expanduser(path)
        if os.path.isdir(pattern):
            inside = (f for f in Path(pattern).rglob("*") if f.is_file())
            found = sorted(str(f) for f in inside if _find_format(str(f)))
        elif os.path.isfile(pattern):
            found = [pattern]
        else:
            found = sorted(f for f in glob.glob(pattern, recursive=True) if os.path.isfile(f))
        if not found:
            problems.append(
                f"{path}: no such file, and no readable format in such a folder or glob"
            )
        for file in found:
            files.setdefault(os.path.realpath(file), file)
    return list(files.values()), problems


def _list_units(
    file: str,
    file_format: FileFormat,
    column: str,
    text_documents: TextDocuments,
    parts: int,
    on_bad_record: BadRecordPolicy,
) -> Sequence[Unit]:
    known = _find_format(file) if file_format is FileFormat.auto else file_format
    if known is None:
        raise SettingError(
            f"{file}: its name does not tell the format: write data.format=parquet, jsonl or text"
        )
    if os.path.getsize(file) == 0:
        raise InputError(f"{file} is empty")
    if known is FileFormat.parquet:
        return list_parquet_units(file, column, parts)
    kind = "jsonl" if known is FileFormat.jsonl else text_documents.value
    tolerance = _BAD_RECORDS_LOOKED_PAST if on_bad_record is BadRecordPolicy.skip else 0
    check_text_file(file, kind, column, tolerance)
    return list_text_units(file, kind, column, parts)


def _find_format(file: str) -> FileFormat | None:
    for suffix in COMPRESSED_SUFFIXES:
        file = file.removesuffix(suffix)
    return _SUFFIXES.get(os.path.splitext(file)[1].lower())
