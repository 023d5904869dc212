"""The formats of files, by name: which suffixes tell them, and how each is read."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from neobert_train.config.data_schema import FileFormat, SourceConfig
from neobert_train.data.sources.parquet import ParquetRows
from neobert_train.data.sources.source import Format, SettingError
from neobert_train.data.sources.text import (
    COMPRESSED_SUFFIXES,
    TextLayout,
    choose_text_format,
)
from neobert_train.data.storage import StoredFile, is_url


class StoredFormat(Format, Protocol):
    """A format of files that are looked into before training."""

    def check(self, file: StoredFile, tolerance: int) -> None:
        """Read the beginning of a file, so that what is wrong with all of it shows early.

        Args:
            file: which one.
            tolerance: bad records to look past for a sound one.

        Raises:
            SettingError: a configured column does not exist or holds no text.
            StorageError: the network gave out, which says nothing about the file.
            InputError: the file cannot be read, is empty, or its first records are bad.
        """
        ...


@dataclass(frozen=True, slots=True)
class FormatEntry:
    """What is known of a format.

    Attributes:
        suffixes: of the names of its files, in lower case.
        build: how a file of a source is read, given whether its storage can be read from the
            middle.
    """

    suffixes: tuple[str, ...]
    build: Callable[[SourceConfig, str, bool], StoredFormat]


def _build_parquet(source: SourceConfig, path: str, can_seek: bool) -> StoredFormat:
    return ParquetRows(source.column, source.id_column)


def _build_jsonl(source: SourceConfig, path: str, can_seek: bool) -> StoredFormat:
    return choose_text_format(path, TextLayout("jsonl", source.column, source.id_column), can_seek)


def _build_text(source: SourceConfig, path: str, can_seek: bool) -> StoredFormat:
    return choose_text_format(path, TextLayout(source.text_documents.value), can_seek)


FORMATS: dict[FileFormat, FormatEntry] = {
    FileFormat.parquet: FormatEntry((".parquet",), _build_parquet),
    FileFormat.jsonl: FormatEntry((".jsonl", ".ndjson", ".json"), _build_jsonl),
    FileFormat.text: FormatEntry((".txt", ".text"), _build_text),
}


def find_format(path: str) -> FileFormat | None:
    """Return the format that the name of a file tells, if it does."""
    name = path.split("?", 1)[0].lower() if is_url(path) else path.lower()
    for suffix in COMPRESSED_SUFFIXES:
        name = name.removesuffix(suffix)
    suffix = os.path.splitext(name)[1]
    return next((known for known, entry in FORMATS.items() if suffix in entry.suffixes), None)


def build_format(source: SourceConfig, path: str, can_seek: bool = True) -> StoredFormat:
    """Return how a file of a source is read.

    Args:
        source: how documents lie in its files.
        path: of the file.
        can_seek: whether its storage can be read from the middle.

    Raises:
        SettingError: neither the source nor the name of the file tells the format.
    """
    known = find_format(path) if source.format is FileFormat.auto else source.format
    if known is None:
        names = ", ".join(known.value for known in FORMATS)
        raise SettingError(
            f"{path}: its name does not tell the format: write data.format=... with one of {names}"
        )
    return FORMATS[known].build(source, path, can_seek)
