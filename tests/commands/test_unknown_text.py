"""Runs on texts that the tokenizer does not know, as a user starts them."""

import json

import pytest

from support.programs import run_command
from support.thai import make_thai, write_texts

FEW = ["data.num_workers=0", "logging.report=false", "data=files", "data.column=text"]


@pytest.fixture
def thai(tmp_path) -> list[str]:
    paths = write_texts(tmp_path / "thai.jsonl", map(make_thai, range(300)))
    return ["+experiment=smoke", *FEW, f"data.{paths}", f"output_dir={tmp_path / 'run'}"]


def test_nothing_is_begun_on_documents_that_are_all_unknown(thai, tmp_path):
    output = run_command(*thai, "data.heldout_fraction=0.05", code=2)
    assert "100.0% of the tokens of the source 'corpus' are [UNK]" in output
    assert "tokenizer.path" in output
    assert not (tmp_path / "run").exists()


def test_without_evaluation_the_first_step_stops_with_a_checkpoint(thai, tmp_path):
    output = run_command(*thai, "evaluation.max_tokens=0", code=2)
    assert "there is nothing to predict in step 1: 100.0% of the tokens of it are [UNK]" in output
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-00000000"]


def test_a_large_share_is_warned_of_once_and_is_in_the_metrics(tmp_path):
    texts = ["the state of the union " * 3 + make_thai(n) for n in range(300)]
    paths = write_texts(tmp_path / "mixed.jsonl", texts)
    output = run_command(
        "+experiment=smoke", *FEW, f"data.{paths}", f"output_dir={tmp_path / 'run'}",
        "evaluation.max_tokens=0", "trainer.max_steps=3", "trainer.log_every_steps=1",
        "batch.global_batch_tokens=1024",
    )  # fmt: skip
    assert output.count("of the tokens of the documents up to step 1 are [UNK]") == 1
    assert output.count("are [UNK]") == 1
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    shares = [json.loads(line)["data/unknown_share"] for line in lines]
    assert shares == [pytest.approx(1 / 16)] * 3
