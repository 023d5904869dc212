"""The rungs of the paper's ablations: each one is the one before with the change that it names."""

import re

import pytest

from neobert_train.config.checks import find_problems
from neobert_train.config.setting import iter_settings
from neobert_train.config.store import configs_directory, find_group_choices
from support.configs import compose

RUNGS = [name for name in find_group_choices("train")["experiment"] if name.startswith("ladder/")]


def read_settings(rung, *overrides):
    config = compose("train", f"+experiment={rung}", *overrides)
    return {setting.key: setting.value for setting in iter_settings(config)}


def find_differences(rung, before):
    settings, others = read_settings(rung), read_settings(before)
    keys = settings.keys() | others.keys()
    return {key for key in keys if settings.get(key) != others.get(key)}


def test_the_rungs_are_those_of_the_paper_that_keep_documents_apart():
    assert [f"ladder/m{number}" for number in (0, 1, 2, 3, 4, 5, 7, 8, 9)] == RUNGS


@pytest.mark.parametrize("rung", RUNGS[1:])
def test_a_rung_differs_from_the_one_before_in_what_it_names(rung):
    text = (configs_directory() / "experiment" / f"{rung}.yaml").read_text()
    before, named = re.search(r"^# Differs from (\w+) in: (.+)$", text, re.MULTILINE).groups()
    assert f"  - /experiment/ladder/{before}\n" in text
    differences = find_differences(rung, f"ladder/{before}") - {"output_dir"}
    if rung == "ladder/m1":  # that of the model, which is the same file
        differences -= {"tokenizer.path"}
    keys = named.split()
    assert differences
    for key in differences:
        assert any(key == name or key.startswith(f"{name}.") for name in keys), key
    for name in keys:
        assert any(key == name or key.startswith(f"{name}.") for key in differences), name


@pytest.mark.parametrize("rung", RUNGS)
def test_every_rung_can_start(rung):
    config = compose("train", f"+experiment={rung}")
    assert find_problems(config) == []
    assert config.output_dir == f"runs/{rung}"
    text = (configs_directory() / "experiment" / f"{rung}.yaml").read_text()
    assert f"# deepspeed --num_gpus 8 --module neobert_train +experiment={rung}\n" in text


def test_the_last_rung_is_the_recipe_of_the_base_run():
    """But for what is reckoned in steps of its own, and for how often checkpoints are written."""
    beside = {"output_dir", "trainer.precision"}
    assert find_differences("ladder/m9", "pretrain_base") <= beside


def test_the_small_size_changes_no_recipe():
    small = read_settings("ladder/m5", "size=small")
    whole = read_settings("ladder/m5")
    changed = {key.partition(".")[0] for key in whole if small[key] != whole[key]}
    assert changed <= {"batch", "data", "model", "scheduler", "trainer", "evaluation", "checkpoint"}
    assert small["optimizer.lr"] == whole["optimizer.lr"]
    assert small["masking.rate"] == whole["masking.rate"]
    assert small["scheduler.kind"] == whole["scheduler.kind"]
