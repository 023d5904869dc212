"""What users type after the command: every promised override, and every mistake with its fix."""

import itertools
import os
import re

import pytest

from neobert_train.__main__ import check_overrides, split_command
from neobert_train.config.setting import iter_settings
from neobert_train.config.store import compose_config, to_typed
from neobert_train.errors import InputError
from neobert_train.world import World, strip_launcher_arguments

PROMISED = [
    "output_dir=runs/mine",
    "seed=3",
    *[f"resume={word}" for word in ("auto", "never", "must", "changed")],
    "init_from=runs/other",
    "trainer.max_steps=7",
    *[f"trainer.precision={word}" for word in ("auto", "bf16", "fp32")],
    "trainer.log_every_steps=3",
    "trainer.evaluate_every_steps=3",
    "batch.global_batch_tokens=131072",
    "batch.micro_batch_tokens=32768",
    "batch.context_length=64",
    "masking.rate=0.3",
    "checkpoint.save_every_steps=3",
    "checkpoint.keep_last=1",
    "data.column=text",
    "data.num_workers=0",
    "tokenizer.path=a/tokenizer.json",
    "model.hidden_size=96",
    "model.num_hidden_layers=2",
    "model.num_attention_heads=3",
    "model.intermediate_size=64",
    "model.max_length=2048",
    "model.norm_eps=1e-6",
    *[
        f"model.attention={word}"
        for word in ("auto", "sdpa", "flash_attn", "torch_varlen", "xformers")
    ],
    "model.compile=true",
    "optimizer.lr=1e-4",
    "scheduler.warmup_steps=5",
    *[f"logging.wandb={word}" for word in ("disabled", "offline", "online")],
]
PROMISED_CHOICES = [
    (["data=files", "data.paths=[a.parquet,b.parquet]", "data.column=content"], "data.paths"),
    (["data=refinedweb"], "data.dataset"),
    (["model=neobert_base"], "model.hidden_size"),
    (["model=neobert_small"], "model.hidden_size"),
    *[([f"deepspeed=zero{stage}"], "deepspeed.zero_stage") for stage in range(4)],
    (["experiment=smoke"], "output_dir"),
    (["+experiment=smoke"], "output_dir"),
]


def values_of(config) -> dict:
    return {
        setting.key: getattr(setting.value, "value", setting.value)
        for setting in iter_settings(config)
    }


def problems_of(*overrides: str, command: str = "train", world_size: int = 1) -> str:
    with pytest.raises(InputError) as caught:
        check_overrides(command, overrides)
    return str(caught.value)


@pytest.mark.parametrize("override", PROMISED)
def test_promised_overrides_are_taken_without_a_plus(override):
    check_overrides("train", [override])
    key, text = override.split("=")
    value = values_of(to_typed("train", compose_config("train", [override])))[key]
    assert str(value).lower() == text or float(value) == float(text)


@pytest.mark.parametrize(("overrides", "key"), PROMISED_CHOICES)
def test_promised_choices_are_taken(overrides, key):
    check_overrides("train", overrides)
    plus = [f"+{o}" if o.startswith("experiment") else o for o in overrides]
    value = values_of(to_typed("train", compose_config("train", plus)))[key]
    expected = {
        "deepspeed.zero_stage": int(overrides[0][-1]) if overrides[0][-1].isdigit() else None,
        "model.hidden_size": {"model=neobert_small": 384}.get(overrides[0], 768),
        "data.paths": ["a.parquet", "b.parquet"],
        "data.dataset": "tiiuae/falcon-refinedweb",
        "output_dir": "runs/smoke",
    }
    assert value == expected[key]


def test_a_setting_typed_after_an_experiment_wins_over_it():
    config = to_typed(
        "train", compose_config("train", ["trainer.max_steps=4", "+experiment=smoke"])
    )
    assert config.trainer.max_steps == 4


MISTAKES = [
    ("trainer.max_stps=3", "trainer.max_stps", "did you mean trainer.max_steps?"),
    ("max_steps=3", "max_steps", "did you mean trainer.max_steps?"),
    ("lr=3", "lr", "did you mean optimizer.lr?"),
    ("modle=neobert_base", "modle", "did you mean model?"),
    ("learning_rate=3", "learning_rate", "did you mean optimizer.lr?"),
    ("optimizer.learning_rate=3", "optimizer.learning_rate", "did you mean optimizer.lr?"),
    ("eval_steps=3", "eval_steps", "did you mean trainer.evaluate_every_steps?"),
    ("context=3", "context", "did you mean batch.context_length?"),
    ("hub.repo=x", "hub.repo", "did you mean hub.repository?"),
    ("trainer.epochs=3", "trainer.epochs", "did you mean data.max_epochs?"),
    ("trainer.save_steps=3", "trainer.save_steps", "did you mean checkpoint.save_every_steps?"),
    ("batch.size=3", "batch.size", "`train --help` lists them all"),
    ("steps=3", "steps", "`train --help` lists them all"),
    ("kind=x", "kind", "`train --help` lists them all"),
    ("warp.drive=3", "warp.drive", "train --help"),
    ("trainer.max_steps=1e6", "trainer.max_steps", "write trainer.max_steps=1000000"),
    ("batch.context_length=1024.0", "batch.context_length", "write batch.context_length=1024"),
    ("trainer.max_steps=10.5", "trainer.max_steps=10.5", "with a whole number$"),
    ("trainer.max_steps=many", "trainer.max_steps=many", "with a whole number$"),
    ("trainer.max_steps=null", "trainer.max_steps", "not Optional"),
    ("optimizer.lr=high", "optimizer.lr=high", "write optimizer.lr=... with a number$"),
    ("optimizer.betas=[a,b]", "optimizer.betas", "Float"),
    ("optimizer.betas=0.9", "optimizer.betas=0.9", "list"),
    ("model.compile=maybe", "model.compile=maybe", "with true or false$"),
    ("resume=perhaps", "resume=perhaps", r"\[auto, never, must, changed\]"),
    ("trainer.precision=fp16", "trainer.precision=fp16", r"\[auto, bf16, fp32\]"),
    ("model.attention=fast", "model.attention=fast", "flash_attn"),
    ("logging.wandb=yes", "logging.wandb", r"\[disabled, offline, online\]"),
    ("deepspeed=zero4", "deepspeed=zero4", "zero0, zero1, zero2, zero3"),
    ("+experiment=smok", "experiment=smok", "pretrain_base.*smoke"),
    ("experiment=smok", "experiment=smok", "pretrain_base.*smoke"),
    ("model=huge", "model=huge", "neobert_base.*neobert_small"),
    ("~seed", "~seed", "write seed=VALUE"),
    ("~optimizer.lr", "~optimizer.lr", "write optimizer.lr=VALUE"),
    ("+trainer.bogus=1", "trainer.bogus", "train --help"),
    ("++trainer.bogus=1", "trainer.bogus", "train --help"),
    ("+new.key=1", "new.key", "train --help"),
    ("seed", "'seed'", "key=value"),
    ("output_dir=runs/a=b", "output_dir", "'output_dir=\"runs/a=b\"'"),
]


@pytest.mark.parametrize(("override", "names", "mend"), MISTAKES)
def test_a_mistake_is_told_with_its_name_and_its_mend(override, names, mend):
    message = problems_of(override)
    assert names in message
    assert re.search(mend, message)
    assert "\n" not in message


@pytest.mark.parametrize("quoted", ['output_dir="runs/a=b"', 'data.column="the, text"'])
def test_a_value_quoted_as_the_mend_says_is_taken(quoted):
    check_overrides("train", [quoted])
    key, text = quoted.split("=", 1)
    assert values_of(to_typed("train", compose_config("train", [quoted])))[key] == text.strip('"')


def test_the_mend_for_a_list_that_cannot_be_read_works():
    message = problems_of("data.paths=[a (1).parquet]")
    mended = re.search(r"as in '(.*)'$", message)[1]
    check_overrides("train", [mended])


def test_a_single_value_for_a_list_is_answered_with_brackets():
    assert "data.paths=[a.parquet]" in problems_of("data.paths=a.parquet")


@pytest.mark.parametrize("text", ["nan", "-nan", "0", "-1"])
def test_a_number_out_of_range_is_told_beside_the_other_mistakes(text):
    message = problems_of("sed=1", f"optimizer.lr={text}")
    assert "2 problems" in message
    assert "optimizer.lr=" in message
    assert "above 0" in message


def test_several_mistakes_are_told_in_one_message():
    overrides = ["+experiment=smoke", *[override for override, _, _ in MISTAKES]]
    message = problems_of(*overrides, "masking.rate=2", "trainer.max_steps=5")
    assert f"{len(MISTAKES) + 1} problems" in message
    lines = message.splitlines()[1:]
    assert [int(line.split(".")[0]) for line in lines] == list(range(1, len(MISTAKES) + 2))
    for line, (_, names, _) in zip(lines, MISTAKES, strict=False):
        assert names in line
    assert "masking.rate=2" in lines[-1]


@pytest.mark.parametrize(
    "overrides",
    [
        ["experiment=smok", "batch.micro_batch_tokens=512", "batch.global_batch_tokens=4096"],
        ["data=fils", "data.paths=[a.parquet]"],
        ["trainer.precison=fp32", "deepspeed=zero0"],
    ],
)
def test_a_mistake_does_not_bring_problems_that_vanish_with_it(overrides):
    assert "problems were found" not in problems_of(*overrides)


@pytest.mark.parametrize("override", ["model=null", "+experiment=null", "optimizer=null"])
def test_a_group_set_to_nothing_is_answered_with_its_choices(override):
    assert "choose among" in problems_of(override)


def test_a_group_that_is_deleted_is_refused_like_a_setting():
    assert "model" in problems_of("+experiment=smoke", "~model")


def test_an_exported_model_can_be_evaluated():
    overrides = ["model=exports/mine", "paths=[a.parquet]"]
    check_overrides("evaluate", overrides)
    config = to_typed("evaluate", compose_config("evaluate", overrides))
    assert config.model == "exports/mine"


def test_hydra_settings_pass_the_check():
    check_overrides("train", ["hydra.run.dir=x", "hydra/job_logging=default"])


def test_the_command_is_the_first_word_and_training_without_one():
    assert split_command([]) == ("train", [])
    assert split_command(["+experiment=smoke"]) == ("train", ["+experiment=smoke"])
    assert split_command(["seed=1"]) == ("train", ["seed=1"])
    assert split_command(["--cfg", "job"]) == ("train", ["--cfg", "job"])
    assert split_command(["export", "run_dir=a"]) == ("export", ["run_dir=a"])


def test_a_mistyped_command_is_answered_with_the_commands():
    with pytest.raises(InputError, match=r"no command 'exprt'.*train.*export.*key=value"):
        split_command(["exprt", "run_dir=a"])


@pytest.mark.parametrize(
    "launcher",
    [["--local_rank=3"], ["--local-rank=3"], ["--local_rank", "3"], ["--local-rank", "3"]],
)
def test_what_launchers_append_is_dropped_wherever_it_stands(launcher):
    rest = ["export", "run_dir=a", "step=3"]
    for place in range(4):
        assert strip_launcher_arguments([*rest[:place], *launcher, *rest[place:]]) == rest


def test_the_world_is_what_the_launcher_announces(monkeypatch):
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "LOCAL_SIZE"):
        monkeypatch.delenv(name, raising=False)
    assert World.from_environment() == World(0, 0, 1)
    assert World.from_environment().is_main
    for name, value in (("RANK", "5"), ("LOCAL_RANK", "1"), ("WORLD_SIZE", "8")):
        monkeypatch.setenv(name, value)
    world = World.from_environment()
    assert world == World(rank=5, local_rank=1, world_size=8, launcher=os.getppid())
    assert not world.is_main


@pytest.mark.parametrize("world_size", [1, 2, 3, 8, 32])
def test_ranks_share_the_lanes_without_overlap(world_size):
    lanes = [World(rank=r, world_size=world_size).lanes(32) for r in range(world_size)]
    assert sorted(itertools.chain(*lanes)) == list(range(32))
    assert all(lane % world_size == rank for rank in range(world_size) for lane in lanes[rank])
