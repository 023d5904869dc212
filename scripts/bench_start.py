"""Seconds from the command to the first step of a run, and how many of them imports take.

    python scripts/bench_start.py                              # +experiment=smoke
    python scripts/bench_start.py +experiment=smoke model.compile=true

Files are in the system's cache after the first start, which is not counted.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time

IMPORTS = "import neobert_train.commands.train, deepspeed"


def measure_first_step(overrides: list[str]) -> float:
    """Start a run and wait for the line of its first step."""
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        process = subprocess.Popen(
            [
                sys.executable, "-m", "neobert_train", *overrides, f"output_dir={folder}/run",
                "trainer.log_every_steps=1", "trainer.max_steps=2",
            ],
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            text=True,
        )  # fmt: skip
        assert process.stderr is not None
        lines = []
        for line in process.stderr:
            lines.append(line)
            if line.startswith("step 1/"):
                seconds = time.perf_counter() - started
                process.communicate()
                return seconds
    sys.exit("".join(lines))


def measure_imports() -> float:
    """Return seconds of a Python that imports what training needs, and ends."""
    started = time.perf_counter()
    subprocess.run([sys.executable, "-c", IMPORTS], check=True, capture_output=True)
    return time.perf_counter() - started


def main() -> None:
    """Print the medians."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("overrides", nargs="*", default=["+experiment=smoke"])
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    measure_first_step(arguments.overrides)
    steps, imports = [], []
    for _ in range(arguments.rounds):
        steps.append(measure_first_step(arguments.overrides))
        imports.append(measure_imports())
    print(
        f"first step after {statistics.median(steps):.1f} s, {min(steps):.1f} to {max(steps):.1f}"
    )
    print(
        f"imports          {statistics.median(imports):.1f} s, {min(imports):.1f} to {max(imports):.1f}"
    )


if __name__ == "__main__":
    main()
