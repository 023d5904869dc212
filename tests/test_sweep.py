"""`-m`: several runs from one command line, planned before the first and run one by one."""

import json
import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from neobert_train.errors import InputError
from neobert_train.sweep import plan_sweep
from support.programs import find_python
from support.small_vocabulary import list_small_settings

SMOKE = (
    "+experiment=smoke",
    "trainer.max_steps=2",
    "evaluation.max_tokens=0",
    "data.num_workers=0",
    *list_small_settings(),
)


def start(*arguments: str, cwd, python: str = sys.executable) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [python, "-m", "neobert_train", *arguments],
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def find_steps(run) -> list[int]:
    return [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_every_combination_is_one_job_in_a_directory_of_its_own():
    jobs = plan_sweep("train", ["+experiment=smoke", "optimizer.lr=1e-3,0.002", "seed=range(1,4)"])
    assert len({job.overrides for job in jobs}) == 6
    assert jobs[1].swept == ("optimizer.lr=0.001", "seed=2")
    assert jobs[1].overrides == (
        "+experiment=smoke",
        "optimizer.lr=0.001",
        "seed=2",
        "output_dir=runs/smoke-lr-0.001-seed-2",
    )


@pytest.mark.parametrize(
    "arguments",
    [
        ["+experiment=smoke,quickstart"],
        ["+experiment=smoke", "seed=1,2", "output_dir=runs/mine-${seed}"],
    ],
)
def test_directories_that_differ_already_keep_their_names(arguments):
    folders = [job.overrides[-1] for job in plan_sweep("train", arguments)]
    assert len(set(folders)) == 2
    assert not any("experiment-" in folder or "seed-" in folder for folder in folders)


def test_embedders_of_a_sweep_have_folders_of_their_own():
    jobs = plan_sweep(
        "embed", ["model=runs/a", "paths=[x.jsonl]", "output=embedders/a", "lr=1e-5,2e-5"]
    )
    assert [job.overrides[-1] for job in jobs] == [
        "output=embedders/a-lr-1e-05",
        "output=embedders/a-lr-2e-05",
    ]


def test_other_commands_have_no_directories_to_keep_apart():
    jobs = plan_sweep("evaluate", ["run_dir=runs/a,runs/b"])
    assert [job.overrides for job in jobs] == [("run_dir=runs/a",), ("run_dir=runs/b",)]


def test_glob_stands_for_the_choices_of_a_group():
    jobs = plan_sweep("plan", ["+experiment=smoke", "deepspeed=glob(zero*)"])
    assert {job.swept for job in jobs} == {(f"deepspeed=zero{stage}",) for stage in range(4)}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["seed=1,1"], ["2 jobs", "runs/smoke-seed-1", "output_dir"]),
        (
            ["masking.rate=0.2,2", "batch.micro_batch_tokens=4096,500"],
            ["masking.rate=2", "(in masking.rate=2 batch.micro_batch_tokens=4096)", "500"],
        ),
    ],
)
def test_what_is_wrong_with_any_job_is_told_before_the_first(arguments, words):
    with pytest.raises(InputError) as caught:
        plan_sweep("train", ["+experiment=smoke", *arguments])
    for word in words:
        assert word in str(caught.value)


def test_jobs_do_not_push_over_each_other():
    arguments = ["+experiment=smoke", "seed=1,2", "hub.repository=org/name"]
    with pytest.raises(
        InputError, match=r"2 jobs .* push over each other in hub\.repository=org/name"
    ):
        plan_sweep("train", arguments)
    assert len(plan_sweep("train", ["+experiment=smoke", "hub.repository=org/a,org/b"])) == 2


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["model=neobert_base,neobert_huge"], "model=neobert_huge does not exist"),
        (["seed=1,two"], "seed=two does not fit"),
        (["sed=1,2"], "did you mean seed?"),
        (["seed=interval(1,2)"], "list them"),
        (["--config-dir", "mine", "seed=1,2"], "does not go with --config-dir"),
    ],
)
def test_mistakes_in_values_are_told_as_in_a_single_run(tmp_path, arguments, words):
    process = start("-m", "+experiment=smoke", *arguments, cwd=tmp_path)
    output, error = process.communicate(timeout=300)
    assert process.returncode == 2
    assert words in error
    assert "Traceback" not in error
    assert not output
    assert not list(tmp_path.iterdir())


def test_a_launcher_is_told_to_start_each_run(tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    process = start("-m", "+experiment=smoke", "seed=1,2", cwd=tmp_path)
    _, error = process.communicate(timeout=300)
    assert process.returncode == 2
    assert "once for each" in error


def test_a_job_that_fails_does_not_keep_the_next_from_running(tmp_path):
    (tmp_path / "texts.jsonl").write_text(
        "".join(json.dumps({"text": f"{n} words of a text. " * 40}) + "\n" for n in range(60))
    )
    values = "data.paths=[missing.jsonl],[texts.jsonl]"
    sources = ("data=files", values, "data.column=text", "output_dir=${data.paths[0]}.run")
    process = start("--multirun", *SMOKE, *sources, cwd=tmp_path, python=find_python())
    output, error = process.communicate(timeout=300)
    assert process.returncode == 2, error
    assert "job 2 of 2: data.paths=[texts.jsonl]" in output
    assert "1 of 2 jobs failed: data.paths=[missing.jsonl] (exit code 2)" in error
    assert find_steps(tmp_path / "texts.jsonl.run") == [1, 2]


@pytest.mark.parametrize(
    ("number", "whole_group"),
    [(signal.SIGHUP, False), (signal.SIGINT, True), (signal.SIGKILL, False)],
    ids=["SIGHUP", "SIGINT", "SIGKILL"],
)
def test_a_signal_stops_the_job_with_a_checkpoint_and_the_sweep_with_it(
    tmp_path, number, whole_group
):
    arguments = (*SMOKE, "trainer.max_steps=100000", "seed=1,2")
    # The job of one that is forked is in no group with it, nor below it.
    python = find_python() if number == signal.SIGHUP else sys.executable
    process = start("-m", *arguments, cwd=tmp_path, python=python)
    run = tmp_path / "runs" / "smoke-seed-1"
    deadline = time.monotonic() + 120
    while not ((run / "metrics.jsonl").exists() and find_steps(run)):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    jobs = psutil.Process(process.pid).children(recursive=True)
    assert jobs or number == signal.SIGHUP
    (os.killpg if whole_group else os.kill)(process.pid, number)
    output, error = process.communicate(timeout=300)
    assert psutil.wait_procs(jobs, timeout=100)[1] == []
    assert process.returncode == (-number if number == signal.SIGKILL else 3), error
    assert "job 2" not in output
    assert "the same command continues" in error
    assert f"step-{find_steps(run)[-1]:08d}" in os.listdir(run / "checkpoints")
    assert not (tmp_path / "runs" / "smoke-seed-2").exists()
