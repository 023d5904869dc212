"""Pushes checkpoints to the Hub while training continues."""

import contextlib
import logging
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable

from neobert_train.config.quoting import to_override
from neobert_train.config.schema import TrainConfig
from neobert_train.errors import InputError
from neobert_train.export.hub import MAIN, find_published, open_repository
from neobert_train.files import TEMPORARY_PREFIX, remove
from neobert_train.run.checkpoint_search import read_weights_digest
from neobert_train.run.directory import RunDirectory
from neobert_train.terminal import print_message, print_output

logger = logging.getLogger(__name__)

_LONGEST_PAUSE = 600.0
_LONGEST_PUSH = 7200.0  # uploads through hf_xet have no limit of their own
_LAST_ATTEMPTS = 6  # at the end of a run, with half a minute of pauses between them
_SHOWN_COMMANDS = 3
# By these an export would take itself for a process of the run.
_LAUNCHER_VARIABLES = (
    "RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "LOCAL_SIZE", "MASTER_ADDR", "MASTER_PORT",
)  # fmt: skip


class Publisher:
    """Pushes the checkpoints that a run keeps for good, and the last one as `main`.

    A thread starts an `export` command for each, one at a time. What is published is asked of the Hub,
    so that no state of ours can be wrong after a crash. No failure ends or delays the run.

    Args:
        config: of the run, with `hub.repository`.
        run: its directory.
    """

    def __init__(self, config: TrainConfig, run: RunDirectory) -> None:
        assert config.hub.repository is not None
        self._repository, self._hub = config.hub.repository, config.hub
        self._keep_every_steps, self._run = config.checkpoint.keep_every_steps, run
        self._folder = run.path / f"{TEMPORARY_PREFIX}upload-{os.getpid()}"
        self._published: set[tuple[str, int]] = set()
        self._is_open = self._is_complete = False
        self._failures, self._warned_of = 0, ""
        self._wake, self._closed = threading.Event(), threading.Event()
        self._process: subprocess.Popen[str] | None = None
        self._thread = threading.Thread(target=self._work, name="publisher", daemon=True)

    def refresh(self) -> None:
        """Push what is kept and not on the Hub, in the background."""
        if self._thread.ident is None:
            self._thread.start()
        self._wake.set()

    def finish(self, find_reason_to_stop: Callable[[], str | None]) -> None:
        """Push the newest checkpoint as `main` too, wait for all, and report what could not be pushed.

        Args:
            find_reason_to_stop: returns why not to wait any longer.
        """
        self._is_complete, self._failures = True, 0
        self.refresh()
        deadline = time.monotonic() + self._hub.wait_seconds
        if self._list_missing():
            print_message(
                f"pushing to {self._repository} on the Hub, for at most {self._hub.wait_seconds:g} s "
                f"(hub.wait_seconds)"
            )
        while (
            self._list_missing()
            and self._failures < _LAST_ATTEMPTS
            and time.monotonic() < deadline
            and find_reason_to_stop() is None
        ):
            time.sleep(0.1)
        if not self._list_missing():
            print_output(f"  on the Hub       {self._repository}")
        self.close()

    def close(self) -> None:
        """End what is being pushed, and report what is not on the Hub, unless no push was asked for."""
        if self._thread.ident is None or self._closed.is_set():
            return
        self._closed.set()
        self._wake.set()
        self._kill()
        self._thread.join(timeout=5.0)
        missing = self._list_missing()
        if missing:
            commands = [
                shlex.join(
                    ["python", "-m", "neobert_train", "export", *self._list_overrides(*target)]
                )
                for target in missing.items()
            ]
            logger.warning(
                "not pushed to %s on the Hub: %s. The same command pushes what is missing, and so does\n  %s",
                self._repository, ", ".join(missing), "\n  ".join(commands[-_SHOWN_COMMANDS:]),
            )  # fmt: skip

    def _list_missing(self) -> dict[str, int]:
        """Return step by branch of what is to be pushed and not known to be on the Hub."""
        steps = [step for step, _ in self._run.list_checkpoints()]
        every = self._keep_every_steps
        targets = {f"step-{step:08d}": step for step in steps if every and step % every == 0}
        if self._is_complete and steps:
            targets[MAIN] = steps[-1]
        return {name: step for name, step in targets.items() if (name, step) not in self._published}

    def _work(self) -> None:
        while not self._closed.is_set():
            self._wake.clear()
            try:
                problem = self._push_missing()
            except Exception as error:  # nothing of this may end the run
                problem = str(error) or type(error).__name__
            if problem is None:
                self._failures = 0
                self._wake.wait()
                continue
            if problem != self._warned_of and not self._closed.is_set():
                self._warned_of = problem
                logger.warning(
                    "not pushed to %s on the Hub yet: %s; tries again until the run ends",
                    self._repository, problem,
                )  # fmt: skip
            self._failures += 1
            self._wake.wait(min(_LONGEST_PAUSE, 2.0 ** min(self._failures - 1, 10)))

    def _push_missing(self) -> str | None:
        """Return what failed; None when all is on the Hub."""
        if not self._is_open:
            open_repository(self._repository, self._hub.private)
            for leftover in self._run.path.glob(f"{TEMPORARY_PREFIX}upload-*"):  # of a killed run
                remove(leftover)
            self._is_open = True
        missing, digests, problems = self._list_missing(), {}, []
        for branch, step in missing.items():
            try:
                digests[branch] = read_weights_digest(self._run.checkpoint(step))
            except InputError as error:
                problems.append(str(error))
        published = find_published(self._repository, digests) if digests else set()
        for branch in digests:
            problem = None if branch in published else self._push(branch, missing[branch])
            if problem is None:
                self._published.add((branch, missing[branch]))
            else:
                problems.append(problem)
        return "; ".join(problems) or None

    def _push(self, branch: str, step: int) -> str | None:
        """Return what failed; None when the checkpoint is pushed."""
        overrides = [*self._list_overrides(branch, step), to_override("output", str(self._folder))]
        try:
            self._process = subprocess.Popen(
                [*_build_command(), *overrides],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                start_new_session=True,
                env=_build_environment(),
            )
            if self._closed.is_set():
                self._kill()
            try:
                output, _ = self._process.communicate(timeout=_LONGEST_PUSH)
            except subprocess.TimeoutExpired:
                self._kill()
                output, _ = self._process.communicate()
        finally:
            remove(self._folder)
        if self._process.returncode == 0:
            return None
        lines = [line for line in output.splitlines() if line.strip()] or [
            "it was killed, or took two hours"
        ]
        said = [line for line in lines if line.startswith("neobert_train: ")]
        return f"{branch}: {(said or lines)[-1].removeprefix('neobert_train: ')}"

    def _list_overrides(self, branch: str, step: int) -> list[str]:
        texts = {
            "run_dir": str(self._run.path),
            "push_to_hub": self._repository,
            "revision": branch,
        }
        if branch == MAIN:
            del texts["revision"]
        if self._hub.license is not None:
            texts["license"] = self._hub.license
        return [
            *(to_override(key, value) for key, value in texts.items()),
            f"step={step}",
            *(["private=true"] if self._hub.private else []),
        ]

    def _kill(self) -> None:
        """End an export with the processes that it has started."""
        if self._process is not None and self._process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)


def _build_command() -> list[str]:
    """Return the command of an export, which gives way to training."""
    nice = ["nice"] if sys.platform != "win32" else []
    return [*nice, sys.executable, "-m", "neobert_train", "export"]


def _build_environment() -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if key not in _LAUNCHER_VARIABLES}
    return {**kept, "CUDA_VISIBLE_DEVICES": "", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
