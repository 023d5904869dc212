"""Send every signal to every process of launched runs, and print what came of it as a table.

    python scripts/signal_table.py                                       # all of it: half an hour
    python scripts/signal_table.py --launchers torchrun --signals TERM,KILL

A small run is started under each launcher. When it trains, one signal goes to the launcher, to the
process that `deepspeed` starts the ranks with (its child), to the last rank, or to the group of the
launcher, as a terminal sends Ctrl-C. The table has the
exit code of the launcher as a shell gives it, when it ended and when the last rank did, in seconds
after the signal, whether the last step taken has a checkpoint, and the exit code of `status`.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

_BIN = Path(sys.executable).parent
LAUNCHERS = {
    "deepspeed": [_BIN / "deepspeed", "--num_gpus=2", "--master_port=29517", "--module"],
    "torchrun": [_BIN / "torchrun", "--standalone", "--nproc-per-node=2", "-m"],
}
TARGETS = {
    "deepspeed": ("launcher", "child", "rank", "group"),
    "torchrun": ("launcher", "rank", "group"),
}
SIGNALS = ("TERM", "INT", "HUP", "USR1", "KILL")
SETTINGS = [
    "+experiment=smoke", "trainer.max_steps=100000", "checkpoint.save_every_steps=100000",
    "evaluation.max_tokens=0", "logging.report=false", "data.num_workers=1",
]  # fmt: skip
_LONGEST_SECONDS = 120.0


def start(launcher: str, output_dir: Path) -> subprocess.Popen:
    """Start a run in a session of its own, in which no signal is ignored."""
    command = [*LAUNCHERS[launcher], "neobert_train", *SETTINGS, f"output_dir={output_dir}"]
    return subprocess.Popen(
        command,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        start_new_session=True,
        preexec_fn=lambda: [signal.signal(getattr(signal, f"SIG{name}"), signal.SIG_DFL)
                            for name in SIGNALS if name != "KILL"],
    )  # fmt: skip


def wait_for_steps(output_dir: Path, process: subprocess.Popen) -> None:
    metrics = output_dir / "metrics.jsonl"
    end = time.monotonic() + _LONGEST_SECONDS
    while not (metrics.exists() and metrics.read_text().count("\n") >= 3):
        assert process.poll() is None, f"{output_dir.name} ended before it trained"
        assert time.monotonic() < end, f"{output_dir.name} does not train"
        time.sleep(0.1)


def list_processes(process: subprocess.Popen, output_dir: Path) -> dict[str, psutil.Process]:
    """Return the launcher, its child where that is no rank, and the last rank."""
    launcher = psutil.Process(process.pid)
    ranks = [
        child
        for child in launcher.children(recursive=True)
        if "neobert_train" in child.cmdline()[:5] and f"output_dir={output_dir}" in child.cmdline()
    ]
    found = {"launcher": launcher, "rank": ranks[-1]}
    parent = ranks[-1].parent()
    return found if parent == launcher else {**found, "child": parent}


def is_running(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def try_signal(launcher: str, target: str, name: str, output_dir: Path) -> str:
    """Return a row of the table."""
    process = start(launcher, output_dir)
    wait_for_steps(output_dir, process)
    processes = list_processes(process, output_dir)
    others = psutil.Process(process.pid).children(recursive=True)
    began = time.monotonic()
    number = getattr(signal, f"SIG{name}")
    if target == "group":
        os.killpg(process.pid, number)
    else:
        processes[target].send_signal(number)
    launcher_seconds = others_seconds = None
    while launcher_seconds is None or others_seconds is None:
        seconds = time.monotonic() - began
        assert seconds < _LONGEST_SECONDS, f"{output_dir.name} does not end"
        if launcher_seconds is None and process.poll() is not None:
            launcher_seconds = seconds
        if others_seconds is None and not any(map(is_running, others)):
            others_seconds = seconds
        time.sleep(0.02)
    status = subprocess.run(
        [sys.executable, "-m", "neobert_train", "status", f"output_dir={output_dir}"],
        stdout=subprocess.DEVNULL,
    ).returncode
    last = json.loads((output_dir / "metrics.jsonl").read_text().splitlines()[-1])["step"]
    saved = (output_dir / "checkpoints" / f"step-{last:08d}").exists()
    code = process.returncode if process.returncode >= 0 else 128 - process.returncode
    return (
        f"| {launcher} | {target} | SIG{name} | {code} | {launcher_seconds:.1f} | "
        f"{others_seconds:.1f} | {'yes' if saved else 'no'} | {status} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--launchers", default=",".join(LAUNCHERS))
    parser.add_argument("--targets", default="launcher,child,rank,group")
    parser.add_argument("--signals", default=",".join(SIGNALS))
    arguments = parser.parse_args()
    print("| launcher | signal to | signal | exit code | launcher s | ranks s | saved | status |")
    print("| --- | --- | --- | --: | --: | --: | --- | --: |")
    with tempfile.TemporaryDirectory() as folder:
        for launcher in arguments.launchers.split(","):
            for target in filter(arguments.targets.split(",").__contains__, TARGETS[launcher]):
                for name in arguments.signals.split(","):
                    output_dir = Path(folder) / f"{launcher}-{target}-{name}"
                    print(try_signal(launcher, target, name, output_dir), flush=True)


if __name__ == "__main__":
    main()
