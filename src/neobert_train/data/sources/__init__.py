"""Where documents come from, by the `data` section of the configuration."""

from collections.abc import Sequence
from pathlib import Path

from neobert_train.config.data_schema import DataConfig, SourceConfig, SourceKind
from neobert_train.config.derived import resolve_sources
from neobert_train.data.sources.files import list_units, warn_of_sequential_files
from neobert_train.data.sources.huggingface import list_huggingface_files
from neobert_train.data.sources.source import (
    END_OF_UNIT,
    AnyRecord,
    BadRecord,
    Division,
    Format,
    Record,
    TokenizedRecord,
    Unit,
    divide_files,
)
from neobert_train.storage.stored_files import Network

__all__ = [
    "EMBEDDED_TEXTS",
    "END_OF_UNIT",
    "AnyRecord",
    "BadRecord",
    "Division",
    "Format",
    "Record",
    "TokenizedRecord",
    "Unit",
    "build_units",
    "divide_files",
    "divide_source",
    "list_files_of_source",
]

EMBEDDED_TEXTS = Path(__file__).resolve().parents[2] / "assets" / "state_of_the_union.parquet"


def build_units(config: DataConfig, num_lanes: int) -> dict[str, Sequence[Unit]]:
    """Return the units of every configured source, in an order that depends only on the source.

    Raises:
        InputError: a source cannot be read; lists everything that is wrong with it.
    """
    return {
        name: divide_source(config, source, num_lanes)
        for name, source in resolve_sources(config).items()
    }


def divide_source(config: DataConfig, source: SourceConfig, num_lanes: int) -> Sequence[Unit]:
    """Return the units of a source, and say where dividing it costs reading again.

    Raises:
        InputError: the source cannot be read; lists everything that is wrong with it.
    """
    files = list_files_of_source(config, source)
    warn_of_sequential_files(files)
    return divide_files(files, num_lanes)


def list_files_of_source(config: DataConfig, source: SourceConfig) -> Sequence[Unit]:
    """Return the files of a source, each as one unit.

    Raises:
        InputError: the source cannot be read; lists everything that is wrong with it.
    """
    network = Network(config.max_retries, config.timeout_seconds)
    if source.source is SourceKind.huggingface:
        return list_huggingface_files(source, network, config.on_bad_record)
    embedded = source.source is SourceKind.embedded
    paths = [str(EMBEDDED_TEXTS)] if embedded else source.paths
    return list_units(source, paths, network, config.on_bad_record)
