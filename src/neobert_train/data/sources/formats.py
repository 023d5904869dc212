"""The formats of files, by name: which suffixes tell them, and how each is read."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from neobert_train.config.data_schema import FileFormat, SourceConfig
from neobert_train.data.sources.arrow import ArrowRows
from neobert_train.data.sources.compression import (
    COMPRESSED_SUFFIXES,
    get_file_name,
    is_compressed,
)
from neobert_train.data.sources.parquet import ParquetRows
from neobert_train.data.sources.source import Format, SettingError
from neobert_train.data.sources.text import TextLayout, choose_text_format, is_json_lines
from neobert_train.storage.stored_files import StoredFile


class StoredFormat(Format, Protocol):
    """A format of files that are looked into before training."""

    def check(self, file: StoredFile, tolerance: int) -> None:
        """Read the beginning of a file, so that what is wrong with all of it shows early.

        Args:
            file: which one.
            tolerance: bad records to look past for a sound one.

        Raises:
            SettingError: a configured column does not exist or holds no text.
            Exception: `is_of_system` of it, which says nothing about the file.
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
    build: Callable[[SourceConfig, StoredFile, bool], StoredFormat]


def _build_table(
    rows: Callable[[str, str | None], StoredFormat],
    source: SourceConfig,
    file: StoredFile,
    can_seek: bool,
) -> StoredFormat:
    if is_compressed(file.path):
        raise SettingError(f"{file.name}: unpack it: files of this format are compressed inside")
    return rows(source.column, source.id_column)


def _build_keyed(kind: str, source: SourceConfig, file: StoredFile, can_seek: bool) -> StoredFormat:
    if kind == "json" and source.format is FileFormat.auto and is_json_lines(file):
        kind = "jsonl"
    layout = TextLayout(kind, source.column, source.id_column)
    return choose_text_format(file.path, layout, can_seek)


def _build_text(source: SourceConfig, file: StoredFile, can_seek: bool) -> StoredFormat:
    return choose_text_format(file.path, TextLayout(source.text_documents.value), can_seek)


FORMATS: dict[FileFormat, FormatEntry] = {
    FileFormat.parquet: FormatEntry((".parquet",), partial(_build_table, ParquetRows)),
    FileFormat.arrow: FormatEntry(
        (".arrow", ".arrows", ".feather", ".ipc"), partial(_build_table, ArrowRows)
    ),
    FileFormat.jsonl: FormatEntry((".jsonl", ".ndjson"), partial(_build_keyed, "jsonl")),
    FileFormat.json: FormatEntry((".json",), partial(_build_keyed, "json")),
    FileFormat.csv: FormatEntry((".csv",), partial(_build_keyed, "csv")),
    FileFormat.tsv: FormatEntry((".tsv",), partial(_build_keyed, "tsv")),
    FileFormat.text: FormatEntry((".txt", ".text"), _build_text),
}

# What to do about files that hold texts in some other way.
_ADVICE = {
    "unpack it, and name the folder": (
        ".tar", ".tgz", ".tbz", ".tbz2", ".txz", ".zip", ".7z", ".rar",
    ),
    "unpack it": (".z", ".lz", ".lz4", ".lzma", ".br", ".snappy"),
    "write its text to .txt or .jsonl": (
        ".pdf", ".doc", ".docx", ".odt", ".rtf", ".epub", ".htm", ".html", ".xml", ".warc", ".wet",
    ),
    "save it as .csv": (".xls", ".xlsx", ".ods"),
    "convert it to .parquet": (
        ".orc", ".avro", ".db", ".sqlite", ".h5", ".hdf5", ".npy", ".npz", ".pkl", ".pickle", ".pt",
        ".tfrecord", ".msgpack",
    ),
    "write data.format=text": (".md", ".rst", ".tex", ".log"),
}  # fmt: skip


def find_format(path: str) -> FileFormat | None:
    """Return the format that the name of a file tells, if it does."""
    suffix = _get_suffix(path)
    return next((known for known, entry in FORMATS.items() if suffix in entry.suffixes), None)


def _get_suffix(path: str) -> str:
    """The last suffix of a name but for that of a compression."""
    name = get_file_name(path)
    for suffix in COMPRESSED_SUFFIXES:
        name = name.removesuffix(suffix)
    return os.path.splitext(name)[1]


def build_format(source: SourceConfig, file: StoredFile, can_seek: bool = True) -> StoredFormat:
    """Return how a file of a source is read; looks into one of JSON.

    Args:
        source: how documents lie in its files.
        file: one of them.
        can_seek: whether its storage can be read from the middle.

    Raises:
        SettingError: neither the source nor the name of the file tells a format that is read.
    """
    known = find_format(file.path) if source.format is FileFormat.auto else source.format
    if known is None:
        names = ", ".join(known.value for known in FORMATS)
        other = f"write data.format=... with one of {names}"
        suffix = _get_suffix(file.path)
        advice = next((text for text, known in _ADVICE.items() if suffix in known), other)
        raise SettingError(f"{file.name}: its name tells no format that is read: {advice}")
    return FORMATS[known].build(source, file, can_seek)
