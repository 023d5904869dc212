"""trainer.precision=auto through whole runs, on a processor whose bf16 instructions are hidden."""

import json

import pytest
import torch
import yaml

from neobert_train.machine.devices import has_native_bf16
from support.programs import run_anew, run_command
from support.small_vocabulary import list_small_settings

HIDDEN = {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"}


@pytest.fixture(scope="module")
def hidden_run(tmp_path_factory):
    """Two steps without bf16 instructions: the run directory and what was shown."""
    folder = tmp_path_factory.mktemp("hidden") / "run"
    return folder, train(folder, steps=2, **HIDDEN)


def train(folder, steps, **environment):
    """Variables of the environment that libraries read when they are imported need a start anew."""
    run = run_anew if environment else run_command
    return run(
        "+experiment=smoke", f"output_dir={folder}", f"trainer.max_steps={steps}",
        "trainer.precision=auto", "data.num_workers=0", "logging.report=false",
        "evaluation.max_tokens=1024", *list_small_settings(), **environment,
    )  # fmt: skip


def read_precision(folder):
    environments = json.loads((folder / "environment.json").read_text())["content"]
    return [environment["precision"] for environment in environments]


def test_a_run_says_what_it_does_before_its_first_step(hidden_run):
    _, output = hidden_run
    shown = [
        "looking at the run directory, the tokenizer and the data ...",
        "looking for held-out documents ...",
        "fp32 (trainer.precision=auto; the CPU lacks bf16 instructions), sdpa attention ...",
        "taking the first step ...",
        "step 1/2",
        "step 2/2",
    ]
    places = [output.index(words) for words in shown]
    assert places == sorted(places)


def test_the_choice_is_noted_and_the_same_when_the_run_continues(hidden_run):
    folder, _ = hidden_run
    checkpoint = folder / "checkpoints" / "step-00000002" / "config.yaml"
    assert yaml.safe_load(checkpoint.read_text())["trainer"]["precision"] == "fp32"
    assert yaml.safe_load((folder / "config.yaml").read_text())["trainer"]["precision"] == "auto"
    output = train(folder, steps=3, **HIDDEN)
    assert "Done: 3 steps" in output
    assert "continuing in another environment" not in output
    assert read_precision(folder) == ["fp32", "fp32"]


@pytest.mark.skipif(not has_native_bf16(torch.device("cpu")), reason="needs a CPU with bf16")
def test_another_kind_of_processor_is_noted_as_a_change(hidden_run):
    folder, _ = hidden_run
    output = train(folder, steps=4)
    assert "continuing in another environment: precision: fp32 -> bf16" in output
    assert read_precision(folder)[-1] == "bf16"
