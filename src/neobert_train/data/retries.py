"""Requests that are tried again after a failure that passes, with growing pauses."""

import itertools
import logging
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TypeVar

from neobert_train.data.failures import (
    StorageError,
    describe_permanent,
    explain,
    get_host,
    is_transient,
    iter_causes,
)
from neobert_train.urls import show_url

logger = logging.getLogger(__name__)

T = TypeVar("T")

_FIRST_PAUSE_SECONDS = 0.5
_LONGEST_PAUSE_SECONDS = 60.0
_LONGEST_RETRY_AFTER_SECONDS = 300.0
_WARNING_EVERY_SECONDS = 60.0

# Replaced by tests, which do not wait. Every rank and worker must draw other pauses, also where
# all are seeded alike or forked from one: hence not the global generator.
_sleep = time.sleep
_uniform = random.SystemRandom().uniform
_last_warnings: dict[str, float] = {}  # by shown URL, in seconds of time.monotonic


@dataclass(frozen=True, slots=True)
class Network:
    """How patient requests are; travels to worker processes.

    Attributes:
        max_retries: further attempts after the first. Each block read counts its own.
        timeout_seconds: a request that gives nothing for this long has failed.
    """

    max_retries: int = 8
    timeout_seconds: float = 60.0


def retry(request: Callable[[], T], url: str, network: Network) -> T:
    """What `request` returns, called again after failures of the network and the server.

    Args:
        request: one whole attempt, which leaves nothing behind when it fails.
        url: what is read, for messages.
        network: how often to try again.

    Raises:
        StorageError: the failure is no passing one, or the retries are spent. No other error is
            chained to it, as those of libraries quote URLs with their signatures.
    """
    for attempt in itertools.count():
        try:
            return request()
        except StorageError:
            raise
        except Exception as error:
            if not is_transient(error):
                permanent = describe_permanent(error, url)
                if permanent is None:  # a mistake in the program
                    raise
                failure = permanent
                break
            if attempt == network.max_retries:
                failure = _describe_exhausted(error, url, network)
                break
            pause = compute_pause(attempt, find_retry_after(error))
            _warn(error, url, attempt, pause, network)
        _sleep(pause)
    raise failure


def compute_pause(attempt: int, retry_after: float | None) -> float:
    """Seconds before attempt number `attempt + 1`: exponential back-off with full jitter.

    What the server asks for is waited first, up to five minutes.
    """
    # The exponent is bounded, as a float overflows after a thousand attempts.
    longest = min(_LONGEST_PAUSE_SECONDS, _FIRST_PAUSE_SECONDS * 2.0 ** min(attempt, 32))
    asked = min(retry_after or 0.0, _LONGEST_RETRY_AFTER_SECONDS)
    return asked + _uniform(0.0, longest)


def find_retry_after(error: BaseException) -> float | None:
    """Seconds that the server asks to wait, given as a number or as a date."""
    for cause in iter_causes(error):
        response = getattr(cause, "response", None)
        headers = getattr(cause, "headers", None) or getattr(response, "headers", None)
        value = headers.get("Retry-After") if headers else None
        if isinstance(value, str):
            return _parse_retry_after(value.strip())
    return None


def _parse_retry_after(value: str) -> float | None:
    if value.isascii() and value.isdigit():
        return float(value)
    try:
        date = parsedate_to_datetime(value)
    except ValueError:
        return None
    date = date if date.tzinfo else date.replace(tzinfo=UTC)
    return max(0.0, (date - datetime.now(UTC)).total_seconds())


def _describe_exhausted(error: BaseException, url: str, network: Network) -> StorageError:
    attempts = network.max_retries + 1
    tries = "1 attempt" if attempts == 1 else f"{attempts} attempts"
    return StorageError(
        f"{show_url(url)}: not read after {tries}, the last: {explain(error)}. Check that "
        f"this machine reaches {get_host(url)}; a slow or busy server may need more than "
        f"data.max_retries={network.max_retries} and data.timeout_seconds="
        f"{network.timeout_seconds:g}",
        is_permanent=False,
    )


def _warn(error: BaseException, url: str, attempt: int, pause: float, network: Network) -> None:
    shown, now = show_url(url), time.monotonic()
    if now - _last_warnings.get(shown, -_WARNING_EVERY_SECONDS) >= _WARNING_EVERY_SECONDS:
        _last_warnings[shown] = now
        logger.warning(
            "%s: %s; retry %d of %d in %.1f s", shown, explain(error), attempt + 1,
            network.max_retries, pause,
        )  # fmt: skip
