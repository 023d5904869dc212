"""Tasks on the vectors of texts, which learn nothing: likeness of pairs, and retrieval.

DATA_DIR/sts.csv                      text_a,text_b,score
DATA_DIR/retrieval/corpus.jsonl       id, text (and title)
DATA_DIR/retrieval/queries.jsonl      id, text
DATA_DIR/retrieval/qrels.tsv          query-id, corpus-id, score: what BEIR calls them
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from neobert_train.errors import InputError
from neobert_train.evaluation.candidates import Candidate
from neobert_train.evaluation.cells import Measurement
from neobert_train.evaluation.conditions import Conditions
from neobert_train.evaluation.data_files import (
    find_split,
    read_columns,
)
from neobert_train.evaluation.embedder import embed_texts, load_embedder, normalise
from neobert_train.evaluation.metrics import Scoring, compute_metrics, compute_score
from neobert_train.evaluation.tasks import SCORE
from neobert_train.files import hash_json

# Ranks that nDCG looks at, as BEIR reports it.
DEPTH = 10
PROMPTED = ("query", "document")
# Scores of queries and documents that are held at once.
_SCORES_AT_ONCE = 1 << 26


class SimilarityTask:
    """Spearman's correlation of cosines with given scores, over pairs of texts."""

    def __init__(self, name: str, data_dir: Path, max_length: int) -> None:
        """Read the pairs.

        Raises:
            InputError: a file or column is missing, or a value is no text or number.
        """
        folder = data_dir / name
        files = find_split(folder, "test") or find_split(folder, "validation")
        files = files or find_split(folder.parent, folder.name)
        if not files:
            raise InputError(
                f"there is neither {folder}.csv nor {folder}/test.csv: write text_a,text_b,score there"
            )
        rows = read_columns(files, ["text_a", "text_b", "score"])
        self.name, self.seeds, self._max_length = name, (0,), max_length
        self._texts = [rows.take_texts(column) for column in ("text_a", "text_b")]
        self.labels = np.array(rows.take_numbers("score"))
        self.scoring = Scoring(("spearman",))
        self.digest = hash_json([*self._texts, self.labels.tolist()])

    def list_settings(self) -> list[dict[str, Any]]:
        """Return the one setting of vectors."""
        return [{"max_length": self._max_length}]

    def measure(
        self, candidate: Candidate, settings: dict[str, Any], seed: int, conditions: Conditions
    ) -> Measurement:
        """Return the correlation; predictions are the cosines."""
        model = load_embedder(candidate, settings["max_length"], conditions)
        vectors = [
            normalise(embed_texts(model, part, conditions.batch_tokens)) for part in self._texts
        ]
        cosines = (vectors[0] * vectors[1]).sum(axis=1, dtype=np.float64)
        values = compute_metrics(self.scoring, cosines, self.labels)
        values[SCORE] = compute_score(self.scoring, cosines, self.labels)
        return Measurement(values, cosines.tolist())

    def estimate_flops(self, candidate: Candidate, settings: dict[str, Any]) -> float:
        """Return 2 operations a parameter and token; a text has a token for every four characters."""
        characters = sum(len(text) for part in self._texts for text in part)
        return 2.0 * candidate.num_parameters * characters / 4


class RetrievalTask:
    """nDCG at 10 of the documents that are nearest to each query by the cosine."""

    def __init__(
        self, name: str, data_dir: Path, max_length: int, prompts: Mapping[str, str | None]
    ) -> None:
        """Read queries, documents and judgements.

        Args:
            name: of the task.
            data_dir: holds a folder of that name.
            max_length: tokens after which texts are cut.
            prompts: what is written before texts, by `query` and `document`; None for a model's own.

        Raises:
            InputError: a file or column is missing, or judgements name what is not there.
        """
        folder = data_dir / name
        self.name, self.seeds, self._max_length = name, (0,), max_length
        self._prompts = {kind: prompts.get(kind) for kind in PROMPTED}
        documents = _read_texts(folder, "corpus")
        queries = _read_texts(folder, "queries")
        relevance = _read_judgements(folder, queries, documents)
        judged = [query for query in queries if query in relevance]
        self._documents = list(documents.values())
        self._queries = [queries[query] for query in judged]
        places = {identifier: place for place, identifier in enumerate(documents)}
        self._relevance = [
            {places[document]: gain for document, gain in relevance[query].items()}
            for query in judged
        ]
        self.labels = np.zeros(len(judged))
        self.scoring = Scoring(("mean",))
        self.digest = hash_json(
            [self._documents, self._queries, [[*r.items()] for r in self._relevance]]
        )

    def list_settings(self) -> list[dict[str, Any]]:
        """Return the one setting of vectors."""
        return [{"max_length": self._max_length, "prompts": self._prompts}]

    def measure(
        self, candidate: Candidate, settings: dict[str, Any], seed: int, conditions: Conditions
    ) -> Measurement:
        """Return the mean nDCG; predictions are those of the queries."""
        model = load_embedder(candidate, settings["max_length"], conditions)
        vectors = [
            normalise(embed_texts(model, texts, conditions.batch_tokens, self._prompts[kind], kind))
            for kind, texts in (("query", self._queries), ("document", self._documents))
        ]
        ranking = rank_nearest(vectors[0], vectors[1], DEPTH)
        gains = np.array(
            [compute_ndcg(row, found) for row, found in zip(ranking, self._relevance, strict=True)]
        )
        score = float(gains.mean())
        return Measurement({f"ndcg@{DEPTH}": score, SCORE: score}, gains.tolist())

    def estimate_flops(self, candidate: Candidate, settings: dict[str, Any]) -> float:
        """Return 2 operations a parameter and token; a text has a token for every four characters."""
        characters = sum(len(text) for text in [*self._queries, *self._documents])
        return 2.0 * candidate.num_parameters * characters / 4


def rank_nearest(queries: np.ndarray, documents: np.ndarray, depth: int) -> np.ndarray:
    """Return the numbers of the documents with the largest products with each query.

    Args:
        queries, documents: [q, d] and [n, d] float32.
        depth: how many.

    Returns:
        [q, min(depth, n)] int64, the largest first; of equal ones the first document.
    """
    rows = max(1, _SCORES_AT_ONCE // len(documents))
    found = []
    for first in range(0, len(queries), rows):
        products = queries[first : first + rows] @ documents.T
        found.append(np.argsort(-products, axis=1, kind="stable")[:, :depth])
    return np.concatenate(found)


def compute_ndcg(ranking: Sequence[int] | np.ndarray, relevance: Mapping[int, float]) -> float:
    """Return the normalised discounted cumulative gain of a ranking.

    DCG is the sum of gain / log2(rank + 1), as trec_eval computes it (Järvelin and Kekäläinen 2002).

    Args:
        ranking: documents, the best first.
        relevance: gain of every relevant document, above 0.
    """
    discounts = 1 / np.log2(np.arange(2, len(ranking) + 2))
    gains = np.array([relevance.get(int(document), 0.0) for document in ranking])
    ideal = np.sort(np.array(list(relevance.values())))[::-1][: len(ranking)]
    return float((gains * discounts).sum() / (ideal * discounts[: len(ideal)]).sum())


def _read_texts(folder: Path, name: str) -> dict[str, str]:
    """Return texts by their id, with the title before them where there is one."""
    files = find_split(folder, name)
    if not files:
        raise InputError(f"{folder} has no {name}.jsonl: write id and text of each there")
    # BEIR's files have `_id`.
    rows = read_columns(files, ["text"], ["id", "_id", "title"])
    ids = rows.values.get("id") or rows.values.get("_id")
    if ids is None:
        raise InputError(f"{files[0]} has no column id: write one that qrels can name")
    texts = rows.take_texts("text", may_be_empty=True)
    titles = rows.values.get("title", [""] * len(texts))
    pairs = zip(map(str, ids), titles, texts, strict=True)
    found = {
        identifier: f"{title} {text}".strip() if title else text
        for identifier, title, text in pairs
    }
    if len(found) < len(texts):
        raise InputError(f"{files[0]}: an id stands there twice: give each its own")
    return found


def _read_judgements(
    folder: Path, queries: Mapping[str, str], documents: Mapping[str, str]
) -> dict[str, dict[str, float]]:
    """Return the gains of relevant documents by query."""
    files = find_split(folder, "qrels")
    if not files:
        raise InputError(f"{folder} has no qrels.tsv: write query-id, corpus-id and score there")
    rows = read_columns(files, ["query-id", "corpus-id", "score"])
    gains = rows.take_numbers("score")
    found: dict[str, dict[str, float]] = {}
    named = (map(str, rows.values[column]) for column in ("query-id", "corpus-id"))
    for place, query, document, gain in zip(rows.places, *named, gains, strict=True):
        if query not in queries or document not in documents:
            name, kind = (query, "queries") if query not in queries else (document, "corpus")
            raise InputError(f"{place}: {kind} has no {name}: add it or remove the row")
        if gain > 0:
            found.setdefault(query, {})[document] = gain
    if not found:
        raise InputError(f"{files[0]}: no document is relevant to any query (score above 0)")
    return found
