"""The documentation is true: its commands compose, and what it links to and names exists."""

import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from neobert_train.__main__ import check_overrides, split_command
from neobert_train.config.checks import find_problems
from neobert_train.config.store import compose_config, to_typed
from neobert_train.errors import InputError
from neobert_train.sweep import SWEEP_FLAGS, plan_sweep
from neobert_train.world import strip_launcher_arguments

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
EXPERIMENTS = sorted((ROOT / "configs" / "experiment").glob("*.yaml"))

PROGRAM = re.compile(
    r"(python3? -m neobert_train"
    r"|(?<![\w./-])neobert-train"
    r"|deepspeed\s[^|;&]*?--module neobert_train"
    r"|torchrun\s[^|;&]*?-m neobert_train"
    r"|sbatch scripts/slurm/\S+)(?=\s|$)(.*)",
    re.DOTALL,
)
NUM_PROCESSES = re.compile(r"--(?:num_gpus|nproc-per-node)[ =](\d+)")
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
CODE = re.compile(r"`([^`]+)`")
LINK = re.compile(r"\]\(([^)\s]+)\)")
# What a reader replaces, by something that composes.
STAND_INS = {
    "data=...": "data=state_of_the_union", "NAME": "smoke", "step=N": "step=1", " ...": "",
}  # fmt: skip


def iter_commands(page: Path) -> Iterator[str]:
    """Yield the lines and inline code of a page that start the program; a comment is cut off."""
    text = page.read_text(encoding="utf-8")
    if page.suffix == ".yaml":
        comment = "\n".join(line[1:] for line in text.splitlines() if line.startswith("#"))
        yield from (line.strip().split("`")[0] for line in comment.splitlines())
        return
    for kind, block in BLOCK.findall(text):
        if kind != "console":
            yield from re.sub(r"\\\n\s*", "", block).splitlines()
    yield from (" ".join(code.split()) for code in CODE.findall(BLOCK.sub("", text)))


def list_commands() -> dict[str, str]:
    """The launcher with its arguments by page and command."""
    found = {}
    for page in [*PAGES, *EXPERIMENTS]:
        for command in iter_commands(page):
            if program := PROGRAM.search(re.sub(r"\s#\s.*", "", command)):
                found[f"{page.name}: {program[0].strip()}"] = program[0]
    return found


COMMANDS = list_commands()


def read_command(shown: str) -> tuple[str, list[str], int]:
    """The command, its arguments, and the number of processes that the launcher starts."""
    for word, stand_in in STAND_INS.items():
        shown = shown.replace(word, stand_in)
    program = PROGRAM.search(shown)
    processes = NUM_PROCESSES.search(program[1])
    command, arguments = split_command(strip_launcher_arguments(shlex.split(program[2])))
    return command, arguments, int(processes[1]) if processes else 1


@pytest.mark.parametrize("shown", COMMANDS)
def test_every_command_composes_without_problems(shown):
    command, arguments, world_size = read_command(COMMANDS[shown])
    check_overrides(command, arguments)
    overrides = [argument for argument in arguments if not argument.startswith("-")]
    if any(flag in arguments for flag in SWEEP_FLAGS):
        assert len(plan_sweep(command, overrides)) > 1
    else:
        config = to_typed(command, compose_config(command, overrides))
        assert find_problems(config, world_size) == []


def test_the_commands_are_found():
    shown = "\n".join(COMMANDS)
    assert all(f"{path.name}: " in shown for path in EXPERIMENTS)
    for part in (
        "deepspeed --num_gpus 8",
        "torchrun --nproc",
        "sbatch",
        "train_tokenizer",
        "-m +exp",
    ):
        assert part in shown
    assert read_command(COMMANDS["README.md: " + BASE_RUN])[2] == 8


BASE_RUN = "deepspeed --num_gpus 8 --module neobert_train +experiment=pretrain_base"


def test_what_is_reported_of_wrong_settings_is_what_the_readme_shows():
    blocks = dict(BLOCK.findall((ROOT / "README.md").read_text(encoding="utf-8")))
    command, _, output = blocks["console"].partition("\n")
    name, arguments, _ = read_command(command)
    with pytest.raises(InputError) as error:
        check_overrides(name, arguments)
    assert f"neobert_train: {error.value}\n" == output


def list_anchors(page: Path) -> set[str]:
    """The anchors of headings, as GitHub makes them."""
    headings = re.findall(
        r"^#+ (.*)$", BLOCK.sub("", page.read_text(encoding="utf-8")), re.MULTILINE
    )
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_somewhere(page):
    for target in LINK.findall(BLOCK.sub("", page.read_text(encoding="utf-8"))):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.is_relative_to(ROOT), target
        assert file.exists(), target
        assert not anchor or anchor in list_anchors(file), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_file_that_a_page_names_exists_unless_it_is_new(page):
    text = page.read_text(encoding="utf-8")
    paths = re.findall(r"(\bnew )?`((?:src|configs|tests|scripts|docs)/[\w./-]+)`", text)
    for new, path in paths:
        assert (ROOT / path).exists() is not bool(new), path


def test_recipes_name_the_files_and_registries_that_there_are():
    page = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
    package = ROOT / "src" / "neobert_train"
    for recipe in page.split("\n## ")[1:]:
        assert "| file | what to write |" in recipe, recipe.splitlines()[0]
        for _, block in BLOCK.findall(recipe):
            _, *parts = re.split(r"^# ([\w/]+\.py).*$", block, flags=re.MULTILINE)
            for path, code in zip(parts[::2], parts[1::2], strict=True):
                assert f"`src/neobert_train/{path}`" in recipe or f"new `{path}`" in recipe, path
                for registry in re.findall(r"^(\w+) = \{", code, re.MULTILINE):
                    written = (package / path).read_text(encoding="utf-8")
                    assert re.search(rf"^{registry}\b", written, re.MULTILINE), (
                        f"{path}: {registry}"
                    )


def test_the_layout_is_that_of_the_contracts():
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    layers = contracts["tool"]["importlinter"]["contracts"][0]["layers"]
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    table = page.split("| package | what it holds |\n| --- | --- |\n")[1].split("\n\n")[0]
    shown = [set(CODE.findall(row.split("|")[1])) for row in table.splitlines()]
    assert shown == [set(layer.replace("neobert_train.", "").split(" | ")) for layer in layers]
