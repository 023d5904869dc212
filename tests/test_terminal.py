"""What is printed never ends a command, and never acts on the terminal."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import neobert_train
from neobert_train.terminal import escape_controls

PLAN = ["plan", "+experiment=smoke"]
SOURCES = Path(neobert_train.__file__).parent


def start(*arguments, program=("-m", "neobert_train"), **options):
    return subprocess.run(
        [sys.executable, *program, *map(os.fspath, arguments)], timeout=300, check=False, **options
    )


def open_pipe_without_reader():
    """The writing end of a pipe such as `| head` leaves."""
    reader, writer = os.pipe()
    os.close(reader)
    return writer


def open_full_disk():
    return os.open("/dev/full", os.O_WRONLY)


def test_nothing_prints_but_the_terminal_module():
    found = []
    for path in SOURCES.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            match node:
                case ast.Call(func=ast.Name(id="print")):
                    found.append(f"{path.name}:{node.lineno}")
                case ast.Attribute(
                    value=ast.Attribute(attr="stdout" | "stderr"), attr="write" | "writelines"
                ):
                    found.append(f"{path.name}:{node.lineno}")
    assert found == []


@pytest.mark.parametrize(
    ("lose", "arguments"),
    [
        (open_pipe_without_reader, ["--help"]),
        (open_pipe_without_reader, [*PLAN, "--cfg", "job"]),
        (open_full_disk, PLAN),
    ],
)
def test_output_that_nobody_takes_is_no_error(lose, arguments):
    stream = lose()
    done = start(*arguments, stdout=stream, stderr=subprocess.PIPE)
    os.close(stream)
    assert (done.returncode, done.stderr) == (0, b"")


def test_a_mistake_keeps_its_exit_code_where_it_cannot_be_told():
    stream = open_full_disk()
    assert start("plan", "sed=1", stdout=stream, stderr=stream).returncode == 2
    os.close(stream)


def test_closed_streams_are_given_to_no_other_file(tmp_path):
    script = (
        "import neobert_train.__main__ as program\n"
        "def run(config, world):\n"
        "    with open('file', 'wb') as file:\n"
        "        print(file.fileno(), file=open('number', 'w'))\n"
        "program.load_command = lambda command: run\nprogram.run_program()"
    )
    command = ["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", sys.executable, "-c", script, *PLAN]
    assert subprocess.run(command, cwd=tmp_path, timeout=300, check=False).returncode == 0
    assert int((tmp_path / "number").read_text()) > 2


@given(st.text())
def test_escaped_text_holds_no_controls_and_the_rest_as_it_was(text):
    escaped = escape_controls(text)
    assert all(ord(c) >= 0x20 or c in "\n\t" for c in escaped)
    assert not any(0x7F <= ord(c) < 0xA0 or 0xD800 <= ord(c) < 0xE000 for c in escaped)
    harmless = [c for c in text if c.isprintable() or c in "\n\t"]
    assert escape_controls("".join(harmless)) == "".join(harmless)


def test_escapes_are_those_of_python():
    text = "a\x1b[31m\r\x07\x9b\x7f\u202e\ud800é語\u200d\n\t"
    assert escape_controls(text) == ("a\\x1b[31m\\r\\x07\\x9b\\x7f\\u202e\\ud800é語\u200d\n\t")


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_names_and_ids_of_any_characters_are_shown_on_any_terminal(tmp_path, encoding):
    """A file name that is not UTF-8, an id with a lone surrogate, and terminal escapes in both."""
    record = json.dumps({"text": "plain words, 語", "id": "語\ud800\x1b]0;title\x07"}) + "\n"
    file = os.fsencode(tmp_path) + b"/caf\xe9\x1b[31m.jsonl"
    with open(file, "w") as stream:
        stream.write(record * 300)
    done = start(
        "inspect_data", "+experiment=smoke", "data=files", f"data.paths=['{tmp_path}/*.jsonl']",
        "data.column=text", "data.id_column=id", "evaluation.max_tokens=0", "documents=1",
        f"output_dir={tmp_path}", env={**os.environ, "PYTHONIOENCODING": encoding},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    output = done.stdout.decode(encoding)
    shown = {"ascii": "\\u8a9e", "latin-1": "\\u8a9e", "utf-8": "語"}[encoding]
    assert f"corpus, {shown}\\ud800\\x1b]0;title\\x07 (" in output
    assert "caf\\udce9\\x1b[31m.jsonl" in output
    assert not {"\x1b", "\x07"} & {*output}


WARNS = """
import logging, logging.config
import neobert_train.storage.retries  # before Hydra sets up logging
import neobert_train.__main__ as program
logger = logging.getLogger("neobert_train.storage.retries")
url = "https://planted-user:planted-password@host/x?sig=planted-signature"
def run(config, world):
    logger.warning("of %s", "\\x1b[31m")
    logging.getLogger("a.library").error("cannot read %s", url)
program.load_command = lambda command: run
program.run_program()
"""


def test_warnings_are_shown_to_a_program_that_imported_the_package_first():
    done = start(*PLAN, program=("-c", WARNS), capture_output=True, text=True)
    assert done.returncode == 0
    assert done.stderr == "WARNING: of \\x1b[31m\nERROR: cannot read https://host/x\n"


def test_a_crash_shows_no_credentials():
    fails = (
        "import neobert_train.__main__ as program\n"
        "def run(config, world): raise RuntimeError(f'cannot read {config.data.paths[0]} \\x1b[1m')\n"
        "program.load_command = lambda command: run\nprogram.run_program()"
    )
    url = "data.paths=['https://planted-user:planted-password@host/x?sig=planted-signature']"
    done = start(*PLAN, "data=files", url, program=("-c", fails), capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.splitlines()[0] == "Traceback (most recent call last):"
    assert done.stderr.endswith("RuntimeError: cannot read https://host/x \\x1b[1m\n")
    assert "planted" not in done.stderr
