"""Packages of attention kernels as they are published: how they install, and what they take."""

import ast
import re
import subprocess
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest

from neobert_train.modeling import attention
from neobert_train.models import feed_forward

pytestmark = pytest.mark.slow

OPERATIONS = Path(__file__).parents[2] / "docs" / "operations.md"
# FlashAttention 2 is a source package, whose build asks for CUDA's compiler.
INSTALLED = re.findall(
    r"\| `\.venv/bin/pip install ([^`]*)` \|", OPERATIONS.read_text(encoding="utf-8")
)


def run_pip(*arguments):
    command = [sys.executable, "-m", "pip", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=1200)


@pytest.mark.parametrize("line", INSTALLED)
def test_what_the_documentation_says_to_install_is_found(line):
    arguments = [argument.strip('"') for argument in line.split()]
    if "--no-build-isolation" in arguments:
        done = run_pip("index", "versions", arguments[-1])
    else:
        done = run_pip("install", "--dry-run", "--ignore-installed", "--quiet", *arguments)
    assert done.returncode == 0, done.stderr


def test_every_kernel_of_the_table_is_one_that_is_looked_for():
    names = " ".join(INSTALLED)
    assert {name for name in ("flash-attn-4", "flash-attn", "xformers") if name in names} == {
        "flash-attn-4", "flash-attn", "xformers",
    }  # fmt: skip


def read_published(folder, package, file, function):
    """What the newest release of a package has in a file: the parameters of a function."""
    done = run_pip("download", "--no-deps", "--pre", "--quiet", "--dest", str(folder), package)
    assert done.returncode == 0, done.stderr
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        source = archive.read(file).decode()
    functions = {
        node.name: node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.FunctionDef)
    }
    return functions[function].args


def test_quack_takes_what_it_is_given(tmp_path):
    taken = read_published(tmp_path, "quack-kernels", "quack/mlp.py", "mlp_func")
    call = feed_forward.bind(SimpleNamespace(mlp_func=print))
    names = [argument.arg for argument in taken.args]
    assert names[:3] == ["x", "weight1", "weight2"]
    assert call.keywords.keys() <= set(names[3:])
    assert "activation" in names
    needed = set(names[: len(names) - len(taken.defaults)])
    assert needed <= {*names[:3], *call.keywords}


def test_flash_attention_4_takes_what_it_is_given(tmp_path):
    file = "flash_attn/cute/interface.py"
    taken = read_published(tmp_path, "flash-attn-4", file, "flash_attn_varlen_func")
    names = {argument.arg for argument in (*taken.args, *taken.kwonlyargs)}
    given = ast.parse(Path(attention.__file__).read_text(encoding="utf-8"))
    (call,) = (
        node
        for node in ast.walk(given)
        if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "flash_attn_varlen_func"
    )
    keywords = {keyword.arg for keyword in call.keywords if keyword.arg is not None}
    assert keywords | {"deterministic"} <= names
    assert [argument.arg for argument in taken.args[:3]] == ["q", "k", "v"]
