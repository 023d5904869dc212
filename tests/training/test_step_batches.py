"""Waiting for the data of a step: stops are heard meanwhile, and a long wait ends in order."""

import itertools
import json
import signal
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from neobert_train.batch import Batch
from neobert_train.errors import InputError
from neobert_train.training import step_batches
from neobert_train.training.step_batches import StoppedError, collect_step
from support.misbehaving_server import Fault, MisbehavingServer
from support.programs import Forked
from training.runs import MAX_STEPS, SMOKE, finish, fork, wait_for_step

COUNTED = Path(__file__).with_name("counted.py")


def make_batch(length: int) -> Batch:
    return Batch(
        torch.zeros(length), torch.zeros(length), torch.tensor([0, length]), length,
        torch.zeros(2), torch.zeros(2), 0, {},
    )  # fmt: skip


class Processes:
    """This process beside others, which want to say `others` in one round after the other."""

    def __init__(self, *others: list[int]) -> None:
        self.others = iter(others)

    def sum(self, own):
        other = next(self.others, [0] * 8)
        return [int(a) + b for a, b in zip(own, other, strict=True)]

    def gather(self, value):
        return [value, "what the other says"]


def load(*results):
    """A loader that gives results one after the other."""
    answers = iter(results)

    def poll(timeout):
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    return SimpleNamespace(poll_step=poll)


def test_batches_that_come_late_are_waited_for_by_all():
    batches = [make_batch(8), make_batch(4)]
    waits = [7, 5, 1, 2, 49, 0, 0, 1]
    is_there = [100, 80, 3, 20, 900, 0, 0, 0]
    step = collect_step(load(None, batches), Processes(waits, waits, is_there), lambda: None, None)
    assert step.batches == batches
    assert (step.tokens, step.text_tokens, step.unknown_tokens) == (112, 88, 3)
    assert (step.num_targets, step.squared_lengths) == (24, 980)


@pytest.mark.parametrize(
    ("limits", "called"), [([], "sum"), (["trainer.max_seconds=1000"], "sum broadcast")]
)
def test_processes_meet_once_in_a_step_that_is_not_logged(tmp_path, limits, called):
    """The gradient's own sum apart. A second time only where one process has to tell the time for all."""
    words = [
        *SMOKE, *limits, f"trainer.log_every_steps={MAX_STEPS}", "trainer.evaluate_every_steps=0",
        f"checkpoint.save_every_steps={MAX_STEPS}", f"output_dir={tmp_path}",
    ]  # fmt: skip
    output = finish(Forked(str(COUNTED), *words)).splitlines()
    told = [line for line in output if line.startswith("called: ")]
    assert len(told) == MAX_STEPS
    assert told[1:] == [f"called: {called}"] * (MAX_STEPS - 1)
    # It takes a second to load, and nothing is compiled.
    assert output.count("compiler: False") == MAX_STEPS


def test_a_stop_is_heard_by_a_process_that_waits_and_by_one_that_does_not():
    reasons = iter([None, "SIGTERM"])
    with pytest.raises(StoppedError, match="SIGTERM"):
        collect_step(load(None, None), Processes(), lambda: next(reasons), None)
    with pytest.raises(StoppedError, match="what the other says"):
        collect_step(load([make_batch(4)]), Processes([0, 0, 0, 0, 0, 0, 1, 1]), lambda: None, None)


def test_a_failure_anywhere_is_one_everywhere():
    with pytest.raises(
        InputError, match=r"2 problems were found:\n.*a\.jsonl\n.*what the other says"
    ):
        collect_step(
            load(InputError("a.jsonl")), Processes([0, 0, 0, 0, 0, 1, 0, 1]), lambda: None, None
        )


def test_data_that_does_not_come_in_time_is_a_failure(monkeypatch):
    clock = itertools.count(0, 30)
    monkeypatch.setattr(step_batches.time, "perf_counter", lambda: float(next(clock)))
    with pytest.raises(InputError, match=r"no data came for 60 seconds \(trainer.step_timeout_sec"):
        collect_step(load(*[None] * 9), Processes(), lambda: None, 60.0)


@pytest.fixture
def stalled(tmp_path, request):
    """A run that waits for a remote file whose server gives nothing any more."""
    with MisbehavingServer(tmp_path / "served") as server:
        lines = (json.dumps({"text": f"speech {n} of the union " * 400}) for n in range(80))
        (server.folder / "texts.jsonl").write_text("\n".join(lines))
        process = fork(
            tmp_path / "run", "data=files", f"data.paths=[{server.url('texts.jsonl')}]",
            "trainer.max_steps=100000", "evaluation.max_tokens=0", "checkpoint.save_every_steps=1000",
            "data.timeout_seconds=600", "data.num_workers=1", f"trainer.step_timeout_seconds={request.param}",
            "data.shuffle_window=1", "data.shuffle_units=1",
        )  # fmt: skip
        wait_for_step(tmp_path / "run", 2, process)
        server.script(Fault(stall_after=-1), repeat=True)
        wait_for_silence(tmp_path / "run" / "metrics.jsonl", 2.0)
        yield process
        process.kill()


def wait_for_silence(file, seconds):
    """Until nothing was written to a file for so long."""
    size, since = 0, time.monotonic()
    while time.monotonic() - since < seconds:
        if file.stat().st_size != size:
            size, since = file.stat().st_size, time.monotonic()
        time.sleep(0.05)


@pytest.mark.parametrize("stalled", [600], indirect=True)
def test_a_stop_while_data_is_late_leaves_a_checkpoint(stalled, tmp_path):
    stalled.send_signal(signal.SIGTERM)
    output = finish(stalled, code=3)
    assert "stopped by SIGTERM, with the checkpoint of step" in output


@pytest.mark.parametrize("stalled", [6], indirect=True)
def test_data_that_never_comes_ends_the_run_with_a_checkpoint(stalled, tmp_path):
    output = finish(stalled, code=2)
    assert "no data came for 6 seconds" in output
    assert "Traceback" not in output
    assert len(list((tmp_path / "run" / "checkpoints").iterdir())) == 1
