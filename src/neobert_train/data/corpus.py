"""The documents of a run: texts, or the token shards made of them."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import PlainValidator

from neobert_train.config.derived import compute_num_lanes
from neobert_train.config.schema import TrainConfig
from neobert_train.config.typed import Count, parse
from neobert_train.data.shards.prepared import open_prepared
from neobert_train.data.sources import Unit, build_units
from neobert_train.storage.versions import FileVersion
from neobert_train.tokenizers.text_tokenizer import TextTokenizer


@dataclass(frozen=True, slots=True)
class SourceFile:
    """A file of a source, as a run writes it down when it begins.

    Attributes:
        name: without the folders above it, so that files may be moved.
        version: of the file.
    """

    name: str
    version: FileVersion

    def to_json(self) -> list[Any]:
        """Return name, bytes and marks."""
        return [self.name, self.version.size, dict(self.version.marks)]

    @classmethod
    def from_json(cls, value: Any) -> "SourceFile":
        """Return the inverse of `to_json`, also of what 0.1.0 wrote: name and bytes.

        Raises:
            ValueError: it is something else.
        """
        if isinstance(value, list) and len(value) == 2:
            value = [*value, {}]
        name, size, marks = parse(tuple[str, Count | None, dict[str, str]], value, "file")
        return cls(name, FileVersion(size, tuple(marks.items())))


_SHOWN_FILES = 5
# The files of every source, by its name.
SourceFiles = dict[str, list[Annotated[SourceFile, PlainValidator(SourceFile.from_json)]]]


def open_corpus(config: TrainConfig, tokenizer: TextTokenizer) -> Mapping[str, Sequence[Unit]]:
    """Return the units of every configured source, by its name.

    Raises:
        InputError: a source, or the prepared folder, cannot be read.
    """
    num_lanes = compute_num_lanes(config)
    if config.data.prepared_dir:
        return open_prepared(config.data, tokenizer, num_lanes)
    return build_units(config.data, num_lanes)


def list_source_files(units: Mapping[str, Sequence[Unit]]) -> SourceFiles:
    """Return the files of every source, in order.

    The order of documents is a function of these files, so a run can continue with no others.
    """
    return {
        name: [
            SourceFile(unit.name.rpartition("/")[2], unit.file.version)
            for unit in parts
            if unit.part == 0
        ]
        for name, parts in units.items()
    }


def to_json(files: SourceFiles) -> dict[str, Any]:
    """Return the files as JSON."""
    return {name: [file.to_json() for file in entries] for name, entries in files.items()}


def find_other_names(before: Sequence[SourceFile], now: Sequence[SourceFile]) -> str | None:
    """Return how the names of the files of a source differ; None if they do not."""
    old, new = ([file.name for file in files] for files in (before, now))
    if old == new:
        return None
    gone, come = Counter(old) - Counter(new), Counter(new) - Counter(old)
    parts = [f"{len(new):,} files instead of {len(old):,}" if len(old) != len(new) else ""]
    parts += [f"with {_shorten(list(come.elements()))}" if come else ""]
    parts += [f"without {_shorten(list(gone.elements()))}" if gone else ""]
    return ", ".join(filter(None, parts)) or "the same files in another order"


def find_edited_files(before: Sequence[SourceFile], now: Sequence[SourceFile]) -> str | None:
    """Return which files of a source with the same names have another content; None if none have."""
    edited = [
        f"{file.name} ({change})"
        for earlier, file in zip(before, now, strict=True)
        if (change := earlier.version.find_change(file.version))
    ]
    return _shorten(edited) if edited else None


def find_file_differences(before: SourceFiles, now: SourceFiles) -> list[str]:
    """Return how the files of sources differ, one line for each source that does."""
    changes = []
    for name, files in before.items():
        found = now.get(name, [])
        change = find_other_names(files, found) or find_edited_files(files, found)
        if change:
            changes.append(f"source '{name}': {change}")
    return changes


def _shorten(entries: Sequence[str]) -> str:
    shown, more = entries[:_SHOWN_FILES], len(entries) - _SHOWN_FILES
    return ", ".join([*shown, *([f"{more:,} more"] if more > 0 else [])])
