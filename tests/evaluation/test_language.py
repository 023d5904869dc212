"""Pseudo-perplexity, against a model that masks one token of one text at a time."""

import math

import numpy as np
import pytest
import torch
from transformers import AutoModelForMaskedLM, AutoTokenizer

from neobert_train.config.data_schema import TextDocuments
from neobert_train.config.evaluate_schema import EvaluateConfig, TokenTaskConfig
from neobert_train.errors import InputError
from neobert_train.evaluation.candidates import load_candidate
from neobert_train.evaluation.conditions import Conditions
from neobert_train.evaluation.language import (
    MaskedLMTask,
    PseudoPerplexityTask,
    ThroughputTask,
    list_masked_copies,
)
from support.architectures import write_folder

CONDITIONS = Conditions(torch.device("cpu"), bf16=False, batch_tokens=100)
TEXTS = [
    "the state of the union is strong and our people are at work on it today",
    "peace and trade",
]


@pytest.fixture(scope="module", params=["bert", "modernbert"])
def candidate(request, tmp_path_factory, tokenizer):
    folder = tmp_path_factory.mktemp(request.param)
    write_folder(folder, request.param, tokenizer)
    return load_candidate(str(folder), folder / "exports", trust_remote_code=False)


@pytest.fixture
def config(tmp_path):
    (tmp_path / "texts.txt").write_text("\n".join(TEXTS))
    return EvaluateConfig(
        paths=[str(tmp_path / "texts.txt")], text_documents=TextDocuments.line,
        measure=TokenTaskConfig(lengths=[12], positions_per_text=100),
    )  # fmt: skip


def test_pseudo_perplexity_masks_every_token_by_itself(candidate, config):
    task = PseudoPerplexityTask(config)
    (settings,) = task.list_settings()
    found = task.measure(candidate, settings, 0, CONDITIONS)
    tokenizer = AutoTokenizer.from_pretrained(candidate.folder)
    network = AutoModelForMaskedLM.from_pretrained(candidate.folder).eval()
    ids = tokenizer(TEXTS[0], truncation=True, max_length=12, return_tensors="pt")["input_ids"]
    losses = []
    for place in range(1, 11):  # the second text is too short
        masked = ids.clone()
        masked[0, place] = tokenizer.mask_token_id
        with torch.no_grad():
            logits = network(input_ids=masked).logits[0, place]
        losses.append(-logits.log_softmax(-1)[ids[0, place]].item())
    assert found.values["loss"] == pytest.approx(np.mean(losses), abs=1e-4)
    assert found.values["pseudo_perplexity"] == pytest.approx(math.exp(np.mean(losses)), rel=1e-3)


def test_lengths_that_no_text_has_and_that_no_model_takes_are_told(candidate, config):
    config.measure.lengths = [64, 1 << 30]
    task = PseudoPerplexityTask(config)
    short, long = task.list_settings()
    with pytest.raises(InputError, match=r"no document of paths=.* has 62 tokens"):
        task.measure(candidate, short, 0, CONDITIONS)
    with pytest.raises(InputError, match=r"takes texts of \d+ tokens at most"):
        task.measure(candidate, long, 0, CONDITIONS)


def test_copies_mask_evenly_spaced_tokens_once_each(tokenizer):
    special = tokenizer.special
    text = np.arange(1000, 1031)
    batches = list_masked_copies(text, 4, special, batch_tokens=70)
    assert [batch.num_targets for batch in batches] == [2, 2]
    labels = torch.cat([batch.labels for batch in batches]).tolist()
    assert labels == [1000, 1010, 1020, 1030]
    for batch in batches:
        assert batch.input_ids[batch.masked_positions].tolist() == [special.mask] * 2
        copies = batch.input_ids.view(2, 33)
        assert (copies == special.mask).sum() == 2
        assert batch.cu_seqlens.tolist() == [0, 33, 66]
    (batch,) = list_masked_copies(text, 99, special, batch_tokens=1 << 20)
    assert batch.num_targets == 31


def test_masked_lm_and_throughput_give_numbers(candidate, config):
    task = MaskedLMTask(config)
    found = task.measure(candidate, task.list_settings()[0], 0, CONDITIONS)
    assert found.values["loss"] == pytest.approx(math.log(30_522), abs=0.7)
    config.measure.throughput_tokens = 64
    speed = ThroughputTask(config)
    assert (
        speed.measure(candidate, speed.list_settings()[0], 0, CONDITIONS).values[
            "tokens_per_second"
        ]
        > 0
    )


def test_other_texts_are_another_task(config):
    before = MaskedLMTask(config).digest
    config.column = "text"
    other = MaskedLMTask(config).digest
    with open(config.paths[0], "a") as file:
        file.write("\nmore")
    assert len({before, other, MaskedLMTask(config).digest}) == 3
