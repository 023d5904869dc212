"""The script that tries an exported model in other environments, in this one."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from support.programs import find_python

SCRIPTS = Path(__file__).parents[1] / "scripts"
sys.path.insert(0, str(SCRIPTS))

import check_compatibility  # noqa: E402
import compatibility  # noqa: E402
from compatibility import given  # noqa: E402

# What torch cannot do with the name of a commit that begins with a digit.
FAILING = {"save_traced"}


def run(folder, *arguments):
    done = subprocess.run(
        [find_python(), SCRIPTS / "check_compatibility.py", folder, "--only", "here", *arguments],
        capture_output=True, text=True, timeout=1500,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_some_uses_work_here_and_the_table_keeps_the_rest(tmp_path):
    folder, page = tmp_path / "environments", tmp_path / "page.md"
    folder.mkdir()
    versions = {p: check_compatibility.find_version(p) for p in check_compatibility.PACKAGES}
    earlier = {"trace": ["no", "once"], "load_masked_lm": ["no", "before"]}
    (folder / "here.json").write_text(json.dumps({"versions": versions, "outcomes": earlier}))
    uses = ["load_masked_lm", "load_from_hub", "give_labels", "join_by_bounds", "save_traced"]
    output = run(folder, "--out", page, "--uses", *uses)
    answers = [line.split()[2] for line in output.splitlines() if " s  " in line]
    assert answers == ["yes", "yes", "yes", "yes", "no"]
    assert "Traceback" in output
    rows = page.read_text().splitlines()
    assert "| `AutoModelForMaskedLM` | yes |" in rows
    assert f"| {compatibility.converting.trace.__doc__} | no (1) |" in rows
    assert "1. once" in rows
    assert "| `AutoModel` |  |" in rows


@pytest.mark.slow
def test_all_uses_work_here(tmp_path):
    run(tmp_path / "environments", "--out", tmp_path / "page.md")
    result = json.loads((tmp_path / "environments" / "here.json").read_text())
    failed = {name for name, (answer, _) in result["outcomes"].items() if answer == "no"}
    assert failed <= FAILING
    assert (tmp_path / "page.md").read_text().count("| yes") > 50


def test_one_use_that_fails_does_not_stop_the_others(tmp_path, monkeypatch):
    monkeypatch.setattr(given, "read_given", lambda models, scratch: scratch)

    def find_nothing(scratch):
        given.want("package_of_nobody", "name")

    def raise_an_error(scratch):
        raise ValueError("the first line\nand another")

    def say_nothing(scratch):
        raise AssertionError

    answers = [
        check_compatibility.run_apart(use, tmp_path)[:2]
        for use in (lambda scratch: "2 graphs", find_nothing, raise_an_error, say_nothing,
                    lambda scratch: os._exit(7))
    ]  # fmt: skip
    assert answers == [
        ("yes", "2 graphs"),
        ("-", "package_of_nobody is not installed"),
        ("no", "ValueError: the first line"),
        ("no", "AssertionError: raise AssertionError"),
        ("no", "the process ends with 7"),
    ]


def test_the_page_has_a_row_for_every_use_and_nothing_else():
    page = (SCRIPTS.parent / "docs" / "compatibility.md").read_text()
    rows = [line.split(" | ")[0][2:] for line in page.splitlines() if line.startswith("| ")]
    sentences = [use.__doc__ for uses in compatibility.SECTIONS.values() for use in uses]
    others = {"transformers", "with transformers", "---", *check_compatibility.PACKAGES}
    assert [row for row in rows if row not in others] == sentences
