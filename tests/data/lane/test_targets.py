"""Texts that the tokenizer does not know: counted in every batch, and refused where all are such."""

import json

import numpy as np
import pytest

from neobert_train.commands import inspect_data
from neobert_train.config.data_schema import MaskingConfig, MaskingUnit
from neobert_train.config.typed import parse
from neobert_train.data.corpus import open_corpus
from neobert_train.data.heldout import CorpusSample, build_evaluation_batches, sample_corpus
from neobert_train.data.lane.collate import collate
from neobert_train.data.lane.masking import build_masking
from neobert_train.errors import InputError
from neobert_train.training.heldout_sample import check_unknown_shares
from neobert_train.world import World
from support.thai import make_thai, write_texts


@pytest.fixture
def thai(tmp_path) -> list[str]:
    """The overrides that read 300 documents of Thai."""
    paths = write_texts(tmp_path / "thai.jsonl", map(make_thai, range(300)))
    return ["data=files", f"data.{paths}", "data.column=text", "data.heldout_fraction=0.05"]


def test_a_batch_counts_its_unknown_and_its_text_tokens(tokenizer):
    chunks = tokenizer.encode(["the union", make_thai(0), f"hello {make_thai(1)} world"])
    rule = build_masking(MaskingConfig(), tokenizer)
    generator = np.random.default_rng(0)
    batch = collate(chunks, 64, tokenizer.special, rule, 0.2, generator)
    assert [len(chunk) for chunk in chunks] == [2, 1, 3]
    assert (batch.num_text, batch.num_unknown) == (6, 2)


def test_the_look_through_the_sources_gives_the_share_of_each(
    tokenizer, make_config, tmp_path, thai
):
    paths = write_texts(
        tmp_path / "mixed.jsonl", ["the union " * 9 + make_thai(n) for n in range(50)]
    )
    config = make_config(*thai, f"++data.mixture={{mixed:{{{paths.replace('=', ':')}}},all:{{}}}}")
    sample = sample_corpus(config, open_corpus(config, tokenizer), tokenizer)
    assert sample.unknown_shares == {"mixed": pytest.approx(1 / 19), "all": 1.0}
    assert parse(CorpusSample, json.loads(json.dumps(sample.to_dict()))) == sample


def test_sources_are_warned_of_and_refused_when_nothing_of_any_is_known(tokenizer, caplog):
    check_unknown_shares(CorpusSample(unknown_shares={"good": 0.049, "bad": 1.0}), tokenizer)
    [record] = caplog.records
    assert "100.0% of the tokens of the source 'bad' are [UNK]" in record.message
    assert "'bert-base-uncased' does not know this text" in record.message
    assert "train_tokenizer data=... algorithm=unigram" in record.message
    with pytest.raises(InputError, match=r"source 'one'(.|\n)*source 'two'"):
        check_unknown_shares(CorpusSample(unknown_shares={"one": 1.0, "two": 1.0}), tokenizer)
    check_unknown_shares(CorpusSample(), tokenizer)  # where nothing was looked at


def build_batches(tokenizer, texts, **masking):
    documents = tokenizer.encode(texts)
    return build_evaluation_batches(
        documents, tokenizer, MaskingConfig(**masking), 32, 64, 10**6, seed=0
    )


def test_held_out_text_without_anything_to_predict_is_refused_with_the_reason(tokenizer):
    with pytest.raises(
        InputError, match=r"nothing to predict in the held-out text: 100\.0% of the"
    ):
        build_batches(tokenizer, [make_thai(n) for n in range(9)])
    with pytest.raises(InputError, match=r"masking\.rate chooses none of its 3 tokens"):
        build_batches(tokenizer, ["a b c"], rate=0.1)
    with pytest.raises(InputError, match=r"masking\.unit=word and span choose whole words"):
        build_batches(tokenizer, ["supercalifragilistic"], unit=MaskingUnit.word)
    assert build_batches(tokenizer, ["a b c", make_thai(0)], rate=0.5)[0].num_targets == 2
    assert build_batches(tokenizer, []) == []


def test_inspect_data_shows_the_share(make_config, thai, capsys):
    config = make_config(*thai, "batch.global_batch_tokens=64", "batch.micro_batch_tokens=64")
    config.step, config.documents = 1, 0
    inspect_data.run(config, World())
    assert "unknown     21 tokens, 100.00% of the text" in capsys.readouterr().out
