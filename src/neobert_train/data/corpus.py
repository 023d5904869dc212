"""The documents of a run: texts, or the token shards made of them."""

from collections.abc import Mapping, Sequence

from neobert_train.config.derived import compute_num_lanes
from neobert_train.config.schema import TrainConfig
from neobert_train.data.prepared import open_prepared
from neobert_train.data.sources import Unit, build_units
from neobert_train.data.tokenization import TextTokenizer


def open_corpus(config: TrainConfig, tokenizer: TextTokenizer) -> Mapping[str, Sequence[Unit]]:
    """The units of every configured source, by its name.

    Raises:
        InputError: a source, or the prepared folder, cannot be read.
    """
    num_lanes = compute_num_lanes(config)
    if config.data.prepared_dir:
        return open_prepared(config.data, tokenizer, num_lanes)
    return build_units(config.data, num_lanes)
