"""One small finished run that the tests of commands share."""

from pathlib import Path

import pytest

from support.programs import run_command


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory) -> Path:
    """Three steps of the smoke experiment, with a report and planted secrets around it."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    run_command(
        "+experiment=smoke", f"output_dir={folder}", "trainer.max_steps=3",
        "checkpoint.save_every_steps=1", "checkpoint.keep_last=2", "data.num_workers=0",
        HF_TOKEN="hf_planted-secret", WANDB_API_KEY="planted-secret-key",
        AWS_SECRET_ACCESS_KEY="planted-secret-access",
    )  # fmt: skip
    return folder
