"""Settings that the program suggests can be typed as they are shown."""

import shlex

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import example, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from neobert_train.config.quoting import to_override, to_shell
from neobert_train.config.store import compose_config, to_typed

PRINTABLE = st.text(st.characters(exclude_categories=("C",)), min_size=1)


@given(PRINTABLE)
@example('my runs/it\'s "x"')
@example("null")
@example("1e3")
@example(".0")
@example("a\\")
@example('a\\"')
@example("${seed}")
@example("\\${seed}")
@example("$${oc.env:HOME}\\\\")
@example("ü[1],{2}=(3)#&; ~")
@settings(deadline=None)
def test_a_value_comes_back_through_the_shell_and_hydra(value):
    (word,) = shlex.split(to_shell("run_dir", value))
    override = OverridesParser.create().parse_override(word)
    assert OmegaConf.create({"run_dir": override.value()}).run_dir == value


def test_a_composed_configuration_holds_the_very_value():
    value = 'my runs/it\'s "${seed}" ü\\'
    config = to_typed("export", compose_config("export", [to_override("run_dir", value)]))
    assert config.run_dir == value


@pytest.mark.parametrize("value", ["runs/mine", "/tmp/a_b-1.2", "../x"])
def test_ordinary_paths_are_left_as_they_are(value):
    assert to_shell("run_dir", value) == to_override("run_dir", value) == f"run_dir={value}"
