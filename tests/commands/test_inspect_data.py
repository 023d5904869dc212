"""inspect_data shows the batches that training takes, from the beginning and from checkpoints."""

import re

import pytest

from neobert_train.commands.inspect_data import find_nearest_states, format_step, iter_lanes
from neobert_train.config.command_schema import InspectDataConfig
from neobert_train.data.corpus import open_corpus
from neobert_train.data.lane.lane import initial_states
from neobert_train.data.loader import StepLoader
from support import configs
from support.programs import run_command


def compose(*overrides: str) -> InspectDataConfig:
    base = ["+experiment=smoke", "data.num_workers=0", "logging.progress=false"]
    return configs.compose("inspect_data", *base, *overrides)


@pytest.fixture(scope="module")
def steps(tokenizer):
    """What training would take in its first five steps."""
    config = compose()
    loader = StepLoader(config, open_corpus(config, tokenizer), initial_states(range(8)))
    return [loader.next_step() for _ in range(5)]


@pytest.mark.parametrize("step", [1, 2, 5])
def test_it_shows_the_batches_of_the_step_from_the_beginning(tokenizer, tmp_path, steps, step):
    config = compose(f"step={step}", f"output_dir={tmp_path}")
    first, states = find_nearest_states(config)
    assert first == 1
    units = open_corpus(config, tokenizer)
    lanes = list(iter_lanes(config, units, tokenizer, states, first))
    for lane, batch in zip(lanes, steps[step - 1], strict=True):
        assert lane.batch.input_ids.tolist() == batch.input_ids.tolist()
        assert lane.batch.lane_state == batch.lane_state


def test_it_reads_on_from_the_nearest_checkpoint_and_shows_the_same(
    finished_run, tokenizer, steps, monkeypatch, tmp_path
):
    config = compose("step=5", f"output_dir={finished_run}")
    first, states = find_nearest_states(config)
    assert first == 4  # of checkpoints 2 and 3
    units = open_corpus(config, tokenizer)
    lanes = list(iter_lanes(config, units, tokenizer, states, first))
    assert [lane.batch.labels.tolist() for lane in lanes] == [b.labels.tolist() for b in steps[4]]
    # A checkpoint at the step itself or later, or of another run, is of no use.
    assert find_nearest_states(compose("step=2", f"output_dir={finished_run}"))[0] == 1
    other = compose("step=5", f"output_dir={finished_run}", "seed=7")
    assert find_nearest_states(other)[0] == 1


def test_it_names_documents_sources_fill_and_masked_text(tokenizer, steps, tmp_path):
    config = compose(f"output_dir={tmp_path}", "step=2", "documents=9")
    units = open_corpus(config, tokenizer)
    states = initial_states(range(8))
    text = format_step(
        config, list(iter_lanes(config, units, tokenizer, states, 1)), units, tokenizer
    )
    num_tokens = sum(batch.num_tokens for batch in steps[1])
    num_targets = sum(batch.num_targets for batch in steps[1])
    assert f"{num_tokens / 4096:.3%}, {num_tokens:,} tokens" in text
    assert f"{num_targets:,} tokens" in text
    assert f"corpus      {num_tokens:,} tokens (100.00%)" in text
    named = re.findall(r"lane (\d), document (\d+): corpus, .*\.parquet, row \d+", text)
    assert named == [*((str(lane), "1") for lane in range(8)), ("0", "2")]
    first = steps[1][0]
    seen = tokenizer.decode(first.input_ids[: first.cu_seqlens[1]].tolist())
    assert " ".join(seen.split())[:300] in text


def test_the_command_prints_it(tmp_path):
    output = run_command(
        "inspect_data", "+experiment=smoke", f"output_dir={tmp_path / 'run'}", "step=2",
        "documents=1", "data.mixture.all.weight=1", "data.mixture.long.min_tokens=6000",
    )  # fmt: skip
    assert output.startswith("step 2: 8 micro-batches of 512 tokens")
    assert re.search(r"\n  all +[\d,]+ tokens \(\d+\.\d\d%\) in \d+", output)
    assert "[MASK]" in output
    assert not (tmp_path / "run").exists()
