"""Train small runs with two versions of this code, and compare what they come to bit for bit.

    python scripts/compare_versions.py v0.1.0                 # a revision of git against this checkout
    python scripts/compare_versions.py main~5 --only bf16 2-processes

Each case is trained by both versions: in fp32 and bf16, on one and two processes, with every ZeRO
stage, compiled and not, from a mixture of sources. Then a run that the older version has begun is
continued by this one. Losses, gradient norms, weights, moments and the places in the data have to be
the same. Metrics that only one of the versions has are listed. The exit code is 1 if anything differs.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

REPOSITORY = Path(__file__).resolve().parents[1]
STEPS = 4
SETTINGS = [
    "+experiment=smoke", f"trainer.max_steps={STEPS}", "trainer.evaluate_every_steps=2",
    "checkpoint.save_every_steps=2", "logging.report=false", "data.num_workers=0",
]  # fmt: skip
CASES = {
    "fp32": ["trainer.precision=fp32"],
    "fp32-zero0": ["trainer.precision=fp32", "deepspeed=zero0"],
    "fp32-zero2-2-processes": ["trainer.precision=fp32", "deepspeed=zero2"],
    "fp32-zero3": ["trainer.precision=fp32", "deepspeed=zero3"],
    "fp32-compiled": ["trainer.precision=fp32", "model.compile=true"],
    "bf16": ["trainer.precision=bf16"],
    "bf16-2-processes": ["trainer.precision=bf16"],
    "bf16-zero3-2-processes": ["trainer.precision=bf16", "deepspeed=zero3"],
    "bf16-compiled": ["trainer.precision=bf16", "model.compile=true"],
    "bf16-checkpointed-words": [
        "trainer.precision=bf16", "model.activation_checkpointing=true", "masking.unit=word",
        "masking.strategy=bert_80_10_10", "masking.final_rate=0.1", "masking.rate_steps=4",
    ],
    "fp32-mixture": [
        "trainer.precision=fp32", "data.mixture.long.weight=0.7", "data.mixture.long.min_tokens=9000",
        "data.mixture.short.weight=0.3", "data.mixture.short.max_tokens=8000",
    ],
}  # fmt: skip
# What depends on the clock.
TIMES = ("seconds", "per_second", "mfu")


@dataclass(frozen=True)
class Result:
    """What a run came to.

    Attributes:
        metrics: by step and name, but for those of time.
        tensors: weights and moments by name.
        lanes: where the data continues.
    """

    metrics: dict[tuple[int, str], Any]
    tensors: dict[str, Any]
    lanes: dict[str, Any]


def train(source: Path, folder: Path, case: str, *overrides: str) -> None:
    """Train a case with the code in `source`."""
    launcher = [sys.executable, "-m", "neobert_train"]
    if "2-processes" in case:
        launcher = [
            sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone",
            "-m", "neobert_train",
        ]  # fmt: skip
    done = subprocess.run(
        [*launcher, *SETTINGS, *CASES[case], f"output_dir={folder}", *overrides],
        env={**os.environ, "PYTHONPATH": str(source / "src"), "OMP_NUM_THREADS": "1"},
        cwd=folder.parent, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    if done.returncode:
        sys.exit(f"{case} fails with the code in {source}:\n{done.stdout}")


def read_result(folder: Path) -> Result:
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    metrics = {
        (record["step"], name): value
        for record in records
        for name, value in record.items()
        if not name.endswith(TIMES)
    }
    checkpoint = folder / "checkpoints" / f"step-{STEPS:08d}"
    tensors = load_file(checkpoint / "model.safetensors")
    tensors |= load_file(checkpoint / "optimizer.safetensors")
    return Result(metrics, tensors, json.loads((checkpoint / "state.json").read_text())["lanes"])


def find_differences(expected: Result, found: Result) -> list[str]:
    """Say what differs, each in a few words; metrics that one version lacks do not count."""
    differences = [
        f"step {step}: {name} is {found.metrics[step, name]}, was {value}"
        for (step, name), value in expected.metrics.items()
        if (step, name) in found.metrics and found.metrics[step, name] != value
    ]
    if expected.tensors.keys() != found.tensors.keys():
        differences.append(f"tensors: {sorted(expected.tensors.keys() ^ found.tensors.keys())[:3]}")
    different = [
        name
        for name, tensor in expected.tensors.items()
        if name in found.tensors and not tensor.equal(found.tensors[name])
    ]
    if different:
        differences.append(f"{len(different)} tensors differ, such as {different[0]}")
    if expected.lanes != found.lanes:
        differences.append("the places in the data differ")
    return differences


def compare(case: str, old: Path, new: Path, work: Path) -> bool:
    """Train a case with both versions; whether all is the same."""
    runs = {}
    for name, source in (("old", old), ("new", new)):
        train(source, work / name, case)
        runs[name] = read_result(work / name)
    train(old, work / "continued", case, f"trainer.max_steps={STEPS // 2}")
    train(new, work / "continued", case)
    runs["continued"] = read_result(work / "continued")
    same = True
    for name in ("new", "continued"):
        differences = find_differences(runs["old"], runs[name])
        shown = "the same" if not differences else "\n    ".join(["DIFFERS:", *differences[:8]])
        print(f"{case:28} {name:10} {shown}", flush=True)
        same = same and not differences
    old_names, new_names = ({name for _, name in runs[run].metrics} for run in ("old", "new"))
    for names, word in ((new_names - old_names, "new"), (old_names - new_names, "gone")):
        if names:
            print(f"{'':28} {word:10} {', '.join(sorted(names))}")
    return same


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("revision", help="of git, to compare with")
    parser.add_argument(
        "--only", nargs="*", default=[""], help="parts of the name of a case, all of them"
    )
    arguments = parser.parse_args()
    chosen = [case for case in CASES if all(part in case for part in arguments.only)]
    if not chosen:
        parser.error(f"no case has all of these in its name: {', '.join(CASES)}")
    with tempfile.TemporaryDirectory() as temporary:
        work, old = Path(temporary), Path(temporary) / "old"
        git = ["git", "-C", str(REPOSITORY), "worktree"]
        subprocess.run([*git, "add", "--detach", old, arguments.revision], check=True,
                       stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # fmt: skip
        try:
            results = []
            for case in chosen:
                (work / case).mkdir()
                results.append(compare(case, old, REPOSITORY, work / case))
                shutil.rmtree(work / case)
        finally:
            subprocess.run([*git, "remove", "--force", old], check=True)
    print(f"{sum(results)} of {len(chosen)} cases are the same")
    sys.exit(0 if all(results) else 1)


if __name__ == "__main__":
    main()
