"""Files by path, folder, glob or URL."""

import logging
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from neobert_train.config.data_schema import BadRecordPolicy, FileFormat, SourceConfig
from neobert_train.data.sources.formats import build_format, find_format
from neobert_train.data.sources.listing import describe_left_out, list_paths
from neobert_train.data.sources.source import SettingError, Unit
from neobert_train.errors import InputError
from neobert_train.storage.stored_files import Network, StorageError, StoredFile
from neobert_train.world import World

logger = logging.getLogger(__name__)

_BAD_RECORDS_LOOKED_PAST = 100
# Files that are opened before training begins; the others are when they are read.
_LOCAL_FILES_CHECKED = 1024
_REMOTE_FILES_CHECKED = 8
_FILES_IDENTIFIED_AT_A_TIME = 32
_SHOWN_EVERY_SECONDS = 10.0


def warn_on_main(message: str, *values: object) -> None:
    """Warn of what every process finds in the files, on one of them."""
    if World.from_environment().is_main:
        logger.warning(message, *values)


def list_units(
    source: SourceConfig,
    paths: Sequence[str],
    network: Network,
    on_bad_record: BadRecordPolicy,
) -> list[Unit]:
    """Return the files of a source, each as one unit.

    Args:
        source: how documents lie in the files.
        paths: files, folders, globs and URLs.
        network: how patiently remote ones are read.
        on_bad_record: what unreadable files do.

    Raises:
        InputError: listing every file that is missing, empty, of unknown format, unreadable, or
            without the column; of many files those that were looked into. With the policy `skip`,
            unreadable files are left out with a warning instead, as long as one file remains.
    """
    is_any = source.format is not FileFormat.auto
    listing = list_paths(paths, network, lambda path: is_any or find_format(path) is not None)
    files, problems = identify_files(listing.files)
    problems = [*listing.problems, *problems]
    if listing.left_out:
        warn_on_main("left out of data.paths: %s", describe_left_out(listing.left_out))
    bad = {}
    for file, error in _check_files(source, files, on_bad_record):
        # What the network gives may come back, and the order of the files would be another.
        is_lasting = not isinstance(error, SettingError | StorageError)
        if on_bad_record is BadRecordPolicy.skip and is_lasting:
            warn_on_main("left out: %s", error)
            bad[file] = error
        else:
            problems.append(str(error))
    if bad and len(bad) == len(files):
        problems.append("no readable file is left in data.paths")
    if problems:
        raise InputError.from_problems(problems)
    sound = [file for file in files if file not in bad]
    can_seek = all(file.can_seek() for file in sound[:1])
    with ThreadPoolExecutor(max_workers=_REMOTE_FILES_CHECKED) as pool:
        formats = pool.map(partial(build_format, source, can_seek=can_seek), sound)
        return list(map(Unit, sound, formats))


def identify_files(named: Sequence[StoredFile]) -> tuple[list[StoredFile], list[str]]:
    """Return files as they are now, and what is wrong with others.

    Raises:
        StorageError: the network gave out, so that each of the others would take as long to fail.
    """
    files, problems = [], []
    failures: list[StorageError] = []

    def identify(file: StoredFile) -> StoredFile:
        if failures:  # this thread may be ahead of the one that cancels the others
            raise failures[0]
        try:
            return file.identify()
        except StorageError as error:
            if not error.is_permanent:
                failures.append(error)
            raise

    with ThreadPoolExecutor(max_workers=_FILES_IDENTIFIED_AT_A_TIME) as pool:
        identified = [pool.submit(identify, file) for file in named]
        last_shown = time.monotonic()
        for number, future in enumerate(identified):
            try:
                files.append(future.result())
            except StorageError as error:
                if not error.is_permanent:
                    pool.shutdown(wait=False, cancel_futures=True)
                    raise
                problems.append(str(error))
            if time.monotonic() - last_shown >= _SHOWN_EVERY_SECONDS:
                last_shown = time.monotonic()
                warn_on_main("looking at the files of the data: %d of %d", number, len(named))
    return files, problems


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
        known = build_format(source, file)
        if file.version.size == 0:
            raise InputError(f"{file.name} is empty")
        known.check(file, tolerance)
    except InputError as error:
        return error
    except OSError as error:
        return InputError(str(error))
    return None


def warn_of_sequential_files(units: Sequence[Unit]) -> None:
    """Say what it costs those that share files that these cannot be entered in their middle."""
    units = [unit for unit in units if isinstance(unit.file, StoredFile)]
    if not units:
        return
    first = units[0].file
    if not first.can_seek():
        warn_on_main(
            "%s: its server gives no part of a file by itself, so that every unit reads from the "
            "beginning of its file; `prepare` reads it once, or download it first",
            first.name,
        )
    # A file that is one document is read whole in any case.
    slow = [unit for unit in units if unit.format.units_per_lane == 1]
    if slow:
        warn_on_main(
            "%d of %d files, such as %s, can be read only from their beginning: every lane with a "
            "part of one reads it from there, also at a resume; `prepare` reads it once",
            len(slow), len(units), slow[0].name,
        )  # fmt: skip
