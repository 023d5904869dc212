"""The layout that docs/architecture.md describes: small files and functions, tests beside modules."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import neobert_train

SOURCE = Path(neobert_train.__file__).parent
TESTS = Path(__file__).parent
MODULES = sorted(path for path in SOURCE.rglob("*.py") if "assets" not in path.parts)
MOST_LINES, MOST_LINES_OF_FUNCTION, MOST_PARAMETERS = 400, 60, 8
# Their signatures are those of transformers.
OF_TRANSFORMERS = {("modeling_neobert.py", "forward"), ("configuration_neobert.py", "__init__")}


def iter_functions(path: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def count_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """The lines from `def` to the end, without the docstring."""
    first = function.body[0]
    documents = ast.get_docstring(function) is not None
    assert function.end_lineno is not None
    assert first.end_lineno is not None
    docstring = first.end_lineno - first.lineno + 1 if documents else 0
    return function.end_lineno - function.lineno + 1 - docstring


def count_parameters(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    arguments = function.args
    names = [a.arg for a in [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]]
    return len(names) - (names[:1] in (["self"], ["cls"]))


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_files_and_functions_are_small(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= MOST_LINES
    for function in iter_functions(path):
        assert count_lines(function) <= MOST_LINES_OF_FUNCTION, function.name
        if (path.name, function.name) not in OF_TRANSFORMERS:
            assert count_parameters(function) <= MOST_PARAMETERS, function.name


def test_no_module_is_named_for_nothing():
    names = {path.stem for path in MODULES} | {path.parent.name for path in MODULES}
    assert not names & {"utils", "util", "helpers", "common", "misc", "manager"}


def test_folders_of_tests_are_packages_of_the_source():
    folders = {path.parent.relative_to(TESTS) for path in TESTS.rglob("test_*.py")}
    assert {folder for folder in folders if not (SOURCE / folder).is_dir()} == set()


def test_a_test_named_as_a_module_lies_where_the_module_does():
    places = {path.stem: path.parent.relative_to(SOURCE) for path in MODULES}
    names = [path.stem for path in MODULES]
    for test in TESTS.rglob("test_*.py"):
        name = test.stem.removeprefix("test_")
        if names.count(name) == 1:
            assert test.parent.relative_to(TESTS) == places[name], test
