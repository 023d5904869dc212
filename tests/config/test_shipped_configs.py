"""The YAML files that ship: they compose, hold the paper's numbers and say how to run them."""

import dataclasses
import functools
import itertools
import re
from pathlib import Path

import pytest
import yaml

from neobert_train.config.checks import find_problems
from neobert_train.config.choices import CHOICES
from neobert_train.config.command_schema import SCHEMAS
from neobert_train.config.data_schema import Draw
from neobert_train.config.derived import (
    compute_num_lanes,
    compute_weights,
    resolve_sources,
)
from neobert_train.config.overrides import iter_help_lines
from neobert_train.config.schema import Precision, TrainConfig
from neobert_train.config.setting import iter_settings
from neobert_train.config.store import (
    ADDED_GROUPS,
    ENTRIES,
    compose_config,
    configs_directory,
    find_group_choices,
    to_typed,
)

EXPERIMENTS = sorted((configs_directory() / "experiment").glob("*.yaml"))
GROUPS = {
    group: names
    for group, names in find_group_choices("train").items()
    if group not in ADDED_GROUPS
}
# What a user has to add before the experiment can run.
REQUIRED = {"public_domain": ["data.paths=[my_texts.parquet]"]}


def compose_experiment(name: str, *overrides: str, command: str = "train") -> TrainConfig:
    return to_typed(command, compose_config(command, [f"+experiment={name}", *overrides]))


def leading_comment(path: Path) -> list[str]:
    lines = path.read_text().splitlines()
    lines = lines[1:] if lines[0].startswith("# @package") else lines
    return list(itertools.takewhile(lambda line: line.startswith("#"), lines))


@pytest.mark.parametrize("command", ["train", "plan"])
@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_every_experiment_composes_without_problems(path, command):
    config = compose_experiment(path.stem, *REQUIRED.get(path.stem, []), command=command)
    assert find_problems(config) == []
    assert type(config) is SCHEMAS[command]
    assert config.output_dir == f"runs/{path.stem}"


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_every_experiment_opens_with_a_command_that_runs_it(path):
    command, *rest = [line.removeprefix("#").strip() for line in leading_comment(path)]
    assert re.match(r"(python -m neobert_train|deepspeed .*--module neobert_train) ", command)
    overrides = command.split(" neobert_train ")[1].split()
    assert overrides[0] == f"+experiment={path.stem}"
    config = to_typed("train", compose_config("train", overrides))
    assert find_problems(config) == []
    assert len(" ".join(rest)) > 60, "say what to expect of it"


def test_every_group_file_opens_with_a_comment():
    for path in configs_directory().glob("*/*.yaml"):
        assert leading_comment(path), path


@pytest.mark.parametrize(
    ("group", "name"), [(group, name) for group, names in GROUPS.items() for name in names]
)
def test_every_choice_of_every_group_composes(group, name):
    config = to_typed("train", compose_config("train", [f"{group}={name}"]))
    section = getattr(config, group)
    if name in CHOICES.get(group, {}):
        assert section == CHOICES[group][name]()
        assert section.kind == name
        return
    written = yaml.safe_load((configs_directory() / group / f"{name}.yaml").read_text())
    if group in CHOICES:
        kind, own = written.pop("defaults")
        assert (section.kind, own) == (kind, "_self_")
    mixture = written.pop("mixture", {})
    for key, value in written.items():
        assert getattr(getattr(section, key), "value", getattr(section, key)) == value
    for source, entry in mixture.items():
        for key, value in entry.items():
            assert getattr(config.data.mixture[source], key) == value


def test_first_phase_holds_the_numbers_of_the_paper():
    config = compose_experiment("pretrain_base")
    assert config.batch.global_batch_tokens == 2_097_152
    assert config.batch.context_length == 1024
    assert config.trainer.max_steps == 1_000_000
    assert config.trainer.precision is Precision.bf16
    assert config.optimizer.lr == 6e-4
    assert config.optimizer.betas == [0.9, 0.95]
    assert config.optimizer.eps == 1e-8
    assert config.optimizer.weight_decay == 0.1
    assert config.optimizer.max_grad_norm == 1.0
    assert config.scheduler.kind == "cosine"
    assert config.scheduler.warmup_steps == 2000
    assert config.scheduler.final_lr_ratio == 0.1
    assert config.scheduler.find_decay(config.trainer.max_steps).end == 900_000
    assert config.masking.rate == 0.2
    assert config.masking.strategy.value == "mask_only"
    assert config.data.source.value == "huggingface"
    assert config.data.dataset == "tiiuae/falcon-refinedweb"
    assert config.data.column == "content"
    assert config.tokenizer.path == "bert-base-uncased"
    model = config.model
    assert (model.hidden_size, model.num_hidden_layers, model.num_attention_heads) == (768, 28, 12)
    assert (model.intermediate_size, model.max_length, model.norm_eps) == (3072, 4096, 1e-5)
    assert (model.embedding_init_range, model.decoder_init_range) == (0.02, 0.02)
    assert config.init_from is None


def test_second_phase_continues_the_first_at_its_last_learning_rate():
    first, second = compose_experiment("pretrain_base"), compose_experiment("extend_4096")
    assert second.batch.context_length == 4096
    assert second.batch.global_batch_tokens == 2_097_152
    assert second.trainer.max_steps == 50_000
    assert second.optimizer.lr == pytest.approx(0.1 * 6e-4)
    assert second.scheduler.kind == "constant"
    assert second.scheduler.warmup_steps == 0
    assert second.init_from == first.output_dir
    for section in ("model", "masking", "tokenizer"):
        assert getattr(second, section) == getattr(first, section)
    sources = resolve_sources(second.data)
    assert compute_weights(second.data, 1) == [0.2, 0.4, 0.4]
    assert [source.min_tokens for source in sources.values()] == [0, 1024, 2048]
    assert second.data.draw is Draw.micro_batch
    for source in sources.values():
        assert dataclasses.replace(source, min_tokens=0) == resolve_sources(first.data)["corpus"]
    assert dataclasses.replace(second.optimizer, lr=6e-4) == first.optimizer


@pytest.mark.parametrize("name", ["pretrain_base", "extend_4096"])
@pytest.mark.parametrize("devices", [1, 2, 4, 8, 16, 32])
def test_the_large_experiments_run_on_the_usual_numbers_of_devices(name, devices):
    config = compose_experiment(name)
    assert find_problems(config, devices) == []
    assert compute_num_lanes(config) % devices == 0


def test_defaults_are_those_of_the_first_phase():
    plain = to_typed("train", compose_config("train", ["output_dir=runs/pretrain_base"]))
    assert TrainConfig(output_dir="runs/pretrain_base") == plain
    # The paper's precision, on whatever hardware.
    plain.trainer.precision = Precision.bf16
    assert plain == compose_experiment("pretrain_base")


@pytest.mark.parametrize("command", SCHEMAS)
def test_every_setting_has_a_description_of_one_line(command):
    for setting in iter_settings(SCHEMAS[command]()):
        assert re.fullmatch(r"[^\n]{10,120}\.", setting.description), setting.key


@pytest.mark.parametrize("command", SCHEMAS)
def test_help_shows_every_setting_with_a_default_that_can_be_typed_back(command):
    lines = list(iter_help_lines(SCHEMAS[command]()))
    keys = [setting.key for setting in iter_settings(SCHEMAS[command]())]
    shown = [line.strip().split(" (")[0] for line in lines[::2]]
    named = [line for line in shown if ".NAME." in line]
    shown = [line for line in shown if line not in named]
    assert len(lines) == 2 * (len(keys) + len(named))
    assert [line.split("=", 1)[0] for line in shown] == keys
    if named:
        typed = [line.replace("NAME", "mine") for line in named]
        config = to_typed(command, compose_config(command, [*shown, *typed]))
        (entries,) = [key for key in ENTRIES if named[0].startswith(f"{key}.")]
        values = functools.reduce(getattr, entries.split("."), config)
        assert values == {"mine": ENTRIES[entries]()}
    config = to_typed(command, compose_config(command, shown))
    assert config == SCHEMAS[command]()


@pytest.mark.parametrize("command", SCHEMAS)
def test_every_command_composes_to_the_defaults_of_its_schema(command):
    assert to_typed(command, compose_config(command, [])) == SCHEMAS[command]()
