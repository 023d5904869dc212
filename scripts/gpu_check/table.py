"""Rows of the table, written as they are found; imports no torch."""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

NEEDS_GPU = "needs a GPU"
FAILED = "failed"


@dataclass(frozen=True)
class Row:
    """What was checked.

    Attributes:
        check: what, in a few words.
        measured: what came out.
        expected: what should; an estimate where it says so.
        verdict: yes or no; `FAILED` where the check itself broke, `NEEDS_GPU` where it was left out,
            empty where nothing is expected.
    """

    check: str
    measured: str
    expected: str = ""
    verdict: str = ""


def judge(is_met: bool) -> str:
    """Return the verdict on something that was measured."""
    return "yes" if is_met else "no"


def add_row(file: Path, section: str, row: Row) -> None:
    """Print a row and append it to a file, so that what comes next cannot lose it."""
    print(f"  {row.check}: {row.measured}{f'  [{row.verdict}]' if row.verdict else ''}", flush=True)
    with file.open("a", encoding="utf-8") as out:
        out.write(json.dumps({"section": section, **asdict(row)}) + "\n")


def read_rows(file: Path) -> list[tuple[str, Row]]:
    """Return sections and rows in the order they were written; none where there is no file."""
    if not file.exists():
        return []
    records = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    return [(record.pop("section"), Row(**record)) for record in records]


def drop_section(file: Path, section: str) -> None:
    """Remove the rows of a section that is about to be checked again."""
    kept = [(name, row) for name, row in read_rows(file) if name != section]
    lines = [json.dumps({"section": name, **asdict(row)}) + "\n" for name, row in kept]
    file.write_text("".join(lines), encoding="utf-8")


def format_table(rows: Iterable[tuple[str, Row]]) -> str:
    """Return a Markdown table."""
    lines = ["| section | check | measured | expected | met |", "| :-- | :-- | :-- | :-- | :-- |"]
    for section, row in rows:
        cells = [section, row.check, row.measured, row.expected, row.verdict]
        lines.append(
            f"| {' | '.join(' '.join(cell.split()).replace('|', '/') for cell in cells)} |"
        )
    return "\n".join(lines) + "\n"
