"""Three probes that need no download, from the State of the Union addresses that ship with the package.

An address has no paragraphs in the shipped file, so some are cut from its middle at the ends of sentences.
They are always the same. Every third address is a test one, with all of its paragraphs:

- `party`: which party the speaker is of. A president gave several addresses, so that what is learnt
  may be his manner or that of his time. With other presidents in the test the probe would be pure and
  empty: fourteen presidents are too few, and a bag of words then scores below chance.
- `decade`: which of seven decades the address is of, from 1951 to 2020.
- `next_paragraph`: which of all test paragraphs follows a given one.
"""

import functools
import re
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq

from neobert_train.data.sources import EMBEDDED_TEXTS
from neobert_train.evaluation.metrics import Answers, Scoring, compute_score
from neobert_train.evaluation.probes import Floats, fit_classifier, standardise

# Of every address, at most so many paragraphs in a row around its middle.
PARAGRAPHS_OF_ADDRESS = 20
# A paragraph ends with the sentence with which it has this many.
LEAST_CHARACTERS = 400
FIRST_DECADE, LAST_DECADE = 195, 201
_SENTENCE_END = re.compile(r'(?<=[.!?]) +(?=["“A-Z(])')


class Party(Enum):
    """The two parties that presidents since 1945 were of."""

    democratic = 0
    republican = 1


@dataclass(frozen=True)
class President:
    """A fact of public record: the party of a president, and the years between which he was in office."""

    party: Party
    first_year: int
    last_year: int


# By the name in the titles of the addresses.
PRESIDENTS = {
    "harry_s_truman": President(Party.democratic, 1945, 1953),
    "dwight_d_eisenhower": President(Party.republican, 1953, 1961),
    "john_f_kennedy": President(Party.democratic, 1961, 1963),
    "lyndon_b_johnson": President(Party.democratic, 1963, 1969),
    "richard_nixon": President(Party.republican, 1969, 1974),
    "gerald_r_ford": President(Party.republican, 1974, 1977),
    "jimmy_carter": President(Party.democratic, 1977, 1981),
    "ronald_reagan": President(Party.republican, 1981, 1989),
    "george_bush": President(Party.republican, 1989, 1993),
    "william_j_clinton": President(Party.democratic, 1993, 2001),
    "george_w_bush": President(Party.republican, 2001, 2009),
    "barack_obama": President(Party.democratic, 2009, 2017),
    "donald_j_trump": President(Party.republican, 2017, 2021),
    "joseph_r_biden": President(Party.democratic, 2021, 2025),
}


@dataclass(frozen=True)
class Address:
    """An address: its year, the name of its speaker in `PRESIDENTS`, and its paragraphs in order."""

    year: int
    president: str
    paragraphs: tuple[str, ...]


@dataclass(frozen=True)
class Paragraphs:
    """The paragraphs of all addresses, and what is known of each; arrays are [n].

    Attributes:
        texts: of them, in the order of the addresses.
        address: int64, the index of its address; the paragraphs of one follow each other.
        year: int64, of the address.
        party: int64, value of the speaker's `Party`.
    """

    texts: tuple[str, ...]
    address: npt.NDArray[np.int64]
    year: npt.NDArray[np.int64]
    party: npt.NDArray[np.int64]

    @property
    def is_test(self) -> npt.NDArray[np.bool_]:
        """[n]: whether the paragraph is of a test address, every third."""
        return np.asarray(self.address % 3 == 1)


@dataclass(frozen=True)
class Probe:
    """One of the three.

    Attributes:
        scoring: of its answers.
        answer: gives the answers for its test paragraphs from features of all paragraphs, [n, d].
        list_labels: gives what they are scored against.
        find_chance: gives the score without any knowledge of the texts.
    """

    scoring: Scoring
    answer: Callable[[Floats], Answers]
    list_labels: Callable[[], Answers]
    find_chance: Callable[[], float]


@functools.cache
def read_addresses() -> tuple[Address, ...]:
    """Return the shipped addresses by year, with the paragraphs that the probes use."""
    rows = pq.read_table(EMBEDDED_TEXTS).to_pylist()
    addresses = []
    for row in rows:
        _, name_and_letter = row["title"].split("_", 1)
        paragraphs = split_paragraphs(row["content"])
        first = max(0, (len(paragraphs) - PARAGRAPHS_OF_ADDRESS) // 2)
        chosen = paragraphs[first : first + PARAGRAPHS_OF_ADDRESS]
        addresses.append(Address(row["year"], name_and_letter.rsplit("_", 1)[0], tuple(chosen)))
    return tuple(addresses)


def split_paragraphs(text: str) -> list[str]:
    """Return a text as paragraphs of whole sentences; what is left at its end is no paragraph."""
    paragraphs: list[str] = []
    sentences: list[str] = []
    for sentence in _SENTENCE_END.split(text.strip()):
        sentences.append(sentence)
        paragraph = " ".join(sentences)
        if len(paragraph) >= LEAST_CHARACTERS:
            paragraphs.append(paragraph)
            sentences = []
    return paragraphs


@functools.cache
def list_paragraphs() -> Paragraphs:
    """Return the paragraphs of all addresses; features of a probe are in their order."""
    addresses = read_addresses()
    counts = [len(address.paragraphs) for address in addresses]
    parties = [PRESIDENTS[address.president].party.value for address in addresses]
    return Paragraphs(
        tuple(text for address in addresses for text in address.paragraphs),
        np.repeat(np.arange(len(addresses)), counts),
        np.repeat([address.year for address in addresses], counts),
        np.repeat(parties, counts),
    )


def score_probe(name: str, features: Floats) -> float:
    """Return the score of a probe of `PROBES`.

    Args:
        name: of the probe.
        features: [n, d], of the texts of `list_paragraphs`, in their order.

    Returns:
        Share of the test paragraphs that are classified rightly, or of `next_paragraph` the mean
        reciprocal rank.

    Raises:
        InputError: a feature is not finite.
    """
    probe = PROBES[name]
    return compute_score(probe.scoring, probe.answer(features), probe.list_labels())


def score_bag_of_words(name: str) -> float:
    """Return the score of a probe with TF-IDF vectors, fitted to the training paragraphs, as features."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    paragraphs = list_paragraphs()
    training = [
        text for text, held in zip(paragraphs.texts, paragraphs.is_test, strict=True) if not held
    ]
    vectorizer = TfidfVectorizer(sublinear_tf=True, min_df=2).fit(training)
    features = vectorizer.transform(paragraphs.texts).toarray()
    # Its weights are those that words have by themselves, which standardising would undo.
    if name == "next_paragraph":
        return float(_rank_next(features).mean())
    return score_probe(name, features)


def find_decades(years: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return the decade of each year by number: 195 is 1951 to 1960."""
    return (years - 1) // 10


def _answer_party(features: Floats) -> Answers:
    paragraphs = list_paragraphs()
    return _classify(features, paragraphs.party, paragraphs.is_test, ~paragraphs.is_test)


def _list_parties() -> Answers:
    paragraphs = list_paragraphs()
    return paragraphs.party[paragraphs.is_test]


def _answer_decade(features: Floats) -> Answers:
    return _classify(features, *_divide_decades())


def _list_decades() -> Answers:
    decades, is_test, _ = _divide_decades()
    return decades[is_test]


def _divide_decades() -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """Return the decade of every paragraph, and which are for the test and the training; [n] each.

    The addresses of 1950 and 2021, alone in their decades, are for neither.
    """
    paragraphs = list_paragraphs()
    decades = find_decades(paragraphs.year)
    is_used = (decades >= FIRST_DECADE) & (decades <= LAST_DECADE)
    return decades, is_used & paragraphs.is_test, is_used & ~paragraphs.is_test


def _classify(
    features: Floats,
    labels: npt.NDArray[np.int64],
    is_test: npt.NDArray[np.bool_],
    is_training: npt.NDArray[np.bool_],
) -> Answers:
    return fit_classifier(features[is_training], labels[is_training], features[is_test])


def _answer_next(features: Floats) -> Answers:
    """Return reciprocal ranks by the cosine of features that are standardised.

    Hidden states share a large mean and a few large dimensions, which would decide every cosine.
    """
    _, standard = standardise(features[~list_paragraphs().is_test], features)
    return _rank_next(standard)


def _rank_next(features: Floats) -> Answers:
    """Return the reciprocal rank of the next test paragraph among all others, by cosine."""
    queries, candidates = _list_queries()
    norms = np.linalg.norm(features, axis=1, keepdims=True)
    unit = features / np.where(norms > 0, norms, 1.0)
    similarities = unit[queries] @ unit[candidates].T
    similarities[queries[:, None] == candidates] = -np.inf
    answers = similarities[np.arange(len(queries)), np.searchsorted(candidates, queries + 1)]
    # One that is as similar counts as better, so that features that tell nothing apart score least.
    ranks = (similarities >= answers[:, None]).sum(axis=1)
    return np.asarray(1 / ranks)


def _list_no_labels() -> Answers:
    return np.zeros(len(_list_queries()[0]))


def _list_queries() -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return the test paragraphs that another of their address follows, and all test paragraphs."""
    paragraphs = list_paragraphs()
    candidates = np.flatnonzero(paragraphs.is_test)
    follows = np.append(paragraphs.address[1:] == paragraphs.address[:-1], False)
    return candidates[follows[candidates]], candidates


def _find_largest_share(labels: npt.NDArray[np.int64]) -> float:
    """Return the share of the most frequent class: the best score of one answer for all."""
    return float(np.unique(labels, return_counts=True)[1].max() / len(labels))


def _find_party_chance() -> float:
    return _find_largest_share(_list_parties())


def _find_decade_chance() -> float:
    return _find_largest_share(_list_decades())


def _find_next_chance() -> float:
    """Return the mean reciprocal rank of a random order."""
    _, candidates = _list_queries()
    return float(np.mean(1 / np.arange(1, len(candidates))))


PROBES = {
    "party": Probe(Scoring(("accuracy",)), _answer_party, _list_parties, _find_party_chance),
    "decade": Probe(Scoring(("accuracy",)), _answer_decade, _list_decades, _find_decade_chance),
    "next_paragraph": Probe(Scoring(("mean",)), _answer_next, _list_no_labels, _find_next_chance),
}
