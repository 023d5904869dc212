"""Tokenizers learnt from texts: what they hold, lose and give back, and that they come out alike."""

import functools
import json
import unicodedata
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import pre_tokenizers
from transformers import AutoTokenizer

from neobert_train.config.command_schema import TokenizerAlgorithm, TrainTokenizerConfig
from neobert_train.data.lane.admission import is_heldout
from neobert_train.data.lane.words import build_word_starts
from neobert_train.data.sources import Record
from neobert_train.data.training_texts import TrainingTexts, _iter_records
from neobert_train.errors import InputError
from neobert_train.models.families import build_encoder
from neobert_train.tokenizers import training
from neobert_train.tokenizers.loading import load_tokenizer
from neobert_train.tokenizers.long_texts import split_text
from neobert_train.tokenizers.special_tokens import SpecialTokens
from neobert_train.tokenizers.text_tokenizer import TextTokenizer
from neobert_train.tokenizers.training import (
    SPECIAL_TOKENS,
    count_words,
    measure_tokenizer,
    train_tokenizer,
)
from support.configs import compose
from support.thai import make_thai

ALGORITHMS = [algorithm.value for algorithm in TokenizerAlgorithm]
SMALL = 1500
LANGUAGES = {
    "german": [
        "Die Straße führt über den Fluss und weiter in die Berge.",
        "Über den Bergen liegt morgens oft dichter Nebel, sagt der Müller.",
        "Der Müller geht früh über die Straße, denn die Mühle läuft schon.",
    ],
    "japanese": [
        "今日はとても天気が良いので、公園を散歩しました。",
        "公園にはたくさんの人がいて、ギターを弾く人もいました。",
        "明日は天気が悪いので、家で本を読みます。",
    ],
    "arabic": [
        "ذهب الولد إلى المدرسة صباحاً مع صديقه.",
        "المدرسة قريبة من البيت، والطريق إليها جميل.",
        "عاد الولد إلى البيت مساءً وقرأ كتاباً جديداً.",
    ],
}

ANY_TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)


def make_config(*overrides: str) -> TrainTokenizerConfig:
    return compose("train_tokenizer", "data=state_of_the_union", *overrides)


def write_texts(folder, texts) -> list[str]:
    """The overrides that read these texts."""
    file = folder / "texts.jsonl"
    file.write_text("\n".join(json.dumps({"text": text}) for text in texts), encoding="utf-8")
    return [
        "data=files",
        f"data.paths=[{file}]",
        "data.heldout_fraction=0",
        "evaluation.max_tokens=0",
    ]


def learn(texts, algorithm: str, *overrides: str) -> TextTokenizer:
    config = make_config(f"algorithm={algorithm}", *overrides)
    return train_tokenizer(count_words(texts, config.algorithm, config.lowercase), config)


@pytest.fixture(scope="module")
def speeches() -> list[str]:
    return list(TrainingTexts(make_config()))[:30]


@pytest.fixture(scope="module", params=ALGORITHMS)
def trained(request, speeches, tmp_path_factory):
    """A tokenizer of each algorithm, as it lies in its folder."""
    folder = tmp_path_factory.mktemp(request.param) / "tokenizer"
    learn(speeches, request.param, f"vocab_size={SMALL}").save(folder, 512)
    return request.param, folder, load_tokenizer(str(folder))


@pytest.fixture(scope="module")
def byte_level(speeches) -> TextTokenizer:
    return learn(speeches, "bpe", f"vocab_size={SMALL}")


def test_it_has_the_asked_size_and_the_five_special_tokens_first(trained):
    algorithm, _, tokenizer = trained
    assert tokenizer.vocab_size == SMALL
    unk = None if algorithm == "bpe" else 1  # bytes are all known
    assert tokenizer.special == SpecialTokens(pad=0, unk=unk, cls=2, sep=3, mask=4)
    assert tokenizer.special_ids.tolist() == [0, 1, 2, 3, 4]
    assert [tokenizer.decode([index]) for index in range(5)] == list(SPECIAL_TOKENS)


def test_every_id_belongs_to_one_token(trained):
    _, folder, _ = trained
    vocabulary = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))["model"][
        "vocab"
    ]
    tokens = [entry[0] for entry in vocabulary] if isinstance(vocabulary, list) else vocabulary
    assert len(set(tokens)) == SMALL
    if isinstance(vocabulary, dict):
        assert sorted(vocabulary.values()) == list(range(SMALL))


def test_transformers_gives_the_same_ids_within_cls_and_sep(trained, speeches):
    _, folder, tokenizer = trained
    theirs = AutoTokenizer.from_pretrained(folder)
    assert theirs.model_max_length == 512
    assert (theirs.pad_token_id, theirs.unk_token_id, theirs.mask_token_id) == (0, 1, 4)
    texts = [speeches[0][:5000], "naïve café 🙂 \t tab\n\nline", "ﬁne ½ day", " a  b ", "日本語"]
    for text, ids in zip(texts, tokenizer.encode(texts), strict=True):
        assert theirs(text)["input_ids"] == [2, *ids.tolist(), 3]
    assert "token_type_ids" not in theirs("a")


def test_speeches_come_back(trained, speeches):
    algorithm, _, tokenizer = trained
    text = speeches[3][:5000]
    [ids] = tokenizer.encode([text])
    assert tokenizer.special.unk not in ids
    back = tokenizer.decode(ids)
    if algorithm == "wordpiece":  # which keeps no spaces
        assert "".join(back.split()) == "".join(text.split())
    else:
        assert back == text


@pytest.mark.parametrize("token", SPECIAL_TOKENS)
def test_a_special_token_spelled_in_a_document_is_text(trained, token):
    _, _, tokenizer = trained
    for text in (f"write {token} here", token, f"a{token}{token}"):
        [ids] = tokenizer.encode([text])
        assert set(ids.tolist()).isdisjoint({0, 2, 3, 4})


@settings(deadline=None, max_examples=200)
@given(ANY_TEXT)
def test_byte_level_loses_nothing_of_any_text(byte_level, text):
    [ids] = byte_level.encode([text])
    assert set(ids.tolist()).isdisjoint(range(5))
    back = byte_level.decode(ids)
    assert unicodedata.normalize("NFC", back) == unicodedata.normalize("NFC", text)


def test_byte_level_knows_every_byte(byte_level):
    text = "".join(map(chr, range(1, 0x2000))) + "\U0001f600\U0010ffff"
    text = unicodedata.normalize("NFC", text)
    assert byte_level.decode(byte_level.encode([text])[0]) == text


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("language", LANGUAGES)
def test_other_languages_come_back_from_fewer_tokens_than_those_of_the_shipped_one(
    tokenizer, language, algorithm
):
    texts = LANGUAGES[language]
    own = learn(texts * 20, algorithm, "vocab_size=400")
    ours, shipped = measure_tokenizer(own, texts), measure_tokenizer(tokenizer, texts)
    assert ours.unknown_share == 0
    if algorithm != "unigram":  # whose pieces come from what different words share: not enough here
        assert ours.characters_per_token > 1.5 * shipped.characters_per_token
    for text, ids in zip(texts, own.encode(texts), strict=True):
        compared = unicodedata.normalize("NFKC" if algorithm == "unigram" else "NFC", text)
        assert own.decode(ids).replace(" ", "") == compared.replace(" ", "")


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_lowercase_folds_case_and_accents_and_leaves_hangul_whole(algorithm):
    texts = ["Ein Café in Ödön, ÉCOLE und école", "한국어 문장", "ein cafe in odon"] * 20
    tokenizer = learn(texts, algorithm, "vocab_size=300", "lowercase=true")
    upper, lower, hangul = tokenizer.encode(["CAFÉ Ödön École", "cafe odon ecole", "한국어"])
    assert upper.tolist() == lower.tolist()
    assert tokenizer.decode(lower) == "cafe odon ecole"
    assert tokenizer.decode(hangul) == "한국어"
    keeping = learn(texts, algorithm, "vocab_size=300")
    assert keeping.decode(keeping.encode(["École"])[0]) == "École"


# Thai and Hindi vowels, voiced Japanese consonants, Arabic and Hebrew points.
MARKS = ["ที่นี่มีน้ำ", "हिन्दी में", "これがギターです", "مَكْتَبَة", "שָׁלוֹם"]


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_lowercase_keeps_the_marks_that_other_scripts_are_read_by(algorithm):
    tokenizer = learn(MARKS * 20, algorithm, "vocab_size=400", "lowercase=true")
    for text, ids in zip(MARKS, tokenizer.encode(MARKS), strict=True):
        form = "NFKC" if algorithm == "unigram" else "NFC"
        assert tokenizer.decode(ids) == unicodedata.normalize(form, text)


@pytest.mark.parametrize("text", MARKS)
def test_byte_level_cuts_no_word_at_a_combining_mark(text):
    tokenizer = learn([f"{text} and {text}"] * 20, "bpe", "vocab_size=600")
    starts = build_word_starts(tokenizer).find(tokenizer.encode([text])[0])
    assert starts.sum() == len(text.split())
    assert len(starts) == len(text.split())  # each word is one token


def test_byte_level_cuts_words_without_marks_as_gpt_2_does(speeches):
    ours = learn(speeches[:5], "bpe", f"vocab_size={SMALL}")._tokenizer.pre_tokenizer
    theirs = pre_tokenizers.ByteLevel(add_prefix_space=False)
    for text in [speeches[5], "it's 1,000  spaces\n\n and 'tis (so)—\t日本語 안녕 "]:
        words = [word for word, _ in ours.pre_tokenize_str(text)]
        assert words == [word for word, _ in theirs.pre_tokenize_str(text)]


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_the_same_texts_give_the_same_bytes(speeches, tmp_path, algorithm):
    # The many rare words of a large vocabulary are where ties abound.
    written = set()
    for attempt in range(2):
        folder = tmp_path / str(attempt)
        learn(speeches[:20], algorithm, "vocab_size=6000").save(folder, 512)
        written.add((folder / "tokenizer.json").read_bytes())
    assert len(written) == 1


def test_words_are_counted_as_they_are_cut(speeches):
    words = count_words(["Work, work and wörk.", "work"], TokenizerAlgorithm.wordpiece, True)
    assert words == {"work": 4, ",": 1, "and": 1, ".": 1}
    words = count_words(["Work, work"], TokenizerAlgorithm.unigram, False)
    assert words == {"▁Work,": 1, "▁work": 1}


def test_a_trainer_is_fed_each_word_as_often_as_it_occurs(monkeypatch):
    monkeypatch.setattr(training, "_FED_CHARACTERS", 10)
    words = {"a": 37, "bcd": 3, "long word of many letters": 2, "e": 1}
    runs = list(training._iter_word_runs(words))
    assert Counter("".join(runs).split("\0")[:-1]) == words
    assert max(map(len, runs)) <= 26


def test_text_without_spaces_of_any_length_is_learnt():
    text = "".join(LANGUAGES["japanese"]) * 200
    tokenizer = learn([text], "unigram", "vocab_size=200")
    [ids] = tokenizer.encode([LANGUAGES["japanese"][0]])
    assert tokenizer.special.unk not in ids
    assert len(ids) < len(LANGUAGES["japanese"][0])


@pytest.mark.parametrize("algorithm", ["wordpiece", "unigram"])
def test_characters_leave_half_of_the_vocabulary_to_words_and_the_rare_ones_are_told(
    algorithm, caplog
):
    rare = " ".join(chr(0x4E00 + index) for index in range(500))
    texts = ["the people of the union and the state of the people " * 20, rare]
    with caplog.at_level("WARNING", "neobert_train"):
        tokenizer = learn(texts, algorithm, "vocab_size=120")
    assert tokenizer.vocab_size <= 120
    [message] = [r.getMessage() for r in caplog.records if "get no entry" in r.getMessage()]
    assert "algorithm=bpe" in message
    [common] = tokenizer.encode(["the people of the union"])
    assert tokenizer.special.unk not in common
    if algorithm == "wordpiece":
        assert len(common) == 5
    [ids] = tokenizer.encode([rare[-20:]])
    assert tokenizer.special.unk in ids


def test_too_few_texts_for_the_vocabulary_are_told_with_the_size_reached(caplog):
    with caplog.at_level("WARNING", "neobert_train"):
        tokenizer = learn(["work and peace"] * 5, "wordpiece", "vocab_size=5000")
    assert tokenizer.vocab_size < 60
    assert f"only {tokenizer.vocab_size} of vocab_size=5,000 entries" in caplog.text


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_no_text_at_all_is_refused(algorithm):
    with pytest.raises(InputError, match=r"no document to learn from.*lower data.heldout_fraction"):
        learn([], algorithm)


def test_min_frequency_keeps_rare_words_out():
    texts = ["state state state unionised"]
    assert len(learn(texts, "wordpiece", "min_frequency=2").encode(["unionised"])[0]) > 1
    assert len(learn(texts, "wordpiece", "min_frequency=1").encode(["unionised"])[0]) == 1


def test_heldout_documents_are_measured_on_and_not_learnt_from():
    texts = TrainingTexts(make_config())
    learnt = list(texts)
    heldout, kind = texts.sample
    assert kind == "held-out"
    assert len(learnt) + texts.num_heldout == 74
    assert texts.num_heldout > 0
    assert (texts.num_documents, texts.num_characters) == (len(learnt), sum(map(len, learnt)))
    assert not any(is_heldout(text, 0.08) for text in learnt)
    assert all(is_heldout(text, 0.08) for text in heldout)


def test_a_part_of_the_documents_comes_from_all_over_the_files(tmp_path):
    texts = [f"document {number} " + "of many words " * 20 for number in range(2000)]
    given = [*write_texts(tmp_path, texts), "data.shuffle_units=4"]
    chosen = list(TrainingTexts(make_config(*given, "max_documents=40")))
    assert len(set(chosen)) == 40
    numbers = sorted(int(text.split()[1]) for text in chosen)
    assert numbers[-1] - numbers[0] > 500
    assert chosen == list(TrainingTexts(make_config(*given, "max_documents=40")))
    assert chosen != list(TrainingTexts(make_config(*given, "max_documents=40", "seed=1")))
    everything = list(TrainingTexts(make_config(*given)))
    assert sorted(everything) == sorted(texts)


def test_every_source_of_a_mixture_is_read_once(tmp_path):
    for name in ("one", "two"):
        (tmp_path / f"{name}.txt").write_text(f"first of {name}\n\nsecond of {name}")
    given = write_texts(tmp_path, ["not part of the mixture"])
    for source, name in (("all", "one"), ("long", "one"), ("other", "two")):
        given.append(f"data.mixture.{source}.paths=[{tmp_path / name}.txt]")
    texts = TrainingTexts(make_config(*given, "data.mixture.long.min_characters=5"))
    assert sorted(texts) == ["first of one", "first of two", "second of one", "second of two"]


class NumberedUnit:
    """Ten records that tell their unit."""

    def __init__(self, number: int) -> None:
        self.number = number

    def iter_records(self, cursor: int):
        return (Record(f"{self.number} {place}", place, place + 1) for place in range(cursor, 10))


def test_several_units_are_read_in_turn_and_each_record_once():
    units = [NumberedUnit(number) for number in range(8)]
    texts = [record.text for record in _iter_records(units, 0, num_open=3)]
    assert sorted(texts) == sorted(f"{unit} {place}" for unit in range(8) for place in range(10))
    first = [text.split()[0] for text in texts[:30]]
    assert len(set(first[:3])) == 3
    assert first == first[:3] * 10


def test_without_heldout_documents_the_first_ones_are_measured_on(tmp_path):
    texts = TrainingTexts(make_config(*write_texts(tmp_path, ["one text", " ", "another"])))
    learnt = list(texts)
    assert sorted(learnt) == ["another", "one text"]
    assert texts.sample == (learnt, "training")


def test_bad_records_stop_or_are_left_out_and_counted(tmp_path):
    given = write_texts(tmp_path, ["one", "two"])
    with (tmp_path / "texts.jsonl").open("a", encoding="utf-8") as file:
        file.write("\n{broken\n")
    words = TokenizerAlgorithm.wordpiece, False
    with pytest.raises(InputError, match=r"line 3: not JSON.*write data.on_bad_record=skip"):
        count_words(TrainingTexts(make_config(*given)), *words)
    texts = TrainingTexts(make_config(*given, "data.on_bad_record=skip"))
    assert count_words(texts, *words) == {"one": 1, "two": 1}
    assert texts.num_bad_records == 1


def test_the_model_takes_size_and_padding_from_the_tokenizer(speeches):
    tokenizer = learn(speeches[:10], "wordpiece", "vocab_size=500")
    model = build_encoder(
        make_config("model=neobert_tiny", "batch.context_length=128"), tokenizer
    ).network
    assert model.config.vocab_size == 500
    assert model.config.pad_token_id == tokenizer.special.pad == 0
    assert model.get_input_embeddings().weight.shape[0] == 500


def test_sentences_without_spaces_are_learnt_from_and_known(tmp_path):
    documents = [make_thai(number, 300) for number in range(150)]
    tokenizer = learn(documents[:100], "wordpiece", "vocab_size=500")
    assert measure_tokenizer(tokenizer, documents[100:]).unknown_share == 0.0
    tokenizer.save(tmp_path, 512)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    for text in (documents[100], f"ไทย {documents[101]} ปลา", "x" * 250):
        [ids] = tokenizer.encode([text])
        assert theirs(text, add_special_tokens=False)["input_ids"] == ids.tolist()
        if "x" not in text:
            assert tokenizer.decode(ids).replace(" ", "") == text.replace(" ", "")


def test_words_are_cut_in_front_of_no_combining_mark():
    text = "กี่" * 90  # two marks on each letter
    tokenizer = learn([text], "wordpiece", "vocab_size=200", "min_frequency=1")
    words = [word for word, _ in tokenizer._tokenizer.pre_tokenizer.pre_tokenize_str(text)]
    assert [len(word) for word in words] == [99, 99, 72]
    assert "".join(words) == text


def test_words_that_wordpiece_takes_leave_the_steps_of_bert_as_they_are():
    tokenizer = learn(["x" * 100 + " a word"] * 3, "wordpiece", "vocab_size=100")
    assert json.loads(tokenizer.to_json())["pre_tokenizer"] == {"type": "BertPreTokenizer"}


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_words_of_long_documents_are_counted_piece_by_piece(speeches, algorithm, monkeypatch):
    words = count_words(speeches[:3], TokenizerAlgorithm(algorithm), False)
    short_pieces = functools.partial(split_text, most_characters=2000)
    monkeypatch.setattr(training, "split_text", short_pieces)
    assert count_words(speeches[:3], TokenizerAlgorithm(algorithm), False) == words
