"""Long texts cut into pieces: the pieces give the tokens of the whole, whatever the tokenizer."""

import json
import subprocess
import sys
import unicodedata

import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers

from neobert_train.data.sources import EMBEDDED_TEXTS
from neobert_train.errors import InputError
from neobert_train.tokenizers import long_texts
from neobert_train.tokenizers.loading import SHIPPED_TOKENIZER
from neobert_train.tokenizers.long_texts import split_text
from neobert_train.tokenizers.text_tokenizer import iter_groups

# As published with Llama 3: newlines go to the punctuation before them.
LLAMA_3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPEECHES = pq.read_table(EMBEDDED_TEXTS).column("content").to_pylist()[:3]
LIMIT = 2000


def train_bpe(pre_tokenizer, **settings) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(**settings))
    tokenizer.pre_tokenizer = pre_tokenizer
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=700, initial_alphabet=alphabet, special_tokens=["<unk>"], show_progress=False
    )
    tokenizer.train_from_iterator([SPEECHES[0]], trainer)
    return tokenizer


def train_unigram(pre_tokenizer) -> Tokenizer:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizer
    trainer = trainers.UnigramTrainer(
        vocab_size=500, unk_token="<unk>", special_tokens=["<unk>"], show_progress=False
    )
    tokenizer.train_from_iterator([SPEECHES[0]], trainer)
    return tokenizer


def build_llama_2() -> Tokenizer:
    """No cutting into words at all, and a marker in front of every text."""
    tokenizer = train_bpe(pre_tokenizers.Metaspace(), unk_token="<unk>", fuse_unk=True)
    tokenizer.pre_tokenizer = None
    steps = [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    tokenizer.normalizer = normalizers.Sequence(steps)
    return tokenizer


def build_xlm_r() -> Tokenizer:
    metaspace = [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()]
    tokenizer = train_unigram(pre_tokenizers.Sequence(metaspace))
    steps = [normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")]
    tokenizer.normalizer = normalizers.Sequence(steps)
    return tokenizer


BUILDERS = {
    "wordpiece": lambda: Tokenizer.from_file(str(SHIPPED_TOKENIZER / "tokenizer.json")),
    "gpt_2": lambda: train_bpe(pre_tokenizers.ByteLevel(add_prefix_space=False)),
    "prefixed": lambda: train_bpe(pre_tokenizers.ByteLevel(add_prefix_space=True)),
    "llama_3": lambda: train_bpe(
        pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(LLAMA_3), "isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
    ),
    "llama_2": build_llama_2,
    "xlm_r": build_xlm_r,
    "always": lambda: train_unigram(pre_tokenizers.Metaspace(prepend_scheme="always")),
    "first": lambda: train_unigram(pre_tokenizers.Metaspace(prepend_scheme="first")),
    "never": lambda: train_unigram(pre_tokenizers.Metaspace(prepend_scheme="never")),
}


@pytest.fixture(scope="module", params=BUILDERS)
def tokenize(request):
    tokenizer = BUILDERS[request.param]()
    tokenizer.no_truncation()
    return lambda text: tokenizer.encode(text, add_special_tokens=False).ids


def check_pieces(text: str, tokenize, limit: int) -> list[str]:
    """That the pieces are in the text one after the other, and short; returns them."""
    pieces = list(split_text(text, tokenize, limit))
    place = 0
    for piece in pieces:
        found = text.index(piece, place)
        assert not text[place:found].strip()  # only white space is left out
        assert 0 < len(piece) <= limit
        place = found + len(piece)
    assert place == len(text)
    return pieces


@pytest.mark.parametrize("text", SPEECHES, ids=["one", "two", "three"])
def test_pieces_of_speeches_have_the_tokens_of_the_whole(tokenize, text):
    pieces = check_pieces(text, tokenize, LIMIT)
    assert len(pieces) >= len(text) // LIMIT
    assert [token for piece in pieces for token in tokenize(piece)] == tokenize(text)


WORDS = st.sampled_from(["union", "the", "a", "it's", "2,000", "naïve", "(x)", "end.", "Why?", "—"])
SPACES = st.sampled_from(
    [" ", " ", " ", "  ", "\n", "\n\n", "\r\n", " \n ", "\t", "   \n\n  ", "\xa0"]
)


@settings(deadline=None, max_examples=25)
@given(st.lists(st.tuples(WORDS, SPACES), min_size=1, max_size=9), st.integers(1200, 1600))
def test_pieces_of_any_words_and_white_space_have_the_tokens_of_the_whole(tokenize, parts, limit):
    # A marker of words that is put before every text tells no newline from the start of one.
    period = "".join(word + space for word, space in [*parts, ("the", " "), ("end", " ")])
    text = (period * 1000)[:4000].strip()
    pieces = check_pieces(text, tokenize, limit)
    assert [token for piece in pieces for token in tokenize(piece)] == tokenize(text)


def list_words(text: str) -> list[str]:
    return text.split()


def test_a_paragraph_is_preferred_to_a_line_to_a_sentence_to_a_word():
    ends = {
        "a b. c\nd\n\ne f. g\nh. i j ": "a b. c\nd",
        "a b. c\nd e f. g h. i j ": "a b. c",
        "a b. c d e f. g h. i j ": "a b. c d e f. g h.",
        "a b c d e f g h i j ": "a b c d e f g h i j",
    }
    for end, expected in ends.items():
        first = next(split_text("x" * 730 + end + "y" * 80, list_words, 800))
        assert first == "x" * 730 + expected


def test_sentences_without_spaces_end_at_their_stops():
    text = "今日は天気が良いので公園を散歩した。" * 200
    pieces = check_pieces(text, list, 1000)
    assert all(piece.endswith("。") for piece in pieces)


CHARACTERS = ["e", "e\u0301", "กี่", "👩\u200d🚀", "👍🏽", "한", "\u1112\u1161\u11ab", "क्षि"]


@settings(deadline=None, max_examples=100)
@given(st.lists(st.sampled_from(CHARACTERS), min_size=100, max_size=300).map("".join))
def test_no_character_is_taken_apart(text):
    for piece in check_pieces(text, list, 64):
        assert unicodedata.category(piece[0])[0] != "M"
        assert piece[0] not in "\u1161\u11ab\u200d🏽"
        assert piece[-1] != "\u200d"


def test_a_text_that_nothing_may_divide_is_cut_all_the_same():
    text = "e" + "\u0301" * 1000
    assert list(map(len, split_text(text, list, 100))) == [100] * 10 + [1]


def test_white_space_only_is_no_trap():
    for text in (" " * 100_000, "\n" * 100_000, " \n" * 50_000, "a" + " " * 100_000 + "b"):
        assert "".join(split_text(text, list, 1000)) == text


def test_a_short_text_is_its_only_piece():
    assert list(split_text("", list, 10)) == [""]
    text = "exactly 10"
    assert next(split_text(text, list, 10)) is text


def test_groups_end_where_they_are_full_and_errors_come_after_what_was_read():
    def read():
        yield from (1, 2, 3, 9, 1, 1, 1)
        raise InputError("broken")

    groups = iter_groups(read(), lambda size: size, enough=6, first=2)
    assert [next(groups) for _ in range(3)] == [[1, 2], [3, 9], [1, 1, 1]]
    with pytest.raises(InputError, match="broken"):
        next(groups)


def test_encoding_joins_the_pieces_of_each_text_in_order(tokenizer, monkeypatch):
    texts = ["short", SPEECHES[0], "", SPEECHES[1], " "]
    whole = [ids.tolist() for ids in tokenizer.encode(texts)]
    monkeypatch.setattr(long_texts.split_text, "__defaults__", (LIMIT,))
    assert [ids.tolist() for ids in tokenizer.encode(texts)] == whole
    assert len(list(split_text(SPEECHES[0], tokenizer._tokenize))) > 10


def test_memory_stays_near_that_of_a_long_text_and_its_ids():
    program = (
        "import json, resource, sys\n"
        "from neobert_train.tokenizers.loading import load_tokenizer\n"
        "tokenizer = load_tokenizer('bert-base-uncased')\n"
        "tokenizer.encode(['word and more ' * 80_000])\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "ids = tokenizer.encode(['word and more ' * 600_000])[0]\n"
        "after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "print(json.dumps([len(ids), 1024 * (after - before)]))\n"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    num_tokens, grown = json.loads(result.stdout)
    assert num_tokens == 1_800_000
    assert grown < 150e6  # 8.4 MB of text and 7.2 MB of ids; 900 MB when it is encoded as a whole
