"""Documents that a tokenizer cannot encode, and tokenizers that ask for randomness."""

import json
import logging

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tokenizers import Regex, Tokenizer, models, pre_tokenizers

from neobert_train.commands import evaluate, inspect_data
from neobert_train.config.evaluate_schema import EvaluateConfig
from neobert_train.data.corpus import open_corpus
from neobert_train.data.heldout import sample_corpus
from neobert_train.data.lane.encoding import encode_documents
from neobert_train.data.shards.preparation import list_jobs, write_shard
from neobert_train.data.sources import Record
from neobert_train.errors import InputError
from neobert_train.tokenizers.loading import load_tokenizer
from neobert_train.tokenizers.text_tokenizer import EncodingError, TextTokenizer
from neobert_train.world import World

SPECIALS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
LETTERS = "abcdefgh"


def build_unigram(unk_id: int | None = None) -> Tokenizer:
    """Pieces of some letters, and no entry for any other."""
    pieces = [(token, 0.0) for token in SPECIALS] + [(letter, -3.0) for letter in LETTERS]
    pieces += [("ab", -4.0), ("bc", -4.0), ("cd", -4.1), ("abc", -5.0), ("def", -6.0)]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id))
    tokenizer.add_special_tokens(SPECIALS)
    return tokenizer


def build_bpe(dropout: float | None) -> Tokenizer:
    alphabet = {token: index for index, token in enumerate([*SPECIALS, *LETTERS, "[", "]"])}
    vocabulary = alphabet | {"ab": 15, "cd": 16, "abcd": 17}
    merges = [("a", "b"), ("c", "d"), ("ab", "cd")]
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, dropout=dropout, unk_token="[UNK]"))
    tokenizer.add_special_tokens(SPECIALS)
    return tokenizer


class RowUnit:
    """A unit that names its rows."""

    def describe(self, next_cursor: int) -> str:
        return f"a.file, row {next_cursor}"


@pytest.fixture
def unknowing(tmp_path) -> str:
    """A tokenizer.json without an entry for what it does not know."""
    file = tmp_path / "tokenizer.json"
    build_unigram().save(str(file))
    return str(file)


@pytest.fixture
def unencodable(tmp_path, unknowing, make_config):
    """The configuration of a run on documents of which the third cannot be encoded."""
    texts = tmp_path / "texts.parquet"
    pq.write_table(pa.table({"text": ["abc", "def", "ab?", "abc"]}), texts)
    return make_config(
        "data=files", f"data.paths=[{texts}]", "data.column=text", f"tokenizer.path={unknowing}",
        "data.heldout_fraction=0", "evaluation.max_tokens=0", f"data.prepared_dir={tmp_path}/shards",
        "batch.global_batch_tokens=64", "batch.micro_batch_tokens=64", "batch.context_length=16",
    )  # fmt: skip


def test_a_text_that_the_library_refuses_is_an_input_error_that_says_which(unknowing):
    tokenizer = load_tokenizer(unknowing)
    with pytest.raises(EncodingError, match="unk_id") as error:
        tokenizer.encode(["abc", "def", "a?c", "!"])
    assert error.value.index == 2
    assert f"the tokenizer '{unknowing}' (tokenizer.path) cannot encode it" in str(error.value)
    assert [ids.tolist() for ids in tokenizer.encode(["abc"])] == [[16]]


def test_a_panic_of_the_library_is_an_input_error_as_well(capfd):
    tokenizer = Tokenizer(models.WordLevel(dict.fromkeys(SPECIALS, 0) | {"a": 1}, "[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("(a|aa)+$"), "isolated")
    with pytest.raises(EncodingError, match="retry-limit") as error:
        TextTokenizer(tokenizer, "slow").encode(["a", "a" * 40 + "b"])
    assert error.value.index == 1
    assert "panicked" in capfd.readouterr().err  # the library shows it, whatever we do


def test_what_is_no_fault_of_the_library_is_not_taken_for_one(tokenizer):
    with pytest.raises(TypeError):
        tokenizer.encode([None])


def test_the_document_is_named_among_others_by_its_id_and_place(unknowing):
    tokenizer = load_tokenizer(unknowing)
    documents = [
        (Record(text, row, row + 1, f"id {row}"), RowUnit()) for row, text in enumerate("ab?")
    ]
    with pytest.raises(InputError, match=r"^id 2 \(a.file, row 3\): the tokenizer"):
        encode_documents(tokenizer, documents)


def test_training_preparing_sampling_and_inspecting_name_it(unencodable):
    config, tokenizer = unencodable, load_tokenizer(unencodable.tokenizer.path)
    [[[job]]] = list_jobs(config, tokenizer).values()
    with pytest.raises(InputError, match=r"texts\.parquet, row 3: the tokenizer"):
        write_shard(job)
    config.data.prepared_dir = None
    units = open_corpus(config, tokenizer)
    with pytest.raises(InputError, match=r"texts\.parquet, row 3: the tokenizer"):
        sample_corpus(config, units, tokenizer)
    config.step, config.documents = 1, 8
    with pytest.raises(InputError, match=r"texts\.parquet, row 3: the tokenizer"):
        inspect_data.run(config, World())


def test_evaluation_on_texts_names_it(unencodable):
    config = EvaluateConfig(paths=unencodable.data.paths, column="text")
    with pytest.raises(InputError, match=r"texts\.parquet, row 3: the tokenizer"):
        evaluate.load_documents(config, load_tokenizer(unencodable.tokenizer.path))


def test_dropout_in_the_file_is_switched_off_with_one_warning(tmp_path, caplog):
    file = tmp_path / "tokenizer.json"
    build_bpe(dropout=0.3).save(str(file))
    text = ["abcd" * 20]
    asked = Tokenizer.from_file(str(file))
    assert len({tuple(asked.encode(text[0]).ids) for _ in range(20)}) > 1
    with caplog.at_level(logging.WARNING):
        tokenizers = [load_tokenizer(str(file)) for _ in range(2)]
    for tokenizer in tokenizers:
        assert {tuple(tokenizer.encode(text)[0].tolist()) for _ in range(20)} == {(17,) * 20}
    [record] = caplog.records
    assert "(model.dropout=0.3): switched off" in record.message
    assert str(file) in record.message
    tokenizer.save(tmp_path / "saved", 64)
    saved = json.loads((tmp_path / "saved" / "tokenizer.json").read_text(encoding="utf-8"))
    assert saved["model"]["dropout"] is None


def test_sampling_from_a_unigram_model_is_switched_off():
    sampling = build_unigram(unk_id=1)
    if not hasattr(sampling.model, "alpha"):
        pytest.skip("this version of tokenizers does not sample")
    sampling.model.alpha, sampling.model.nbest_size = 0.1, 8
    assert len({tuple(sampling.encode("abcdefgh" * 3).ids) for _ in range(20)}) > 1
    tokenizer = TextTokenizer(sampling, "sampling")
    assert len({tuple(tokenizer.encode(["abcdefgh" * 3])[0].tolist()) for _ in range(20)}) == 1


def test_a_vocabulary_that_leaves_characters_out_is_warned_of(caplog):
    silent = build_bpe(dropout=None)
    silent.model.unk_token = None
    assert silent.encode("ab?", add_special_tokens=False).ids == [15]
    TextTokenizer(silent, "silent")
    [record] = caplog.records
    assert "'silent' has no entry for characters that its vocabulary lacks" in record.message


@pytest.mark.parametrize("dropout", [None, 0.0])
def test_a_file_without_dropout_is_taken_as_it_is(tmp_path, caplog, dropout):
    plain = build_bpe(dropout)
    content = json.loads(plain.to_str())
    with caplog.at_level(logging.WARNING):
        assert json.loads(TextTokenizer(plain, "plain").to_json()) == content
    assert not caplog.records
