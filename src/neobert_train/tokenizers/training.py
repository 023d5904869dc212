"""A tokenizer learnt from the documents of an experiment.

Words are counted while the documents stream by; the vocabulary is then learnt from the counts. The
library could do both in one go, but its WordPiece trainer numbers the characters of words in the
order of a randomly seeded hash table and settles ties by these numbers, and it lets characters
outgrow the vocabulary. Learning from known counts, the same documents give the same bytes.
"""

import json
import logging
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from tokenizers import (
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    trainers,
)

from neobert_train.config.command_schema import TokenizerAlgorithm, TrainTokenizerConfig
from neobert_train.errors import InputError
from neobert_train.signals import call_interruptibly
from neobert_train.tokenizers.long_texts import split_text
from neobert_train.tokenizers.text_tokenizer import TextTokenizer

logger = logging.getLogger(__name__)

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")  # their ids are their places
_UNKNOWN = "[UNK]"
_PREFIX = "##"

# Characters may take this share of the vocabulary, so that words are learnt in scripts of many.
_MOST_CHARACTERS = 0.5
# Text does not hold it, and the Unigram trainer puts it between words as well.
_END_OF_WORD = "\0"
_FED_CHARACTERS = 1 << 16
# Text without spaces is one word to Unigram, and the time to learn from it grows with its square.
_MOST_WORD_CHARACTERS = 1000
# WordPiece makes one [UNK] of a longer word, which is every sentence of a script without spaces. So
# such words are cut, and not between a character and its combining marks.
_MOST_WORDPIECE_CHARACTERS = 100
_CUT_WORDS = pre_tokenizers.Split(
    Regex(rf".{{1,{_MOST_WORDPIECE_CHARACTERS}}}(?!\p{{M}})"), "isolated"
)
# Of Latin, Greek and Cyrillic letters. Marks of other scripts are vowels (Thai, Hindi) or tell letters
# apart (Japanese), and text without them is not read.
_ACCENTS = Regex("[\u0300-\u036f]")
# GPT-2's pattern, with combining marks as parts of words: without, most syllables of Hindi and Thai are
# cut, into twice as many tokens.
_BPE_WORDS = pre_tokenizers.Split(
    Regex(
        r"'s|'t|'re|'ve|'m|'ll|'d| ?[\p{L}\p{M}]+| ?\p{N}+| ?[^\s\p{L}\p{M}\p{N}]+|\s+(?!\S)|\s+"
    ),
    "isolated",
)
# Sums over a randomly seeded hash table differ by 1e-10 or so from one run to the next.
_SCORE_DIGITS = 3
# What the library adds to the lowest score for each further character that it had pruned.
_PENALTY_STEP = 1e-4


def count_words(
    texts: Iterable[str], algorithm: TokenizerAlgorithm, lowercase: bool
) -> dict[str, int]:
    """Return how often each word occurs; words as `algorithm` cuts them from normalised text."""
    # A tokenizer is locked while it takes texts from an iterator, so another one cuts them.
    tokenizer, cutter = (
        _add_pipeline(Tokenizer(models.WordLevel(unk_token=_UNKNOWN)), algorithm, lowercase)
        for _ in range(2)
    )

    def list_words(text: str) -> list[str]:
        words = cutter.pre_tokenizer.pre_tokenize_str(cutter.normalizer.normalize_str(text))
        return [word for word, _ in words]

    pieces = (piece for text in texts for piece in split_text(text, list_words))
    # This trainer does nothing but count; its counts come out with its serialised state.
    trainer = trainers.WordLevelTrainer(vocab_size=0, show_progress=False)
    call_interruptibly(lambda: tokenizer.train_from_iterator(pieces, trainer))
    words: dict[str, int] = json.loads(trainer.__getstate__())["WordLevelTrainer"]["words"]
    return words


def train_tokenizer(words: Mapping[str, int], config: TrainTokenizerConfig) -> TextTokenizer:
    """Learn a vocabulary of up to `vocab_size` entries from the counts of words.

    Warns where there are fewer entries to learn, and of characters that got none.

    Raises:
        InputError: there are no words.
    """
    if not words:
        raise InputError(
            "the source has no document to learn from: all are empty or held out; add documents "
            "or lower data.heldout_fraction"
        )
    is_wordpiece = config.algorithm is TokenizerAlgorithm.wordpiece
    cuts_words = is_wordpiece and max(map(len, words)) > _MOST_WORDPIECE_CHARACTERS
    if cuts_words:
        words = _cut_words(words)
    if config.algorithm is not TokenizerAlgorithm.bpe:  # bytes are never too many
        words = _leave_out_characters(words, config)
    model = _TRAINERS[config.algorithm](words, config)
    tokenizer = _add_pipeline(Tokenizer(model), config.algorithm, config.lowercase)
    if cuts_words:
        steps = [tokenizer.pre_tokenizer, _CUT_WORDS]
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    trained = TextTokenizer(tokenizer, config.output)
    if trained.vocab_size < config.vocab_size:
        logger.warning(
            "the documents gave only %s of vocab_size=%s entries: train on more text, or lower "
            "vocab_size%s",
            f"{trained.vocab_size:,}",
            f"{config.vocab_size:,}",
            "" if config.algorithm is TokenizerAlgorithm.unigram else " or min_frequency",
        )
    return trained


def _add_pipeline(
    tokenizer: Tokenizer, algorithm: TokenizerAlgorithm, lowercase: bool
) -> Tokenizer:
    """Give a tokenizer the normaliser, the cutting into words and the decoder of an algorithm."""
    if algorithm is TokenizerAlgorithm.wordpiece:
        bert = normalizers.BertNormalizer(
            clean_text=True, handle_chinese_chars=True, strip_accents=False, lowercase=False
        )
        folding = _fold(normalizers.NFD(), normalizers.NFC())
        tokenizer.normalizer = normalizers.Sequence([*folding, bert]) if lowercase else bert
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        tokenizer.decoder = decoders.WordPiece(prefix=_PREFIX)
    elif algorithm is TokenizerAlgorithm.bpe:
        folding = _fold(normalizers.NFD(), normalizers.NFC())
        tokenizer.normalizer = normalizers.Sequence(folding) if lowercase else normalizers.NFC()
        bytes_only = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([_BPE_WORDS, bytes_only])
        tokenizer.decoder = decoders.ByteLevel()
    else:
        folding = _fold(normalizers.NFKD(), normalizers.NFKC())
        tokenizer.normalizer = normalizers.Sequence(folding) if lowercase else normalizers.NFKC()
        # The special tokens are pieces as well: a bracket by itself keeps text from spelling them.
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Metaspace(), pre_tokenizers.Split("[", "isolated")]
        )
        tokenizer.decoder = decoders.Metaspace()
    return tokenizer


def _fold(
    decompose: normalizers.Normalizer, compose: normalizers.Normalizer
) -> list[normalizers.Normalizer]:
    """Return what folds case and accents; composing comes last, or Hangul would stay in pieces."""
    return [decompose, normalizers.Lowercase(), normalizers.Replace(_ACCENTS, ""), compose]


def _cut_words(words: Mapping[str, int]) -> dict[str, int]:
    """Return the words of which none is longer than WordPiece takes, and how often each occurs."""
    counts: Counter[str] = Counter()
    for word, count in words.items():
        for part, _ in _CUT_WORDS.pre_tokenize_str(word):
            counts[part] += count
    return dict(counts)


def _leave_out_characters(words: Mapping[str, int], config: TrainTokenizerConfig) -> dict[str, int]:
    """Return the words without those that hold characters for which the vocabulary has no room."""
    entries: dict[str, set[str]] = {}  # of each character: itself, and inside a word with prefix
    counts: Counter[str] = Counter()
    is_wordpiece = config.algorithm is TokenizerAlgorithm.wordpiece
    for word, count in words.items():
        for place, character in enumerate(word):
            counts[character] += count
            prefix = _PREFIX if place and is_wordpiece else ""
            entries.setdefault(character, {character}).add(prefix + character)
    room = _MOST_CHARACTERS * config.vocab_size
    kept: set[str] = set()
    for character in sorted(counts, key=lambda character: (-counts[character], character)):
        room -= len(entries[character])
        if room < 0:
            break
        kept.add(character)
    left_out = {character for character in counts if character not in kept}
    if not left_out:
        return dict(words)
    logger.warning(
        "%s of %s characters, %.3g %% of the text, get no entry and become [UNK], since characters "
        "may take half of the vocabulary: raise vocab_size, or take algorithm=bpe, which knows all",
        f"{len(left_out):,}",
        f"{len(counts):,}",
        100 * sum(counts[character] for character in left_out) / counts.total(),
    )
    return {word: count for word, count in words.items() if left_out.isdisjoint(word)}


def _train_wordpiece(words: Mapping[str, int], config: TrainTokenizerConfig) -> models.Model:
    inner = sorted({_PREFIX + character for word in words for character in word[1:]})
    trainer = trainers.WordPieceTrainer(
        vocab_size=config.vocab_size,
        min_frequency=config.min_frequency,
        # Listed here, the characters inside words are numbered as they are listed.
        special_tokens=[*SPECIAL_TOKENS, *inner],
        continuing_subword_prefix=_PREFIX,
        show_progress=False,
    )
    learner = _feed(Tokenizer(models.WordPiece(unk_token=_UNKNOWN)), trainer, words)
    return models.WordPiece(
        vocab=learner.get_vocab(), unk_token=_UNKNOWN, continuing_subword_prefix=_PREFIX
    )


def _train_bpe(words: Mapping[str, int], config: TrainTokenizerConfig) -> models.Model:
    trainer = trainers.BpeTrainer(
        vocab_size=config.vocab_size,
        min_frequency=config.min_frequency,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    model: models.Model = _feed(Tokenizer(models.BPE()), trainer, words).model
    return model


def _train_unigram(words: Mapping[str, int], config: TrainTokenizerConfig) -> models.Model:
    trainer = trainers.UnigramTrainer(
        vocab_size=config.vocab_size,
        special_tokens=list(SPECIAL_TOKENS),
        unk_token=_UNKNOWN,
        show_progress=False,
    )
    learner = _feed(Tokenizer(models.Unigram()), trainer, words)
    pieces = json.loads(learner.to_str())["model"]["vocab"][len(SPECIAL_TOKENS) :]
    special = [(token, 0.0) for token in SPECIAL_TOKENS]
    return models.Unigram(special + _settle_scores(pieces), unk_id=SPECIAL_TOKENS.index(_UNKNOWN))


def _settle_scores(pieces: Sequence[tuple[str, float]]) -> list[tuple[str, float]]:
    """Sort pieces by their scores, without what differs from one training to the next."""
    lowest = min((score for _, score in pieces), default=0.0)
    # The library brings back pruned characters with scores that rise in the order of a hash table.
    brought_back = lowest + _PENALTY_STEP * sum(len(piece) == 1 for piece, _ in pieces)
    settled = [
        (piece, round(lowest if len(piece) == 1 and score < brought_back else score, _SCORE_DIGITS))
        for piece, score in pieces
    ]
    return sorted(settled, key=lambda item: (-item[1], item[0]))


_TRAINERS = {
    TokenizerAlgorithm.wordpiece: _train_wordpiece,
    TokenizerAlgorithm.bpe: _train_bpe,
    TokenizerAlgorithm.unigram: _train_unigram,
}


def _feed(tokenizer: Tokenizer, trainer: trainers.Trainer, words: Mapping[str, int]) -> Tokenizer:
    """Train on words, each as often as it occurs: a trainer takes text and no counts."""
    tokenizer.pre_tokenizer = pre_tokenizers.CharDelimiterSplit(_END_OF_WORD)
    call_interruptibly(lambda: tokenizer.train_from_iterator(_iter_word_runs(words), trainer))
    return tokenizer


def _iter_word_runs(words: Mapping[str, int]) -> Iterator[str]:
    for word, count in sorted(words.items()):
        for start in range(0, len(word), _MOST_WORD_CHARACTERS):
            part = word[start : start + _MOST_WORD_CHARACTERS] + _END_OF_WORD
            at_once = math.ceil(_FED_CHARACTERS / len(part))
            for done in range(0, count, at_once):
                yield part * min(at_once, count - done)


@dataclass(frozen=True)
class TokenRates:
    """How a tokenizer cuts some texts.

    Attributes:
        tokens_per_word: words being what stands between spaces.
        characters_per_token: NaN where there are no tokens.
        unknown_share: tokens that are [UNK], of all.
    """

    tokens_per_word: float
    characters_per_token: float
    unknown_share: float


def measure_tokenizer(tokenizer: TextTokenizer, texts: Sequence[str]) -> TokenRates:
    """Return the rates over all texts together."""
    encoded = tokenizer.encode(texts)
    num_tokens = sum(len(ids) for ids in encoded)
    num_unknown = sum(map(tokenizer.special.count_unknown, encoded))
    num_words = sum(len(text.split()) for text in texts)
    return TokenRates(
        num_tokens / num_words if num_words else math.nan,
        sum(map(len, texts)) / num_tokens if num_tokens else math.nan,
        num_unknown / num_tokens if num_tokens else math.nan,
    )
