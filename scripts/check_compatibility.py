"""Try an exported model in several versions of the libraries, and write docs/compatibility.md.

    python scripts/check_compatibility.py ENVIRONMENTS              # all of VERSIONS, and this environment
    python scripts/check_compatibility.py ENVIRONMENTS --only 4.57 here
    python scripts/check_compatibility.py ENVIRONMENTS --only here --uses trace fill_mask

ENVIRONMENTS is a folder of virtual environments; those that are missing are made in it, with packages
from PyPI, and results are kept beside them, so that a part can be tried anew. A small random model is
exported, and its numbers are those to compare with. Every use in scripts/compatibility runs in a
process of its own, without access to neobert_train, a GPU or the network.
"""

import argparse
import contextlib
import importlib
import importlib.metadata
import json
import multiprocessing
import multiprocessing.connection
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

TABLE = Path(__file__).resolve().parents[1] / "docs" / "compatibility.md"
_ONNX = ("onnx==1.23.2", "onnxscript==0.7.2", "onnxruntime==1.32.0")
# By version of transformers, with other packages of about the same date.
VERSIONS = {
    "4.48": (
        "transformers==4.48.3", "torch==2.6.0", "accelerate==1.3.0", "datasets==3.2.0", "peft==0.14.0",
        "sentence-transformers==3.4.1", "onnx==1.17.0", "onnxscript==0.2.0", "onnxruntime==1.20.1",
        "protobuf<6", "numpy<2.3",
    ),
    "4.52": (
        "transformers==4.52.4", "torch==2.13.0", "accelerate==1.7.0", "datasets==3.6.0", "peft==0.15.2",
        "sentence-transformers==4.1.0", *_ONNX,
    ),
    "4.57": (
        "transformers==4.57.3", "torch==2.13.0", "accelerate==1.12.0", "datasets==4.4.2", "peft==0.18.0",
        "sentence-transformers==5.1.2", "optimum-onnx==0.1.0", *_ONNX,
    ),
    "5.3": (
        "transformers==5.3.0", "torch==2.13.0", "accelerate==1.13.0", "datasets==4.8.3", "peft==0.18.1",
        "sentence-transformers==5.3.0", *_ONNX,
    ),
    "5.9": (
        "transformers==5.9.0", "torch==2.13.0", "accelerate==1.14.0", "datasets==5.0.0", "peft==0.19.1",
        "sentence-transformers==5.5.1", *_ONNX,
    ),
}  # fmt: skip
HERE = "here"
PACKAGES = (
    "transformers", "torch", "numpy", "tokenizers", "accelerate", "peft", "datasets",
    "sentence-transformers", "onnx", "onnxscript", "onnxruntime", "optimum-onnx",
)  # fmt: skip
# What the uses may not find: this package, and those that only some users have.
_ABSENT = ("neobert_train", "deepspeed", "flash_attn", "flash_attn_interface", "xformers")
# Imported once, before the processes of the uses part, where many of them will be wanted.
_SLOW_IMPORTS = ("sentence_transformers", "peft", "accelerate", "datasets", "onnxruntime")
_USE_SECONDS = 600
_INTRODUCTION = """# Uses of an exported model

Written by `python scripts/check_compatibility.py ENVIRONMENTS`, which exports a small random model of
every kind, loads it with `trust_remote_code=True` in each of these environments (Linux, CPU), in
processes that have neither neobert_train nor the network, and tries what users of encoders do. *yes*
means that the use worked and that its numbers are those of the exporting process: within {tolerance:g}
of the largest one, {onnx:g} for ONNX, {half:g} in bf16 and fp16, {quantized:g} with weights of 8 bits.
A dash means that the environment offers no such use; the notes say why, and what failed. What needs a
GPU was not tried. The uses are small functions in `scripts/compatibility`.
"""


def make_environment(folder: Path, packages: Sequence[str]) -> Path:
    """Make a virtual environment where there is none, and install what it lacks; its interpreter."""
    python = folder / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, *packages], check=True)
    return python


def run_uses(python: Path, models: Path, uses: Sequence[str], work: Path) -> dict[str, Any]:
    """Run uses with an interpreter, and return `versions` and `outcomes`."""
    result = work / "result.json"
    environment = {
        **os.environ, "CUDA_VISIBLE_DEVICES": "", "HF_HOME": str(work / "home"), "HF_HUB_OFFLINE": "1",
        "HF_HUB_CACHE": str(models / "hub"), "HF_MODULES_CACHE": str(work / "modules"),
        "PYTHONPATH": "", "TOKENIZERS_PARALLELISM": "false", "WANDB_MODE": "disabled",
    }  # fmt: skip
    command = [python, __file__, "--inside", models, result, "--uses", *uses]
    subprocess.run([*map(str, command)], env=environment, cwd=work, check=True)
    found: dict[str, Any] = json.loads(result.read_text())
    return found


def run_inside(models: Path, result: Path, names: Sequence[str]) -> None:
    """Run uses in this environment, and write what came of each."""
    for name in [*_ABSENT, *sys.modules]:
        if name.partition(".")[0] in _ABSENT:
            sys.modules[name] = None  # type: ignore[assignment]
    for name in () if names else _SLOW_IMPORTS:
        with contextlib.suppress(Exception):
            importlib.import_module(name)
    sections = importlib.import_module("compatibility").SECTIONS
    outcomes = {}
    for use in (use for uses in sections.values() for use in uses):
        if names and use.__name__ not in names:
            continue
        start = time.monotonic()
        answer, reason, trace = run_apart(use, models)
        seconds = time.monotonic() - start
        print(f"{seconds:5.0f} s  {answer:3}  {use.__doc__}  {reason}", flush=True)
        if trace and names:
            print(trace, flush=True)
        outcomes[use.__name__] = answer, reason
    versions = {name: find_version(name) for name in PACKAGES}
    result.write_text(json.dumps({"versions": versions, "outcomes": outcomes}))


def find_version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package).partition("+")[0]
    except importlib.metadata.PackageNotFoundError:
        return None


def run_apart(use: Any, models: Path) -> tuple[str, str, str]:
    """Run a use in a process of its own: `yes`, `no` or a dash, a reason, and a traceback."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    with tempfile.TemporaryDirectory() as scratch:
        process = context.Process(target=_answer, args=(use, models, Path(scratch), sender))
        process.start()
        sender.close()
        answer = "no", f"no result within {_USE_SECONDS} s", ""
        if receiver.poll(_USE_SECONDS):
            try:
                answer = receiver.recv()
            except EOFError:
                process.join()
                answer = "no", f"the process ends with {process.exitcode}", ""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid or 0, signal.SIGKILL)  # with what it started
        process.join()
    return answer


def _answer(
    use: Any, models: Path, scratch: Path, sender: multiprocessing.connection.Connection
) -> None:
    os.setsid()
    os.chdir(scratch)
    given = importlib.import_module("compatibility.given")
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(nowhere, stream)
    (scratch / "files").mkdir()
    try:
        sender.send(("yes", use(given.read_given(models, scratch / "files")) or "", ""))
    except given.NotOfferedError as error:
        sender.send(("-", str(error), ""))
    except BaseException as error:
        sender.send(("no", shorten(error), traceback.format_exc()))
    os._exit(0)


def shorten(error: BaseException) -> str:
    """Return kind and first line of an error, or the line of the assertion that failed."""
    words = str(error).strip() or traceback.extract_tb(error.__traceback__)[-1].line or ""
    return f"{type(error).__name__}: {words}".split("\n")[0][:200]


def merge(path: Path, result: dict[str, Any]) -> None:
    """Write results; those of uses that were not run stay, if the versions are still the same."""
    if path.exists():
        earlier = json.loads(path.read_text())
        if earlier["versions"] == result["versions"]:
            result["outcomes"] = earlier["outcomes"] | result["outcomes"]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result))


def render(results: Sequence[Mapping[str, Any]]) -> str:
    """Return the page for the results in each environment."""
    given = importlib.import_module("compatibility.given")
    tolerances = {
        name: getattr(given, f"{name.upper()}_TOLERANCE") for name in ("onnx", "half", "quantized")
    }
    lines = [_INTRODUCTION.format(tolerance=given.TOLERANCE, **tolerances)]
    numbers = [result["versions"]["transformers"] for result in results]
    rule = _row(["---", *[":-:"] * len(results)])
    lines += [_row(["transformers", *numbers]), rule]
    for package in PACKAGES[1:]:
        lines.append(_row([package, *(result["versions"][package] or "-" for result in results)]))
    notes: list[str] = []
    for section, uses in importlib.import_module("compatibility").SECTIONS.items():
        lines += ["", f"## {section}", "", _row(["with transformers", *numbers]), rule]
        for use in uses:
            outcomes = (result["outcomes"].get(use.__name__, ("", "")) for result in results)
            cells = [_show(answer, reason, notes) for answer, reason in outcomes]
            lines.append(_row([use.__doc__, *cells]))
    lines += ["", "## Notes", "", *(f"{n}. {note}" for n, note in enumerate(notes, 1))]
    return "\n".join(lines) + "\n"


def _show(answer: str, reason: str, notes: list[str]) -> str:
    """Return the cell of an outcome, and add its reason to the notes."""
    if answer == "yes" or not reason:
        return f"{answer}, {reason}" if reason else answer
    if reason not in notes:
        notes.append(reason)
    return f"{answer} ({notes.index(reason) + 1})"


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("environments", type=Path, nargs="?", help="folder of virtual environments")
    parser.add_argument("--only", nargs="+", default=[*VERSIONS, HERE], choices=[*VERSIONS, HERE],
                        help="environments to try; the table keeps the rest")  # fmt: skip
    parser.add_argument("--uses", nargs="*", default=[],
                        help="functions to run, with tracebacks; the table keeps the rest")  # fmt: skip
    parser.add_argument("--out", type=Path, default=TABLE, help="the page to write")
    parser.add_argument("--inside", nargs=2, type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.inside:
        models, result = arguments.inside
        run_inside(models, result, arguments.uses)
        return
    if arguments.environments is None:
        parser.error("name a folder for the environments")
    sections = importlib.import_module("compatibility").SECTIONS
    unknown = {*arguments.uses} - {use.__name__ for uses in sections.values() for use in uses}
    if unknown:
        parser.error(f"there is no use {', '.join(sorted(unknown))}")
    folder = arguments.environments.absolute()
    with tempfile.TemporaryDirectory() as temporary:
        models = Path(temporary) / "models"
        importlib.import_module("compatibility.exported").write_models(models)
        for name in arguments.only:
            print(f"{name}:", flush=True)
            python = Path(sys.executable)
            if name != HERE:
                python = make_environment(folder / name, VERSIONS[name])
            work = Path(temporary) / name
            work.mkdir()
            merge(folder / f"{name}.json", run_uses(python, models, arguments.uses, work))
    files = [folder / f"{name}.json" for name in (*VERSIONS, HERE)]
    results = [json.loads(path.read_text()) for path in files if path.exists()]
    arguments.out.write_text(render(results), encoding="utf-8")


if __name__ == "__main__":
    main()
