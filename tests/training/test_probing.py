"""Probes while training: the features are right, and training is as without them."""

import json
import logging

import numpy as np
import pytest
import torch

from neobert_train.evaluation.state_of_the_union import list_paragraphs, score_probe
from neobert_train.models.families import build_encoder
from neobert_train.training.probing import build_probe_texts, compute_features, score_features
from neobert_train.world import World
from training.runs import (
    MAX_STEPS,
    assert_bit_identical,
    fork,
    read_metrics,
    train_forked,
    train_on_two,
    wait_for_checkpoint,
)

# Sixteen tokens of every paragraph are enough to be told apart.
SHORT = "batch.context_length=16"
PROBES = [SHORT, "evaluation.probes=[decade,next_paragraph]", "evaluation.probe_every_steps=4"]
KEYS = {"probe/decade", "probe/next_paragraph"}


class OneOfSeveral:
    """Collectives of processes of which the others have nothing to add."""

    def __init__(self, rank=0, world_size=1):
        self.world = World(rank=rank, world_size=world_size)

    def sum_floats(self, values):
        return list(values)

    def on_main(self, function):
        return function()


@pytest.fixture(scope="module")
def unprobed(tmp_path_factory):
    output_dir = tmp_path_factory.mktemp("unprobed") / "run"
    train_forked(output_dir, SHORT)
    return output_dir


def drop_probes(output_dir):
    """Leave out of the metrics what the probes added, which is returned by step."""
    records = read_metrics(output_dir)
    found = {r["step"]: {k: r.pop(k) for k in KEYS} for r in records if KEYS & r.keys()}
    kept = [json.dumps(r) for r in records if r["step"]]
    (output_dir / "metrics.jsonl").write_text("\n".join(kept) + "\n")
    return found


def test_features_are_the_means_of_texts_encoded_one_by_one(make_config, tokenizer):
    config = make_config(SHORT, "evaluation.probes=[party,party]")
    encoder = build_encoder(config, tokenizer)
    encoder.network.double().eval()
    texts = build_probe_texts(config, tokenizer)
    assert texts.names == ["party"]
    assert {len(batch.input_ids) for batch in texts.batches} == {config.batch.micro_batch_tokens}
    features = compute_features(encoder.encode, texts, OneOfSeveral())
    paragraphs = list_paragraphs().texts
    assert features.shape == (len(paragraphs), 64)
    special = tokenizer.special
    for place in (0, 17, len(paragraphs) - 1):
        (ids,) = tokenizer.encode([paragraphs[place]])
        whole = torch.tensor([[special.cls, *ids[:14].tolist(), special.sep]])
        with torch.no_grad():
            expected = encoder.network.model(input_ids=whole).last_hidden_state[0].mean(dim=0)
        assert features[place] == pytest.approx(expected.numpy(), abs=1e-5)
    parts = [compute_features(encoder.encode, texts, OneOfSeveral(rank, 3)) for rank in range(3)]
    assert (sum(parts) == features).all()
    assert ((parts[0] == 0) | (parts[1] == 0)).all()
    scores = score_features(features, texts, OneOfSeveral())
    assert scores == {"probe/party": score_probe("party", features)}


def test_a_probe_that_fails_is_a_warning(make_config, tokenizer, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("neobert_train"), "propagate", True)
    config = make_config(SHORT, "evaluation.probes=[party,next_paragraph]")
    texts = build_probe_texts(config, tokenizer)
    features = np.full((texts.num_texts, 4), np.nan)
    assert score_features(features, texts, OneOfSeveral()) == {}
    assert "the probe party has no score" in caplog.text
    assert "the probe next_paragraph has no score" in caplog.text


def test_a_run_with_probes_killed_and_resumed_is_the_same_as_one_without(unprobed, tmp_path):
    process = fork(tmp_path / "run", *PROBES)
    wait_for_checkpoint(tmp_path / "run", 2, process)
    process.kill()
    process.wait()
    assert f"step {MAX_STEPS}: probes decade" in train_forked(tmp_path / "run", *PROBES)
    found = drop_probes(tmp_path / "run")
    assert found.keys() == {0, 4, MAX_STEPS}
    assert all(0 < value < 1 for scores in found.values() for value in scores.values())
    assert_bit_identical(tmp_path / "run", unprobed)


def test_two_processes_with_zero3_find_what_one_does(tmp_path):
    """Every process takes part in every forward pass."""
    settings = [*PROBES, "trainer.max_steps=4", "evaluation.probe_every_steps=0"]
    train_on_two(tmp_path / "two", *settings, "deepspeed=zero3")
    train_forked(tmp_path / "one", *settings)
    two, one = (drop_probes(tmp_path / name) for name in ("two", "one"))
    assert two.keys() == one.keys() == {0, 4}
    for step, scores in one.items():
        assert two[step] == pytest.approx(scores, abs=0.02)
