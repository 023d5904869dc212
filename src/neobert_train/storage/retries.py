"""Requests that are tried again after a transient failure, within a bounded time."""

import itertools
import logging
import random
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TypeVar

from neobert_train.storage.failures import (
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
_WARNING_EVERY_SECONDS = 60.0
_NOTABLE_PAUSE_SECONDS = 5.0  # every pause this long is shown

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
        timeout_seconds: most seconds that one attempt may take.
    """

    max_retries: int = 8
    timeout_seconds: float = 60.0

    @property
    def limit_seconds(self) -> float:
        """Most seconds that a request may take: its attempts and the pauses between them."""
        return self.timeout_seconds * (self.max_retries + 1)


def retry(request: Callable[[float], T], url: str, network: Network) -> T:
    """Return what `request` returns, calling it again after transient failures.

    Args:
        request: one whole attempt, which ends within the seconds that it is given and leaves
            nothing behind when it fails.
        url: what is read, for messages.
        network: how often to try again, and for how long.

    Raises:
        StorageError: the failure is permanent, or retries or time are spent. No other error is
            chained to it, as those of libraries quote URLs with their signatures.
    """
    end = time.monotonic() + network.limit_seconds
    for attempt in itertools.count():
        try:
            return request(min(network.timeout_seconds, end - time.monotonic()))
        except StorageError:
            raise
        except Exception as error:
            if not is_transient(error):
                permanent = describe_permanent(error, url)
                if permanent is None:  # a mistake in the program
                    raise
                failure = permanent
                break
            asked, left = find_retry_after(error) or 0.0, end - time.monotonic()
            if attempt == network.max_retries or left <= 0.0:
                failure = _describe_exhausted(error, url, attempt + 1, network)
                break
            if asked >= left:
                failure = _describe_long_wait(error, url, asked, network)
                break
            pause = compute_pause(attempt, asked, left)
            _warn(error, url, attempt, pause, network)
        _sleep(pause)
    raise failure


def compute_pause(attempt: int, asked: float, left: float) -> float:
    """Return the seconds before attempt `attempt + 1`: exponential back-off with full jitter.

    Args:
        attempt: number of the attempt that failed, from 0.
        asked: seconds that the server asks for, which are waited first; less than `left`.
        left: seconds until the request has failed.
    """
    # The exponent is bounded, as a float overflows after a thousand attempts.
    longest = min(_LONGEST_PAUSE_SECONDS, _FIRST_PAUSE_SECONDS * 2.0 ** min(attempt, 32))
    # Half of the time is left to the attempts that follow.
    return asked + min(_uniform(0.0, longest), (left - asked) / 2)


def find_retry_after(error: BaseException) -> float | None:
    """Return seconds that the server asks to wait, given as a number or as a date."""
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


def _describe_exhausted(
    error: BaseException, url: str, attempts: int, network: Network
) -> StorageError:
    tries = "1 attempt" if attempts == 1 else f"{attempts} attempts"
    return StorageError(
        f"{show_url(url)}: not read after {tries}, the last: {explain(error)}. Check that "
        f"this machine reaches {get_host(url)}; a slow or busy server may need more than "
        f"data.max_retries={network.max_retries} and data.timeout_seconds="
        f"{network.timeout_seconds:g}",
        is_permanent=False,
    )


def _describe_long_wait(
    error: BaseException, url: str, asked: float, network: Network
) -> StorageError:
    return StorageError(
        f"{show_url(url)}: {get_host(url)} asks to wait {asked:,.0f} seconds ({explain(error)}), "
        f"longer than a request may take: data.timeout_seconds={network.timeout_seconds:g} times "
        f"(data.max_retries={network.max_retries} + 1). Start again later, or raise "
        f"data.max_retries to wait that long",
        is_permanent=False,
    )


def _warn(error: BaseException, url: str, attempt: int, pause: float, network: Network) -> None:
    shown, now = show_url(url), time.monotonic()
    last = _last_warnings.get(shown, -_WARNING_EVERY_SECONDS)
    if pause >= _NOTABLE_PAUSE_SECONDS or now - last >= _WARNING_EVERY_SECONDS:
        _last_warnings[shown] = now
        logger.warning(
            "%s: %s; retry %d of %d in %.1f s", shown, explain(error), attempt + 1,
            network.max_retries, pause,
        )  # fmt: skip


def run_aside(function: Callable[[], T], seconds: float) -> T:
    """Return what a function returns, run by a thread of its own.

    For libraries that know no limit. The thread is left to itself, as it cannot be ended.

    Raises:
        TimeoutError: after `seconds`.
    """
    outcome: Future[T] = Future()

    def run() -> None:
        try:
            outcome.set_result(function())
        except BaseException as error:
            outcome.set_exception(error)

    threading.Thread(target=run, name="waits for the network", daemon=True).start()
    return outcome.result(seconds)
