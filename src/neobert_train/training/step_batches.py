"""The micro-batches of the next step, waited for by all processes together."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

from neobert_train.batch import Batch
from neobert_train.data.loader import StepLoader
from neobert_train.distributed import Collectives
from neobert_train.errors import InputError

# While data is late the processes meet this often, so that a request to stop is heard.
_POLL_SECONDS = 1.0


class StoppedError(Exception):
    """Training was asked to stop, or must; says by what."""


@dataclass(frozen=True)
class StepBatches:
    """What a step trains on.

    Attributes:
        batches: of this process.
        tokens: tokens of documents in the global batch.
        text_tokens: those without the [CLS] and [SEP] around each document.
        unknown_tokens: those of the text that are [UNK].
        num_targets: tokens of the global batch to predict.
        squared_lengths: sum of the squared lengths of its documents.
        wait_seconds: how long this process waited for its own batches.
    """

    batches: list[Batch]
    tokens: int
    text_tokens: int
    unknown_tokens: int
    num_targets: int
    squared_lengths: int
    wait_seconds: float


def collect_step(
    loader: StepLoader,
    collectives: Collectives,
    find_reason_to_stop: Callable[[], str | None],
    patience_seconds: float | None,
) -> StepBatches:
    """Wait until every process has its micro-batches of the next step.

    Args:
        loader: of this process.
        collectives: of all processes, which call this together.
        find_reason_to_stop: why this process wants to stop; None if it does not.
        patience_seconds: after which late data ends the run; None waits for ever.

    Raises:
        InputError: some process cannot read its data, or it did not come in time; on every process.
        StoppedError: some process wants to stop; on every process.
    """
    started = time.perf_counter()
    batches: list[Batch] | None = None
    failure: str | None = None
    while True:
        if batches is None:
            try:
                batches = loader.poll_step(_POLL_SECONDS)
            except InputError as error:
                failure = str(error)
            waited = time.perf_counter() - started
        if batches is None and failure is None and waited > (patience_seconds or math.inf):
            failure = (
                f"no data came for {patience_seconds:g} seconds (trainer.step_timeout_seconds): look "
                f"at the warnings before, and at the disks and servers that the data is read from"
            )
        reason = find_reason_to_stop()
        own = batches or []
        tokens, text, unknown, targets, squares, failures, stops, missing = collectives.sum(
            [
                sum(batch.num_tokens for batch in own),
                sum(batch.num_text for batch in own),
                sum(batch.num_unknown for batch in own),
                sum(batch.num_targets for batch in own),
                sum(batch.squared_lengths for batch in own),
                failure is not None,
                reason is not None,
                batches is None,
            ]
        )
        if failures:
            messages = [str(message) for message in collectives.gather(failure) if message]
            raise InputError.from_problems(list(dict.fromkeys(messages)))
        if stops:
            reasons = collectives.gather(reason)
            raise StoppedError(next(reason for reason in reasons if reason))
        if not missing:
            return StepBatches(own, tokens, text, unknown, targets, squares, waited)
