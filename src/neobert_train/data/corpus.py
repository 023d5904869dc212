"""The documents of a run: texts, or the token shards made of them."""

from collections.abc import Mapping, Sequence

from neobert_train.config.derived import compute_num_lanes
from neobert_train.config.schema import TrainConfig
from neobert_train.config.typed import Count
from neobert_train.data.prepared import open_prepared
from neobert_train.data.sources import Unit, build_units
from neobert_train.data.storage import is_url
from neobert_train.tokenizers.text_tokenizer import TextTokenizer
from neobert_train.urls import show_url

# Name and bytes of every file of every source; None for the bytes of remote files.
SourceFiles = dict[str, list[tuple[str, Count | None]]]


def open_corpus(config: TrainConfig, tokenizer: TextTokenizer) -> Mapping[str, Sequence[Unit]]:
    """The units of every configured source, by its name.

    Raises:
        InputError: a source, or the prepared folder, cannot be read.
    """
    num_lanes = compute_num_lanes(config)
    if config.data.prepared_dir:
        return open_prepared(config.data, tokenizer, num_lanes)
    return build_units(config.data, num_lanes)


def list_source_files(units: Mapping[str, Sequence[Unit]]) -> SourceFiles:
    """Name and bytes of every file of every source, in order; the bytes of local files alone.

    The order of documents is a function of these files, so a run can go on with no others.
    """
    files: SourceFiles = {}
    for name, parts in units.items():
        whole = {unit.path: unit for unit in parts}
        files[name] = [
            (_get_name(path), None if is_url(path) else unit.file.get_size())
            for path, unit in whole.items()
        ]
    return files


def _get_name(path: str) -> str:
    return (show_url(path) if is_url(path) else path).rpartition("/")[2]


def find_changed_files(before: SourceFiles, now: SourceFiles) -> list[str]:
    """What differs between the files that a run began with and those that are there now."""
    changes = []
    for name in before:
        old, new = before[name], now.get(name, [])
        if len(old) != len(new):
            changes.append(f"source '{name}': {len(old)} files then, {len(new)} now")
            continue
        for (old_name, old_bytes), (new_name, new_bytes) in zip(old, new, strict=True):
            if old_name != new_name:
                changes.append(f"source '{name}': {new_name} in the place of {old_name}")
            elif old_bytes and new_bytes and old_bytes != new_bytes:
                changes.append(
                    f"source '{name}': {new_name} had {old_bytes:,} bytes, and has {new_bytes:,}"
                )
    return changes
