"""A configuration written beside a run comes back equal, and what changed since is named."""

import os
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neobert_train.config.command_schema import SCHEMAS
from neobert_train.config.data_schema import MixtureSourceConfig
from neobert_train.config.saved import dump_config, find_differences, load_train_config
from neobert_train.config.schema import Resume, TrainConfig
from neobert_train.config.setting import iter_settings
from neobert_train.config.store import compose_config, find_group_choices, to_typed
from neobert_train.errors import InputError
from neobert_train.files import write_atomically
from support import configs


def compose(*overrides: str) -> TrainConfig:
    return configs.compose("train", "+experiment=smoke", *overrides)


@pytest.fixture(scope="module")
def saved() -> TrainConfig:
    return compose()


@pytest.mark.parametrize("experiment", find_group_choices("train")["experiment"])
def test_a_written_configuration_comes_back_equal(tmp_path, experiment):
    overrides = [f"+experiment={experiment}", "resume=never", "data.paths=['a, b.txt',c.txt]"]
    config = to_typed("train", compose_config("train", overrides))
    path = tmp_path / "config.yaml"
    path.write_text(dump_config(config))
    loaded = load_train_config(path)
    assert loaded == config
    assert loaded.resume is Resume.never


@pytest.mark.parametrize("command", SCHEMAS)
def test_every_setting_is_written(command):
    text = dump_config(SCHEMAS[command]())
    for setting in iter_settings(SCHEMAS[command]()):
        assert f"{setting.key.rsplit('.', 1)[-1]}:" in text


BOMB = "a: &a [x]\n" + "".join(f"{n}: &{n} [*{p}, *{p}]\n" for p, n in pairwise("abcdefghij"))
DAMAGED = {
    "missing": (None, "No such file"),
    "empty": ("", "it holds no settings"),
    "list": ("[1, 2]", r"it is \[1, 2\]: input should be a dictionary"),
    "cut off": ("seed: [", "while parsing"),
    "unknown": ("trainer:\n  bogus: 1\n", "trainer.bogus is not known"),
    "wrong type": ("seed: many\n", 'seed is "many": input should be a valid integer'),
    "out of range": ("masking: {rate: 2}", "masking.rate=2.0 is out of range"),
    "not finite": ("optimizer: {lr: .nan}", "optimizer.lr=nan is out of range"),
    "unknown choice": ("resume: perhaps", "resume is \"perhaps\": input should be 'auto', 'never'"),
    "date": ("seed: 2026-01-01", 'seed is "2026-01-01": input should be a valid integer'),
    "tag": ("seed: !!python/object/apply:os.getcwd []", "could not determine a constructor"),
    "aliases": (BOMB, "it holds aliases"),
    "no boolean": ("seed: !!bool x", "it is no YAML"),
    "no number": ('seed: !!int ""', "it is no YAML"),
    "no character": ('output_dir: "\\UFFFFFFFF"', "it is no YAML"),
    "endless number": ("masking:\n  rate: 0b" + "1" * 50_000, "Exceeds the limit"),
    "deep": ("a: " + "[" * 5000, "nested too deeply"),
    "two documents": ("seed: 1\n---\nseed: 2\n", "expected a single document"),
}


@pytest.mark.parametrize("damage", DAMAGED)
def test_a_file_that_is_no_configuration_is_named_with_the_reason(tmp_path, damage):
    content, words = DAMAGED[damage]
    path = tmp_path / "config.yaml"
    if content is not None:
        path.write_text(content)
    with pytest.raises(
        InputError, match=rf"config\.yaml cannot be read as a configuration: .*{words}"
    ):
        load_train_config(path)


@pytest.mark.timeout(10)
def test_a_pipe_in_the_place_of_a_configuration_is_named(tmp_path):
    os.mkfifo(tmp_path / "config.yaml")
    with pytest.raises(InputError, match="as a configuration: it is not a regular file"):
        load_train_config(tmp_path / "config.yaml")


def test_nothing_in_a_loaded_file_is_looked_up(tmp_path, monkeypatch):
    monkeypatch.setenv("PLANTED", "planted-secret")
    text = "a${oc.env:PLANTED}\\${seed} ${nothing}"
    config = compose()
    config.data.dataset, config.data.paths = text, [text]
    (tmp_path / "config.yaml").write_text(dump_config(config))
    loaded = load_train_config(tmp_path / "config.yaml")
    assert (loaded.data.dataset, loaded.data.paths) == (text, [text])


TEXTS = st.text(max_size=8) | st.sampled_from(
    ["1e5", "null", "~", "yes", "0x1f", "1:30", "- a", "\udc80"]
)


@settings(deadline=None, max_examples=50)
@given(st.lists(TEXTS, max_size=3), st.floats(1e-9, 1e9), st.integers(0, 2**62))
def test_any_text_and_number_comes_back_equal(tmp_path_factory, paths, rate, seed):
    config = TrainConfig(seed=seed)
    config.data.paths, config.optimizer.lr = [path.replace("://", "") for path in paths], rate
    config.data.mixture = {name: MixtureSourceConfig(paths=config.data.paths) for name in "ab"}
    file = tmp_path_factory.mktemp("saved") / "config.yaml"
    write_atomically(file, dump_config(config))
    assert load_train_config(file) == config


def test_numbers_as_people_write_them_are_read(tmp_path):
    (tmp_path / "config.yaml").write_text("optimizer: {lr: 1e-3}\nseed: 1_000\n")
    loaded = load_train_config(tmp_path / "config.yaml")
    assert (loaded.optimizer.lr, loaded.seed) == (1e-3, 1000)


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("seed=1", "seed: 0 -> 1"),
        ("batch.context_length=64", "batch.context_length: 128 -> 64"),
        ("batch.micro_batch_tokens=1024", "batch.micro_batch_tokens: 512 -> 1024"),
        ("data.shuffle_window=4", "data.shuffle_window: 16 -> 4"),
        ("masking.strategy=bert_80_10_10", "masking.strategy: mask_only -> bert_80_10_10"),
        ("model.num_hidden_layers=3", "model.num_hidden_layers: 2 -> 3"),
        ("tokenizer.path=x", "tokenizer.path: bert-base-uncased -> x"),
    ],
)
def test_what_makes_another_run_is_told_as_fatal(saved, override, line):
    assert find_differences(saved, compose(override)) == ([line], [])


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("trainer.max_steps=20", "trainer.max_steps: 10 -> 20"),
        ("optimizer.lr=0.001", "optimizer.lr: 0.002 -> 0.001"),
        ("deepspeed=zero2", "deepspeed.zero_stage: 1 -> 2"),
        ("checkpoint.keep_last=1", "checkpoint.keep_last: 3 -> 1"),
    ],
)
def test_what_may_change_is_told_as_notable(saved, override, line):
    assert find_differences(saved, compose(override)) == ([], [line])


@pytest.mark.parametrize(
    "override",
    [
        "output_dir=elsewhere",
        "resume=must",
        "logging=wandb",
        "data.num_workers=5",
        "data.prefetch_micro_batches=9",
        "model.attention=sdpa",
        "model.compile=true",
    ],
)
def test_how_a_run_is_carried_out_is_not_told(saved, override):
    assert find_differences(saved, compose(override)) == ([], [])
