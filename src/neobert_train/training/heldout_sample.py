"""The held-out documents of a run: looked for once, kept in its directory, the same on all processes."""

import logging

from neobert_train.batch import Batch
from neobert_train.config.schema import TrainConfig
from neobert_train.data.heldout import CorpusSample, build_evaluation_batches, sample_corpus
from neobert_train.data.lane.targets import MOST_UNKNOWN, describe_unknown
from neobert_train.distributed import Collectives
from neobert_train.errors import InputError
from neobert_train.run.directory import RunDirectory
from neobert_train.tokenizers.text_tokenizer import TextTokenizer
from neobert_train.training.starting_point import StartingPoint

logger = logging.getLogger(__name__)


def share_sample(
    config: TrainConfig, run: RunDirectory, start: StartingPoint, collectives: Collectives
) -> CorpusSample:
    """Return the held-out documents that the main process finds; raises InputError on every process."""
    found = collectives.on_main(lambda: find_sample(config, run, start).to_dict())
    return CorpusSample(**found)


def find_sample(config: TrainConfig, run: RunDirectory, start: StartingPoint) -> CorpusSample:
    """Return the held-out documents; looked for when a run begins, and kept in its directory.

    Raises:
        InputError: evaluation is asked for and no document is held out, or the tokenizer knows
            nothing of the documents.
    """
    if start.checkpoint is not None and run.heldout_file.exists():
        sample = CorpusSample.load(run.heldout_file, start.tokenizer.vocab_size)
        check_unknown_shares(sample, start.tokenizer)
        return sample
    if not config.evaluation.max_tokens:
        return CorpusSample()
    sample = sample_corpus(config, start.units, start.tokenizer)
    check_unknown_shares(sample, start.tokenizer)
    if not sample.heldout:
        raise InputError(
            f"none of the {sample.num_documents} documents looked through is held out: raise "
            f"data.heldout_fraction, or write evaluation.max_tokens=0 to train without evaluation"
        )
    return sample


def check_unknown_shares(sample: CorpusSample, tokenizer: TextTokenizer) -> None:
    """Warn of sources that the tokenizer does not know much of.

    Raises:
        InputError: it knows nothing of any of them.
    """
    shares = sample.unknown_shares
    problems = [
        describe_unknown(share, f"the source '{name}'", tokenizer.name)
        for name, share in shares.items()
        if share > MOST_UNKNOWN
    ]
    if shares and min(shares.values()) == 1.0:
        raise InputError.from_problems(problems)
    for problem in problems:
        logger.warning("%s", problem)


def build_heldout_batches(
    config: TrainConfig, sample: CorpusSample, tokenizer: TextTokenizer, pads: bool = False
) -> list[Batch]:
    """Return the held-out documents as batches, the same at every evaluation of the run.

    Args:
        config: of the run.
        sample: holds the documents.
        tokenizer: of the run.
        pads: whether batches are to have the shape of those in training, for which GPUs have code.
    """
    return build_evaluation_batches(
        sample.heldout,
        tokenizer,
        config.masking,
        config.batch.context_length,
        config.batch.micro_batch_tokens,
        config.evaluation.max_tokens,
        config.seed,
        pads,
    )
