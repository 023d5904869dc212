"""metrics.jsonl as every reader of it sees it: one JSON object per logged step, ascending."""

import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from neobert_train.errors import InputError
from neobert_train.files import DamagedFileError, open_regular, parse_json

_MOST_LINE_BYTES = 1 << 24


def read_metrics(path: Path) -> Iterator[dict[str, Any]]:
    """Read the records of a metrics file; none where there is no file.

    A last line that was cut off when its process or machine died is left out. A value that was not
    finite is None.

    Raises:
        InputError: anything else is not as it was written; names the line and what to do.
    """
    try:
        with open_regular(path) as file:
            latest_step = -1  # step 0 is the untrained network's
            for number, line in enumerate(iter(lambda: file.readline(_MOST_LINE_BYTES), b""), 1):
                record = _parse_line(line, latest_step, f"{path}, line {number}")
                if record is None:
                    return
                latest_step = record["step"]
                yield record
    except FileNotFoundError:
        return
    except OSError as error:
        raise InputError(
            f"{path} cannot be read ({error.strerror}): restore it, or remove it; only the metrics "
            f"are lost then"
        ) from error


def _parse_line(line: bytes, latest_step: int, place: str) -> dict[str, Any] | None:
    """Return the record of a line; None for a line that was cut off."""
    try:
        record = parse_json(line.decode())
        problem = _find_problem(record, latest_step)
    except (UnicodeDecodeError, DamagedFileError) as error:
        if not line.endswith(b"\n") and len(line) < _MOST_LINE_BYTES:
            return None
        problem = "it is not UTF-8" if isinstance(error, UnicodeDecodeError) else str(error)
    if problem is not None:
        raise InputError(
            f"{place} is damaged ({problem}): restore the file, or remove the line; only the metrics "
            f"of that step are lost then"
        )
    return dict(record)


def _find_problem(record: Any, latest_step: int) -> str | None:
    if not isinstance(record, dict):
        return "it is no JSON object"
    step = record.get("step")
    if type(step) is not int or step < 0:
        return "its step must be a whole number, 0 or above"
    if step <= latest_step:
        return f"its step {step} comes after step {latest_step}"
    for key, value in record.items():
        if value is not None and not _is_finite(value):
            return f"{key} must be a finite number or null"
    return None


def _is_finite(value: Any) -> bool:
    try:
        return type(value) in (int, float) and math.isfinite(value)
    except OverflowError:
        return False


def find_latest(
    records: Iterable[Mapping[str, Any]], last_step: float = math.inf
) -> dict[str, Any]:
    """Return the latest value of every metric up to a step; None where that was not finite."""
    latest: dict[str, Any] = {}
    for record in records:
        if record["step"] <= last_step:
            latest.update(record)
    return latest
