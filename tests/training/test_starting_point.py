"""A run is not continued as another one."""

import dataclasses

import pytest

from neobert_train.config.choices import CHOICES, MuonConfig, OptimizerConfig
from neobert_train.config.saved import dump_config
from neobert_train.config.schema import Resume
from neobert_train.config.setting import setting
from neobert_train.errors import InputError
from neobert_train.run.directory import RunDirectory
from neobert_train.training.starting_point import check_resume


@dataclasses.dataclass
class OtherConfig(OptimizerConfig):
    kind: str = setting("other", "What optimizer=KIND has chosen.")


@pytest.mark.parametrize("other", [OtherConfig, MuonConfig])
@pytest.mark.parametrize("resume", [Resume.auto, Resume.must, Resume.changed])
def test_a_run_is_not_continued_with_another_optimizer(
    make_config, monkeypatch, tmp_path, resume, other
):
    """The state of one means nothing to another, whatever the user allows."""
    monkeypatch.setitem(CHOICES["optimizer"], "other", OtherConfig)
    config = make_config()
    run = RunDirectory(config.output_dir)
    (run.path / "checkpoints" / "step-00000001").mkdir(parents=True)
    run.config_file.write_text(dump_config(config))
    changed = dataclasses.replace(config, optimizer=other(), resume=resume)
    with pytest.raises(InputError) as raised:
        check_resume(changed, run)
    assert "trained with optimizer=adamw" in str(raised.value)
    assert f"init_from={run.path}" in str(raised.value)
    assert check_resume(dataclasses.replace(config, resume=resume), run)
