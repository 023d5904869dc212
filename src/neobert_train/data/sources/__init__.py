"""Where documents come from, by the `data` section of the configuration."""

from collections.abc import Sequence
from pathlib import Path

from neobert_train.config.data_schema import DataConfig, SourceKind
from neobert_train.data.sources.files import build_file_units
from neobert_train.data.sources.huggingface import StreamedDataset, build_huggingface_units
from neobert_train.data.sources.source import END_OF_UNIT, BadRecord, Record, Unit

__all__ = ["EMBEDDED_TEXTS", "END_OF_UNIT", "BadRecord", "Record", "Unit", "build_units"]

EMBEDDED_TEXTS = Path(__file__).resolve().parents[2] / "assets" / "state_of_the_union.parquet"


def build_units(config: DataConfig, num_lanes: int) -> Sequence[Unit]:
    """The units of the configured source, in an order that depends on the source alone.

    Raises:
        InputError: the source cannot be read; lists everything that is wrong with it.
    """
    if config.source is SourceKind.huggingface:
        source = StreamedDataset(
            config.dataset, config.subset, config.split, config.revision, tuple(config.data_files)
        )
        return build_huggingface_units(source, config.column, num_lanes)
    embedded = config.source is SourceKind.embedded
    return build_file_units(
        [str(EMBEDDED_TEXTS)] if embedded else config.paths,
        config.format,
        config.column,
        config.text_documents,
        num_lanes,
        config.on_bad_record,
    )
