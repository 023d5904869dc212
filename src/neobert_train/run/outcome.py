"""How the latest start of a run ended, as the run itself writes down.

A launcher's exit code does not tell: it may end before the run does, or with another code.
"""

import logging
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Annotated

from pydantic import Field

from neobert_train.config.typed import Count, read_run_json
from neobert_train.errors import EXIT_STOPPED
from neobert_train.files import write_checked_json
from neobert_train.run.directory import RunDirectory
from neobert_train.urls import hide_credentials

logger = logging.getLogger(__name__)

_MOST_CHARACTERS = 2000


@dataclass(frozen=True)
class Outcome:
    """The end of a start: its exit code, what led to it, and when it came."""

    exit_code: Annotated[Count, Field(le=EXIT_STOPPED)]
    reason: str
    ended: str


def write_outcome(run: RunDirectory, exit_code: int, reason: str) -> None:
    """Write down how this start ended; a warning says why that cannot be done."""
    shown = hide_credentials(reason)[:_MOST_CHARACTERS]
    outcome = Outcome(exit_code, shown, datetime.now(UTC).isoformat(timespec="seconds"))
    try:
        write_checked_json(run.outcome_file, asdict(outcome))
    except OSError as error:
        logger.warning("%s cannot be written (%s)", run.outcome_file, error.strerror)


def read_outcome(run: RunDirectory) -> Outcome | None:
    """Read how the latest start ended; None for one that has not, or was killed.

    Raises:
        InputError: the file is damaged.
    """
    if not run.outcome_file.exists():
        return None
    fix = "remove it; nothing but how the latest start ended is lost"
    outcome: Outcome = read_run_json(run.outcome_file, Outcome, fix)
    return outcome
