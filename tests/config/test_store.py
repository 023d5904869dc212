"""Composing without Hydra's main function, which is left what only it can do."""

import os
import re
import shutil
import sys

import pytest

from neobert_train import __main__
from neobert_train.config import store
from neobert_train.config.store import compose_config, to_typed
from neobert_train.errors import InputError
from neobert_train.world import World


def test_what_hydra_knows_can_stand_in_a_value():
    composed = compose_config(
        "train", ["+experiment=smoke", "output_dir=runs/${hydra:runtime.choices.experiment}"]
    )
    assert "hydra" not in composed
    assert to_typed("train", composed).output_dir == "runs/smoke"


@pytest.mark.parametrize(
    ("setting", "reason"),
    [
        ("optimizer.lr=${nothing.here}", "Interpolation key 'nothing.here' not found"),
        ("output_dir=${oc.env:NEOBERT_TRAIN_UNSET}/a", "'NEOBERT_TRAIN_UNSET' not found"),
        ("output_dir=${absent:3}", "Unsupported interpolation type absent"),
        ("seed=${output_dir}", "'runs/smoke' of type 'str' could not be converted to Integer"),
    ],
)
def test_a_reference_that_leads_nowhere_is_told_with_its_setting(setting, reason):
    key = setting.partition("=")[0]
    with pytest.raises(InputError, match=f"^{key} cannot be resolved: .*{re.escape(reason)}"):
        to_typed("train", compose_config("train", ["+experiment=smoke", setting]))


def test_a_command_composes_its_arguments_once(monkeypatch):
    composed, compose = [], store.compose

    def count(*arguments, **options):
        composed.append(arguments)
        return compose(*arguments, **options)

    monkeypatch.setattr(store, "compose", count)
    monkeypatch.setattr(__main__, "load_command", lambda command: lambda config, world: None)
    words = ["plan", "+experiment=smoke", "scheduler=linear", "optimizer.lr=0.1", "seed=3"]
    monkeypatch.setattr(sys, "argv", ["neobert_train", *words])
    __main__.main()
    assert len(composed) == 1


def test_a_file_may_ask_something_of_hydra(tmp_path, monkeypatch):
    configs = tmp_path / "configs"
    shutil.copytree(store.configs_directory(), configs)
    (configs / "experiment" / "mine.yaml").write_text(
        "# @package _global_\n"
        "defaults: [smoke]\n"
        "hydra: {job: {env_set: {NEOBERT_TRAIN_TEST: asked}}}\n"
    )
    monkeypatch.setattr(store, "configs_directory", lambda: configs)
    monkeypatch.setattr(sys, "argv", ["neobert_train"])
    found = []

    def note(config, world):
        found.append((config.trainer.max_steps, os.environ.get("NEOBERT_TRAIN_TEST")))

    monkeypatch.setattr(__main__, "load_command", lambda command: note)
    for name in ("smoke", "mine"):
        words = [f"+experiment={name}", "trainer.max_steps=3"]
        __main__.run_command("train", words, World(), __main__.check_overrides("train", words))
    assert found == [(3, None), (3, "asked")]
