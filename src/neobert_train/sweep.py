"""A sweep: each combination of `key=a,b` as a run of its own, one after the other (`-m`)."""

import ctypes
import itertools
import re
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from types import FrameType
from typing import Any

from neobert_train.config.checks import find_problems
from neobert_train.config.quoting import to_override
from neobert_train.config.store import compose_config, list_swept_values, to_typed
from neobert_train.errors import EXIT_DONE, EXIT_FAILED, EXIT_STOPPED, InputError
from neobert_train.signals import STOP_SIGNALS, handle_stop_signals
from neobert_train.terminal import print_message, print_output
from neobert_train.urls import show_value

_PR_SET_PDEATHSIG = 1  # prctl.h
SWEEP_FLAGS = ("-m", "--multirun")
# Which setting names the folder that a job writes, where jobs are kept apart.
_FOLDERS = {"train": "output_dir", "embed": "output", "evaluate": "output"}


@dataclass(frozen=True)
class Job:
    """One run of a sweep.

    Attributes:
        overrides: its whole command line.
        swept: the part of it in which the jobs differ.
    """

    overrides: tuple[str, ...]
    swept: tuple[str, ...]

    @property
    def settings(self) -> str:
        """The swept settings as they are shown."""
        return " ".join(map(show_value, self.swept))

    @property
    def label(self) -> str:
        """The swept settings in the form of a file name: `lr-0.001-seed-2`."""
        settings = (override.lstrip("+").partition("=") for override in self.swept)
        names = (f"{key.rpartition('.')[2]}-{show_value(value)}" for key, _, value in settings)
        return re.sub(r"[^\w.+-]+", "_", "-".join(names))


def plan_sweep(command: str, arguments: Sequence[str]) -> list[Job]:
    """Return the jobs of a sweep, all checked, none of them in the run directory of another.

    Runs that would share one get its name with what is their own behind it.

    Args:
        command: of every job.
        arguments: overrides, some of them with several values.

    Raises:
        InputError: a job cannot run; names all that is wrong with any.
    """
    choices = [list_swept_values(command, argument) for argument in arguments]
    is_swept = [values != [argument] for values, argument in zip(choices, arguments, strict=True)]
    jobs = [
        Job(overrides, tuple(itertools.compress(overrides, is_swept)))
        for overrides in itertools.product(*choices)
    ]
    configs = [to_typed(command, compose_config(command, job.overrides)) for job in jobs]
    folder = _FOLDERS.get(command)
    folders = [getattr(config, folder) for config in configs] if folder else []
    if folder is not None and all(folders):  # `evaluate run_dir=...` writes none
        jobs = _separate(jobs, folder, folders)
    problems = [
        f"{problem} (in {job.settings})" if job.swept else problem
        for job, config in zip(jobs, configs, strict=True)
        for problem in find_problems(config, world_size=1)
    ]
    if command == "train":
        problems += _iter_shared_repositories([config.hub.repository for config in configs])
    if problems:
        raise InputError.from_problems(problems)
    return jobs


def _separate(jobs: Sequence[Job], key: str, folders: Sequence[str]) -> list[Job]:
    uses = Counter(folders)
    named = [
        f"{folder}-{job.label}" if uses[folder] > 1 else folder
        for job, folder in zip(jobs, folders, strict=True)
    ]
    for folder, count in Counter(named).items():
        if count > 1:
            raise InputError(
                f"{count} jobs of the sweep would train in {folder}: name each value once, or set "
                f"{key} for each of them"
            )
    return [
        replace(job, overrides=(*job.overrides, to_override(key, folder)))
        for job, folder in zip(jobs, named, strict=True)
    ]


def _iter_shared_repositories(repositories: Sequence[str | None]) -> Iterator[str]:
    for name, count in Counter(repositories).items():
        if name is not None and count > 1:
            yield (
                f"{count} jobs of the sweep would push over each other in hub.repository={name}: leave it "
                f"out, and push what you choose with `export run_dir=... push_to_hub={name}`"
            )


def run_sweep(command: str, jobs: Sequence[Job]) -> int:
    """Run every job as a process of its own; one that fails does not keep the next from starting.

    Signals to stop end the job at hand as they end a single run, and the sweep with it.

    Returns:
        The exit code: of the first job that failed, or was stopped.
    """
    failures: list[tuple[Job, int]] = []
    with _StopForwarder() as stop:
        for number, job in enumerate(jobs, 1):
            print_output(f"job {number} of {len(jobs)}: {job.settings or 'nothing varies'}")
            code = stop.run([sys.executable, "-m", "neobert_train", command, *job.overrides])
            if code == EXIT_STOPPED or stop.request is not None:
                return EXIT_STOPPED if code == EXIT_DONE else code
            if code != EXIT_DONE:
                failures.append((job, code))
    if not failures:
        print_output(f"{len(jobs)} jobs are done")
        return EXIT_DONE
    shown = "; ".join(f"{job.settings} (exit code {code})" for job, code in failures)
    failed = f"{len(failures)} of {len(jobs)} jobs failed: {shown}"
    print_message(f"neobert_train: {failed}")
    return failures[0][1]


class _StopForwarder:
    """Runs processes, and hands on the signals that ask to stop.

    Attributes:
        request: the latest of them; None while there is none.
    """

    def __init__(self) -> None:
        self.request: int | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> "_StopForwarder":
        self._previous = handle_stop_signals(self._forward)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def run(self, command: Sequence[str]) -> int:
        """Return the exit code of a process; one that a signal ended was stopped or has failed."""
        with subprocess.Popen(command, preexec_fn=_end_with_parent) as process:
            self._process = process
            if self.request is not None:  # it came before there was a process to hand it to
                process.send_signal(self.request)
            code = process.wait()
            self._process = None
        if code < 0:
            return EXIT_STOPPED if -code in STOP_SIGNALS else EXIT_FAILED
        return code

    def _forward(self, number: int, frame: FrameType | None) -> None:
        self.request = number
        if self._process is not None:
            self._process.send_signal(number)


_prctl = getattr(ctypes.CDLL(None), "prctl", None)


def _end_with_parent() -> None:
    """Let Linux ask a job to stop when the sweep is killed."""
    if _prctl is not None:
        _prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
