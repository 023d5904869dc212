"""The whole ladder at toy size, and its runs laid over each other."""

import subprocess
import sys

import pytest

from neobert_train.config.store import find_group_choices
from support.programs import run_command
from support.small_vocabulary import list_small_settings

RUNGS = [name for name in find_group_choices("train")["experiment"] if name.startswith("ladder/")]
TOY = [
    "size=small", "trainer.max_steps=2", "trainer.log_every_steps=1", "data.num_workers=0",
    "logging.report=false", "evaluation.max_tokens=2048", "scheduler.warmup_steps=1",
    *list_small_settings(),
]  # fmt: skip
# Its tokenizer lies on the Hub; the shipped one has entries of its own for padding and masks.
INSTEAD = {
    "ladder/m3": [
        "tokenizer.path=bert-base-uncased", "tokenizer.pad_token='[PAD]'",
        "tokenizer.mask_token='[MASK]'",
    ]
}  # fmt: skip


@pytest.fixture(scope="module")
def ladder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ladder")
    for rung in RUNGS:
        overrides = [*TOY, *INSTEAD.get(rung, []), f"output_dir={folder / rung.rpartition('/')[2]}"]
        assert "Done: 2 steps" in run_command(f"+experiment={rung}", *overrides)
    return folder


def test_every_rung_trains_and_all_are_compared(ladder):
    folders = sorted(ladder.iterdir())
    assert len(folders) == len(RUNGS)
    output = subprocess.run(
        [sys.executable, "-m", "neobert_train.report", *folders],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    assert f"9 runs are laid over each other in {ladder / 'comparison.html'}" in output
    text = (ladder / "comparison.html").read_text()
    assert "<td></td><td>m0</td><td>m1</td>" in text
    assert "<td>masking.rate</td><td>0.15</td>" in text
    assert "output_dir" not in text
