"""The program as users start it: exit codes, what is printed where, and what is not imported."""

import os
import subprocess
import sys

import pytest
import yaml

HEAVY = ("torch", "deepspeed", "transformers", "datasets", "numpy", "pyarrow")
REPORT_HEAVY = f"""
import runpy, sys
code = 0
try:
    runpy.run_module("neobert_train", run_name="__main__", alter_sys=True)
except SystemExit as stop:
    code = stop.code or 0
heavy = [name for name in {HEAVY} if name in sys.modules]
print("HEAVY", heavy, file=sys.stderr)
sys.exit(code)
"""


def start(*arguments: str, cwd, program=("-m", "neobert_train"), **environment: str):
    clean = {k: v for k, v in os.environ.items() if k not in ("RANK", "LOCAL_RANK", "WORLD_SIZE")}
    return subprocess.run(
        [sys.executable, *program, *arguments],
        cwd=cwd,
        env={**clean, **environment},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["--help"], 0),
        (["+experiment=smoke", "--cfg", "job"], 0),
        (["+experiment=smoke", "--cfg", "job", "seed=3"], 0),
        (["trainer.max_stps=3"], 2),
        (["+experiment=smoke", "--trainer.max_steps=3"], 2),
        (["+experiment=smoke", "--run", "--cfg", "job"], 2),
        (["+experiment=smoke", "--cfg", "job", "masking.rate=2"], 2),
        (["+experiment=smoke", "batch.micro_batch_tokens=500"], 2),
        (["exprt"], 2),
    ],
)
def test_help_settings_and_mistakes_are_answered_without_heavy_imports(tmp_path, arguments, code):
    done = start(*arguments, cwd=tmp_path, program=("-c", REPORT_HEAVY))
    assert done.returncode == code, done.stderr
    assert "HEAVY []" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_help_names_commands_choices_settings_defaults_and_ranges(tmp_path):
    done = start("--help", cwd=tmp_path)
    assert done.returncode == 0
    for words in (
        "train ",
        "evaluate ",
        "export ",
        "plan ",
        "doctor ",
        "experiment: extend_4096, ladder/m0",
        "deepspeed: zero0, zero1, zero2, zero3",
        "trainer.max_steps=1000000 (at least 1)",
        "masking.rate=0.2 (above 0 and below 1)",
        "optimizer.betas=[0.9,0.95]",
        "init_from=null",
        "resume=auto",
        "--cfg job",
    ):
        assert words in done.stdout
    assert done.stderr == ""


def test_help_of_a_command_shows_its_own_settings(tmp_path):
    shown = start("export", "--help", cwd=tmp_path).stdout
    assert "push_to_hub=null" in shown
    assert "trainer.max_steps" not in shown


def test_cfg_job_prints_the_resolved_settings_whichever_way_the_experiment_is_given(tmp_path):
    outputs = []
    for experiment in ("experiment=smoke", "+experiment=smoke"):
        done = start("train", experiment, "seed=7", "--local_rank=0", "--cfg", "job", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        outputs.append(done.stdout)
    assert outputs[0] == outputs[1]
    settings = yaml.safe_load(outputs[0])
    assert settings["seed"] == 7
    assert settings["output_dir"] == "runs/smoke"
    assert settings["batch"]["micro_batch_tokens"] == 512
    assert settings["checkpoint"]["keep_last"] == 3
    assert list(tmp_path.iterdir()) == []


def test_settings_of_another_command_are_shown(tmp_path):
    done = start("evaluate", "run_dir=a", "--cfg", "job", cwd=tmp_path)
    assert yaml.safe_load(done.stdout)["run_dir"] == "a"


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["hydra.verbose=false"], 0),
        (["output_dir=runs/hydra"], 0),
        (["hydra.verbose=false", "masking.rate=2"], 2),
    ],
)
def test_settings_of_hydra_and_names_like_it_are_taken(tmp_path, arguments, code):
    done = start("plan", "+experiment=smoke", *arguments, cwd=tmp_path)
    assert done.returncode == code, done.stderr
    assert ("masking.rate=2.0 is out of range" in done.stderr) == (code == 2)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("arguments", [["--info", "searchpath"], ["--hydra-help"], ["--version"]])
def test_flags_of_hydra_still_work(tmp_path, arguments):
    done = start(*arguments, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout


def test_all_mistakes_come_in_one_message_without_a_traceback(tmp_path):
    done = start(
        "+experiment=smoke", "trainer.max_stps=3", "batch.context_length=1e3", "optimizer.lr=nan",
        "model=big", "resume=perhaps", "~seed", "+new.key=1", cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stdout == ""
    assert "7 problems were found" in done.stderr
    assert "Traceback" not in done.stderr
    for mend in (
        "did you mean trainer.max_steps?",
        "write batch.context_length=1000",
        "optimizer.lr=nan is out of range: it must be above 0",
        "neobert_base, neobert_mini",
        "[auto, never, must, ",
        "write seed=VALUE",
        "new.key",
    ):
        assert mend in done.stderr


def test_all_contradictions_come_in_one_message(tmp_path):
    done = start(
        "+experiment=smoke", "batch.context_length=1024", "optimizer=muon",
        "scheduler.warmup_steps=9", cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 2
    assert "4 problems were found" in done.stderr
    for mend in (
        "batch.micro_batch_tokens=1024",
        "model.max_length=1024",
        "deepspeed=zero0",
        "scheduler.warmup_steps=0",
    ):
        assert mend in done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_number_of_processes_that_does_not_divide_the_lanes_is_answered_by_one_of_them(tmp_path):
    first, other = (
        start("+experiment=smoke", cwd=tmp_path, WORLD_SIZE="3", RANK=rank) for rank in "01"
    )
    assert first.returncode == other.returncode == 2
    assert "3 processes cannot share 8 lanes" in first.stderr
    assert "1, 2, 4, 8 processes" in first.stderr
    assert other.stderr == other.stdout == ""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["exprt"], "no command 'exprt': choose among train, prepare, inspect_data, "),
        (["+experiment=smoke", "+trainer.max_steps=5"], "'trainer.max_steps=5'"),
        (["export"], "run_dir=runs/NAME"),
        (["evaluate"], "run_dir=runs/NAME or model=FOLDER"),
        (["+experiment=smoke", "seed=1,2"], "seed=1,2 stands for several values: write -m too"),
        (["deepspeed=zero0,zero1"], "several values: write -m too for a run of each\n"),
        (["data.paths=a,b"], "data.paths=[a,b] for a list, or 'data.paths=\"a,b\"' for one text"),
    ],
)
def test_other_mistakes_end_with_code_2_and_no_traceback(tmp_path, arguments, message):
    done = start(*arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("size", ["many", "0"])
def test_a_world_size_that_cannot_be_is_told_without_a_traceback(tmp_path, size):
    done = start("+experiment=smoke", cwd=tmp_path, WORLD_SIZE=size)
    assert done.returncode == 2
    assert "WORLD_SIZE" in done.stderr


@pytest.mark.parametrize(
    ("before", "arguments", "code", "words"),
    [
        ("", ["evaluate", "run_dir=nowhere"], 2, "nowhere"),
        ("", ["plan", "+experiment=smoke"], 0, ""),
        ("program.load_command = lambda command: 1 / 0", ["plan"], 1, "ZeroDivisionError"),
    ],
)
def test_the_exit_code_is_the_commands_though_a_library_aborts_at_the_end(
    tmp_path, before, arguments, code, words
):
    script = (
        "import atexit, os, torch; atexit.register(os.abort)\n"
        f"import neobert_train.__main__ as program; {before}\nprogram.run_program()"
    )
    done = start(*arguments, cwd=tmp_path, program=("-c", script))
    assert done.returncode == code, done.stderr
    assert words in done.stderr
    assert ("parameters" in done.stdout) is (code == 0)
