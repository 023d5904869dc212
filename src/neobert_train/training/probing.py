"""Probes of the encoder while it is trained; training goes on as if there had been none."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from neobert_train.batch import Batch
from neobert_train.config.data_schema import MaskingConfig
from neobert_train.config.schema import TrainConfig
from neobert_train.data.lane.collate import collate
from neobert_train.data.lane.masking import build_masking
from neobert_train.data.lane.packing import pack_all
from neobert_train.data.lane.randomness import keyed_generator
from neobert_train.distributed import Collectives
from neobert_train.evaluation.state_of_the_union import list_paragraphs, score_probe
from neobert_train.metrics_table import format_metric
from neobert_train.tokenizers.text_tokenizer import TextTokenizer

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ProbeTexts:
    """The texts of the probes as batches, the same on every process.

    Attributes:
        names: of the probes to take.
        batches: the texts, each a document of its own, cut to the context; nothing is masked.
        places: of each batch, [num_documents] int64, which texts its documents are.
    """

    names: Sequence[str]
    batches: Sequence[Batch]
    places: Sequence[npt.NDArray[np.int64]]

    @property
    def num_texts(self) -> int:
        """How many there are in all batches."""
        return sum(map(len, self.places))


def build_probe_texts(config: TrainConfig, tokenizer: TextTokenizer) -> ProbeTexts | None:
    """Return the texts of the probes that a run is to take; None without any.

    Every batch has the length of a micro-batch, so that a compiled network is compiled once.
    """
    names = list(dict.fromkeys(config.evaluation.probes))
    if not names:
        return None
    most = config.batch.context_length - 2
    documents = [ids[:most] for ids in tokenizer.encode(list_paragraphs().texts)]
    capacity = config.batch.micro_batch_tokens
    rule = build_masking(MaskingConfig(), tokenizer)
    packed = pack_all([len(ids) + 2 for ids in documents], capacity)
    batches = [
        collate(
            [documents[place] for place in places],
            capacity,
            tokenizer.special,
            rule,
            0.0,
            keyed_generator("probes"),
        )
        for places in packed
    ]
    return ProbeTexts(
        names, list(map(Batch.from_arrays, batches)), [np.array(places) for places in packed]
    )


def compute_features(
    encode: Callable[[Batch], Tensor], texts: ProbeTexts, collectives: Collectives
) -> npt.NDArray[np.float64]:
    """Return the mean of the hidden states of every text, [num_texts, hidden_size].

    Its [CLS] and [SEP] count, as in the pooling of an export. All processes take part, and have the
    same result.

    Args:
        encode: gives the hidden states [T, hidden_size] of a batch, which it moves to its device itself.
        texts: to encode.
        collectives: of the processes.
    """
    world = collectives.world
    features: npt.NDArray[np.float64] | None = None
    with torch.no_grad():
        # With weights spread over processes every forward pass is a joint one, so all processes
        # make equally many; what is beyond the end does not count.
        for start in range(0, len(texts.batches), world.world_size):
            counts = start + world.rank < len(texts.batches)
            number = start + world.rank if counts else 0
            batch = texts.batches[number]
            hidden = encode(batch)[: batch.num_tokens]
            parts = hidden.float().split(batch.cu_seqlens.diff().tolist())
            means = torch.stack([part.mean(dim=0) for part in parts]).cpu().numpy()
            if features is None:
                features = np.zeros((texts.num_texts, means.shape[1]))
            if counts:
                features[texts.places[number]] = means
    assert features is not None, "there are always texts"
    return np.array(collectives.sum_floats(features.ravel())).reshape(features.shape)


def score_features(
    features: npt.NDArray[np.float64], texts: ProbeTexts, collectives: Collectives
) -> dict[str, float]:
    """Return the scores of the probes by the names of metrics.jsonl, on every process.

    The main process computes them. One that cannot be computed is left out with a warning, since
    training does not depend on it.
    """

    def score() -> dict[str, float]:
        scores = {}
        for name in texts.names:
            try:
                scores[f"probe/{name}"] = score_probe(name, features)
            except Exception as error:  # whatever the libraries raise of strange features
                logger.warning("the probe %s has no score: %s", name, error)
        return scores

    return collectives.on_main(score)


def format_scores(scores: Mapping[str, float]) -> str:
    """Return scores as one line, each with that of a bag of words and of chance."""
    texts = [
        f"{key.partition('/')[2]} {format_metric(key, score)}" for key, score in scores.items()
    ]
    return "probes " + "; ".join(texts)
