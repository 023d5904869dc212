"""A configuration written beside a run comes back equal, and what changed since is named."""

import pytest

from neobert_train.config.saved import dump_config, find_differences, load_train_config
from neobert_train.config.schema import SCHEMAS, Resume, TrainConfig
from neobert_train.config.setting import iter_settings
from neobert_train.config.store import compose_config, find_group_choices, to_typed
from neobert_train.errors import InputError


def compose(*overrides: str) -> TrainConfig:
    return to_typed("train", compose_config("train", ["+experiment=smoke", *overrides]))


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


@pytest.mark.parametrize("content", [None, "seed: [", "trainer:\n  bogus: 1\n", "seed: many\n"])
def test_a_file_that_is_no_configuration_is_named_with_the_reason(tmp_path, content):
    path = tmp_path / "config.yaml"
    if content is not None:
        path.write_text(content)
    with pytest.raises(InputError, match=r"config\.yaml cannot be read as a configuration: ."):
        load_train_config(path)


def test_an_empty_file_is_no_configuration(tmp_path):
    (tmp_path / "config.yaml").write_text("")
    with pytest.raises(InputError, match=r"config\.yaml"):
        load_train_config(tmp_path / "config.yaml")


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
