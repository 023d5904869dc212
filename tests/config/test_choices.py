"""Sections that are a choice have the settings of the kind chosen, wherever settings are known."""

import dataclasses
import subprocess
import sys

import pytest

from neobert_train.__main__ import format_help, split_command
from neobert_train.config.choices import CHOICES, AdamWConfig, OptimizerConfig, WSDConfig
from neobert_train.config.command_schema import SCHEMAS
from neobert_train.config.overrides import CommandLine
from neobert_train.config.saved import dump_config, find_differences, load_train_config
from neobert_train.config.setting import setting
from neobert_train.config.store import compose_config, find_group_choices, to_typed
from neobert_train.errors import InputError

KINDS = [(section, kind) for section, kinds in CHOICES.items() for kind in kinds]


@dataclasses.dataclass
class SGDConfig(OptimizerConfig):
    """A second optimiser, whose settings are not those of AdamW."""

    kind: str = setting("sgd", "What optimizer=KIND has chosen.")
    momentum: float = setting(
        0.9, "Share of the last update that is kept.", at_least=0.0, below=1.0
    )


@pytest.fixture
def sgd(monkeypatch):
    monkeypatch.setitem(CHOICES["optimizer"], "sgd", SGDConfig)


def compose(*overrides):
    return to_typed("train", compose_config("train", ["+experiment=smoke", *overrides]))


def find_problems(*overrides, sweeps=False):
    return CommandLine("train", ["+experiment=smoke", *overrides], sweeps).find_problems()[0]


@pytest.mark.parametrize(("section", "kind"), KINDS)
def test_the_name_of_a_kind_is_its_default_kind(section, kind):
    assert CHOICES[section][kind]().kind == kind


@pytest.mark.parametrize(("section", "kind"), KINDS)
def test_a_saved_kind_comes_back_as_its_class(tmp_path, section, kind):
    config = compose(f"{section}={kind}")
    path = tmp_path / "config.yaml"
    path.write_text(dump_config(config))
    assert f"kind: {kind}" in path.read_text()
    loaded = load_train_config(path)
    assert loaded == config
    assert type(getattr(loaded, section)) is CHOICES[section][kind]


def test_a_kind_brings_its_own_settings(sgd):
    config = compose("optimizer=sgd", "optimizer.momentum=0.5", "optimizer.lr=0.1")
    assert config.optimizer == SGDConfig(momentum=0.5, lr=0.1)
    assert find_problems("optimizer=sgd", "optimizer.momentum=0.5") == []
    assert "optimizer.momentum=0.9" in format_help("train", ["--help", "optimizer=sgd"])
    assert "  optimizer.betas=" not in format_help("train", ["optimizer=sgd"])
    assert "optimizer.betas=[0.9,0.95]" in format_help("train", ["--help"])


def test_a_setting_of_another_kind_is_named_with_it(sgd):
    (problem,) = find_problems("optimizer.momentum=0.5")
    assert problem == (
        "optimizer.momentum belongs to optimizer=muon, optimizer=normuon, optimizer=sgd, and another "
        "optimizer is chosen"
    )
    (problem,) = find_problems("optimizer=sgd", "optimizer.betas=[0.9,0.99]")
    assert "optimizer.betas belongs to optimizer=adamw" in problem
    (problem,) = find_problems("optimizer=sgd", "optimizer.momentun=0.5")
    assert "did you mean optimizer.momentum?" in problem
    (problem,) = find_problems("optimizer=sgd", "optimizer.momentum=high")
    assert "with a number" in problem
    (problem,) = find_problems("scheduler=constant", "scheduler.final_lr_ratio=0.5")
    assert "belongs to scheduler=cosine, scheduler=linear" in problem


def test_a_sweep_over_kinds_names_the_kind_that_lacks_a_setting(sgd):
    swept = ("optimizer=adamw,sgd", "optimizer.momentum=0.5,0.9")
    (problem,) = find_problems(*swept, sweeps=True)
    assert problem.endswith("(in optimizer=adamw)")
    assert find_problems("optimizer=adamw,sgd", "optimizer.lr=0.1,0.2", sweeps=True) == []


def test_a_kind_is_not_set_by_itself(sgd):
    (problem,) = find_problems("optimizer.kind=sgd")
    assert f"write optimizer={' or '.join(CHOICES['optimizer'])}" in problem
    for kind in ("sgd", "newton"):  # as in a file, where nothing is looked at before it is composed
        with pytest.raises(InputError, match=rf"optimizer\.kind={kind} is not set by itself"):
            compose(f"optimizer.kind={kind}")


def test_help_shows_the_settings_as_the_other_arguments_set_them():
    assert "  model.hidden_size=64 " in format_help("train", ["--help", "model=neobert_tiny"])
    assert "  scheduler.decay_start=5 " in format_help(
        "train", ["-h", "scheduler=wsd", "scheduler.decay_start=5"]
    )
    for wrong in (["scheduler=exp"], ["scheduler.decay_start=3"], ["scheduler=wsd,cosine"]):
        with pytest.raises(InputError):
            format_help("train", ["--help", *wrong])


@pytest.mark.parametrize("kind", CHOICES["scheduler"])
@pytest.mark.parametrize("experiment", find_group_choices("train")["experiment"])
def test_every_experiment_takes_every_scheduler(experiment, kind):
    config = to_typed(
        "train", compose_config("train", [f"+experiment={experiment}", f"scheduler={kind}"])
    )
    assert config.scheduler.kind == kind


ODD = {
    "+scheduler=wsd": "scheduler is chosen once: write scheduler=wsd",
    "scheduler@other=wsd": "scheduler is chosen once: write scheduler=wsd",
    "++experiment=smoke": "experiment is chosen once: write +experiment=smoke",
    "optimizer.head=null": "optimizer.head is a section: set what it holds",
    "~optimizer.head": "optimizer.head is a section",
    "=3": "write key=value without spaces around =",
    "run_dir=runs/mine": "there is no setting run_dir: write output_dir=FOLDER",
    "scheduler.foo=3": "there is no setting scheduler.foo: `train --help` lists them all",
}


@pytest.mark.parametrize("override", ODD)
def test_what_is_no_setting_is_told_what_to_write(override):
    (problem,) = CommandLine("train", [override]).find_problems()[0]
    assert ODD[override] in problem


def test_a_group_is_chosen_once():
    chosen = ["+experiment=smoke", "seed=3", "+experiment=quickstart"]
    assert CommandLine("train", chosen).find_problems()[0] == [
        "experiment is chosen 2 times: choose one"
    ]


@pytest.mark.parametrize(
    "override", ["deepspeed=2", "size=1", "model=null", "optimizer.kind='${nothing}'"]
)
def test_what_cannot_be_composed_is_told_beside_sound_settings(override):
    (problem,) = CommandLine("train", ["seed=3", override]).find_problems()[0]
    assert "choose among" in problem or "is not set by itself" in problem


@pytest.mark.parametrize(
    "arguments", [["-m", "plan"], ["--config-dir", "here", "plan"], ["seed=1", "plan"]]
)
def test_a_command_comes_first(arguments):
    with pytest.raises(InputError, match="plan is a command: write it before everything else"):
        split_command(arguments)


def test_a_flag_may_take_a_word_that_is_a_command_too():
    assert split_command(["--config-dir", "plan"]) == ("train", ["--config-dir", "plan"])


def test_a_key_that_no_kind_has_does_not_pass_with_a_plus():
    with pytest.raises(InputError, match="decay_fraction"):
        compose("scheduler=constant", "+scheduler.decay_fraction=0.5")


@pytest.mark.parametrize("command", ["evaluate", "export"])
def test_commands_without_groups_see_no_choice(command):
    """`model=FOLDER` is a setting of evaluate."""
    assert not set(CommandLine(command, []).groups) & set(CHOICES)
    if command == "evaluate":
        compose_config("train", [])
        assert to_typed(command, compose_config(command, ["model=a/b"])).model == "a/b"


def test_epochs_of_a_task_are_set_by_its_name():
    """Also of one that the preset does not name."""
    override = "grid.task_epochs={rte:[4]}"
    assert CommandLine("evaluate", [override]).find_problems()[0] == []
    for preset, others in (("quick", {}), ("modernbert", {"sst2": [1, 2, 3], "mnli": [1, 2, 3]})):
        config = to_typed("evaluate", compose_config("evaluate", [f"preset={preset}", override]))
        assert config.grid.task_epochs == {**others, "rte": [4]}


@pytest.mark.parametrize("section", CHOICES)
def test_the_shape_and_moments_of_every_kind_are_named(section):
    for settings in CHOICES[section].values():
        names = {field.name for field in dataclasses.fields(settings)}
        assert set(getattr(settings, "shape", ())) <= names
        if section == "optimizer":
            assert settings.moments


OLD = """
seed: 3
model: {hidden_size: 32}
optimizer: {lr: 0.001, betas: [0.9, 0.98], eps: 1.0e-08, weight_decay: 0.1, max_grad_norm: 1.0}
scheduler: {name: NAME, warmup_steps: 7, decay_fraction: 0.5, final_lr_ratio: 0.25}
"""


@pytest.mark.parametrize("name", ["cosine", "linear", "constant"])
def test_a_configuration_of_version_0_1_0_is_read(tmp_path, name):
    path = tmp_path / "config.yaml"
    path.write_text(OLD.replace("NAME", name))
    config = load_train_config(path)
    assert type(config.scheduler) is CHOICES["scheduler"][name]
    assert config.scheduler.warmup_steps == 7
    if name != "constant":
        assert (config.scheduler.decay_fraction, config.scheduler.final_lr_ratio) == (0.5, 0.25)
    assert config.optimizer == AdamWConfig(lr=0.001, betas=[0.9, 0.98])
    assert (config.model.kind, config.model.hidden_size) == ("neobert", 32)
    assert config.objective.kind == "masked_lm"


WRONG = {
    "optimizer: {kind: newton}": "optimizer.kind is \"newton\": input should be 'adamw', 'muon' or 'normuon'",
    "scheduler: {kind: wsd, name: wsd}": "scheduler.name is not known",
    "scheduler: {name: exp}": 'scheduler.kind is "exp": input should be',
    "scheduler: {kind: wsd}\nscheduler: {kind: cosine}": "it holds the key scheduler twice",
    "scheduler: {kind: wsd, decay_fraction: 0.5}": "scheduler.decay_fraction is not known",
    "optimizer: {kind: adamw, momentum: 1}": "optimizer.momentum is not known",
    "optimizer: 3": "optimizer is 3: input should be a valid dictionary",
    "optimizer: null": "optimizer is null: input should be a valid dictionary",
    "scheduler: {kind: wsd, decay_start: -1}": "scheduler.decay_start=-1 is out of range",
    "optimizer: {kind: [1]}": "optimizer.kind",
}


@pytest.mark.parametrize("text", WRONG)
def test_a_saved_setting_that_its_kind_does_not_have_is_named(tmp_path, text):
    path = tmp_path / "config.yaml"
    path.write_text(text)
    with pytest.raises(InputError) as raised:
        load_train_config(path)
    assert WRONG[text] in str(raised.value)


def test_the_kind_of_optimizer_and_the_objective_make_another_run(sgd):
    before = compose()
    fatal, _ = find_differences(before, compose("optimizer=sgd"))
    assert fatal == ["optimizer.kind: adamw -> sgd"]
    fatal, notable = find_differences(before, compose("scheduler=wsd"))
    assert fatal == []
    assert "scheduler.kind: cosine -> wsd" in notable


def test_the_settings_of_a_kind_are_shown_without_torch():
    script = (
        "import sys; from neobert_train.__main__ import main\n"
        "sys.argv[1:] = ['scheduler=wsd', '--cfg', 'job']; main(); assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "decay_shape: one_minus_sqrt" in done.stdout


def test_every_command_over_an_experiment_has_the_choices():
    for command in ("train", "plan", "doctor", "inspect_data"):
        config = to_typed(command, compose_config(command, ["scheduler=wsd"]))
        assert type(config) is SCHEMAS[command]
        assert config.scheduler == WSDConfig()


def test_a_group_file_of_the_user_without_its_kind_is_told_what_to_begin_with(tmp_path):
    (tmp_path / "scheduler").mkdir()
    (tmp_path / "scheduler" / "mine.yaml").write_text("decay_start: 5\n")
    done = subprocess.run(
        [sys.executable, "-m", "neobert_train", "plan", "--config-dir", str(tmp_path), "scheduler=mine"],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 2
    assert "a file of the group scheduler begins with `defaults: [KIND, _self_]`" in done.stderr
    (tmp_path / "scheduler" / "mine.yaml").write_text("defaults: [wsd, _self_]\ndecay_start: 5\n")
    done = subprocess.run([*done.args, "--cfg", "job"], capture_output=True, text=True)
    assert "decay_start: 5" in done.stdout


def test_a_sweep_is_not_shown_as_one_configuration():
    done = subprocess.run(
        [sys.executable, "-m", "neobert_train", "-m", "+experiment=smoke", "seed=1,2", "--cfg", "job"],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 2
    assert "-m does not go with --cfg" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("command", ["evaluate", "export"])
def test_a_kind_is_no_setting_of_commands_without_choices(command):
    for override in ("model.kind=neobert", "scheduler.kind=wsd"):
        (problem,) = CommandLine(command, [override]).find_problems()[0]
        assert problem.startswith(f"there is no setting {override.partition('=')[0]}")


@pytest.mark.parametrize("max_steps", [1, 2, 3, 10])
def test_the_default_of_wsd_leaves_a_step_for_its_decay(max_steps):
    decay = WSDConfig(warmup_steps=0).find_decay(max_steps)
    assert decay.start < decay.end == max_steps


def test_a_saved_group_keeps_the_default_of_its_role_where_it_says_nothing(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("optimizer: {vector: {lr_multiplier: 2.0}, head: {}}")
    optimizer = load_train_config(path).optimizer
    assert (optimizer.vector.lr_multiplier, optimizer.vector.weight_decay) == (2.0, 0.0)
    assert optimizer.head == AdamWConfig().head
