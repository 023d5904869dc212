"""The formats of files, by name: which suffixes tell them, and how each is read."""

import os

from neobert_train.config.data_schema import FileFormat, SourceConfig
from neobert_train.data.sources.arrow import ArrowRows
from neobert_train.data.sources.compression import (
    COMPRESSED_SUFFIXES,
    get_file_name,
    is_compressed,
)
from neobert_train.data.sources.parquet import ParquetRows
from neobert_train.data.sources.source import Format, SettingError
from neobert_train.data.sources.tables import Rows
from neobert_train.data.sources.text import TextLayout, choose_text_format, is_json_lines
from neobert_train.storage.stored_files import StoredFile

# The format that the suffix of a file's name tells, in lower case.
FORMATS = {
    ".parquet": FileFormat.parquet,
    **dict.fromkeys((".arrow", ".arrows", ".feather", ".ipc"), FileFormat.arrow),
    **dict.fromkeys((".jsonl", ".ndjson"), FileFormat.jsonl),
    ".json": FileFormat.json,
    ".csv": FileFormat.csv,
    ".tsv": FileFormat.tsv,
    **dict.fromkeys((".txt", ".text"), FileFormat.text),
}
# How tables are read; the other formats are layouts of text.
_TABLES: dict[FileFormat, type[Rows]] = {
    FileFormat.parquet: ParquetRows,
    FileFormat.arrow: ArrowRows,
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
    return FORMATS.get(_get_suffix(path))


def _get_suffix(path: str) -> str:
    """Return the last suffix of a name but for that of a compression."""
    name = get_file_name(path)
    for suffix in COMPRESSED_SUFFIXES:
        name = name.removesuffix(suffix)
    return os.path.splitext(name)[1]


def build_format(source: SourceConfig, file: StoredFile, can_seek: bool = True) -> Format:
    """Return how a file of a source is read; looks into one of JSON.

    Args:
        source: how documents lie in its files.
        file: one of them.
        can_seek: whether its storage can be read from the middle.

    Raises:
        SettingError: neither the source nor the name of the file tells a format that is read, or it
            is a table in a compressed file.
    """
    known = find_format(file.path) if source.format is FileFormat.auto else source.format
    if known is None:
        names = ", ".join(known.value for known in dict.fromkeys(FORMATS.values()))
        other = f"write data.format=... with one of {names}"
        suffix = _get_suffix(file.path)
        advice = next((text for text, known in _ADVICE.items() if suffix in known), other)
        raise SettingError(f"{file.name}: its name tells no format that is read: {advice}")
    if known in _TABLES:
        if is_compressed(file.path):
            raise SettingError(
                f"{file.name}: unpack it: files of this format are compressed inside"
            )
        return _TABLES[known](source.column, source.id_column)
    if known is FileFormat.text:
        layout = TextLayout(source.text_documents.value)
    else:
        if known is FileFormat.json and source.format is FileFormat.auto and is_json_lines(file):
            known = FileFormat.jsonl
        layout = TextLayout(known.value, source.column, source.id_column)
    return choose_text_format(file.path, layout, can_seek)
