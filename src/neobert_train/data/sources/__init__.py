"""Where documents come from, by the `data` section of the configuration."""

from collections.abc import Sequence
from pathlib import Path

from neobert_train.config.data_schema import DataConfig, SourceConfig, SourceKind
from neobert_train.config.derived import resolve_sources
from neobert_train.data.sources.files import build_file_units
from neobert_train.data.sources.huggingface import build_huggingface_units
from neobert_train.data.sources.source import (
    END_OF_UNIT,
    AnyRecord,
    BadRecord,
    Record,
    TokenizedRecord,
    Unit,
)
from neobert_train.data.storage import Network

__all__ = [
    "EMBEDDED_TEXTS",
    "END_OF_UNIT",
    "AnyRecord",
    "BadRecord",
    "Record",
    "TokenizedRecord",
    "Unit",
    "build_units",
]

EMBEDDED_TEXTS = Path(__file__).resolve().parents[2] / "assets" / "state_of_the_union.parquet"


def build_units(config: DataConfig, num_lanes: int) -> dict[str, Sequence[Unit]]:
    """The units of every configured source, in an order that depends on the source alone.

    Raises:
        InputError: a source cannot be read; lists everything that is wrong with it.
    """
    return {
        name: _build_source_units(config, source, num_lanes)
        for name, source in resolve_sources(config).items()
    }


def _build_source_units(config: DataConfig, source: SourceConfig, num_lanes: int) -> Sequence[Unit]:
    network = Network(config.max_retries, config.timeout_seconds)
    if source.source is SourceKind.huggingface:
        return build_huggingface_units(source, network, num_lanes, config.on_bad_record)
    embedded = source.source is SourceKind.embedded
    paths = [str(EMBEDDED_TEXTS)] if embedded else source.paths
    return build_file_units(source, paths, network, num_lanes, config.on_bad_record)
