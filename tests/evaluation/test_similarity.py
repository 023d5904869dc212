"""Ranking and its score, against scikit-learn's and numpy's own."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import ndcg_score

from neobert_train.errors import InputError
from neobert_train.evaluation.similarity import (
    RetrievalTask,
    SimilarityTask,
    compute_ndcg,
    rank_nearest,
)


@given(
    st.lists(st.tuples(st.integers(0, 3), st.floats(-1, 1)), min_size=12, max_size=40),
)
@settings(max_examples=60, deadline=None)
def test_ndcg_is_scikit_learns(documents):
    gains = np.array([gain for gain, _ in documents], float)
    # Scores that differ, since scikit-learn averages over ties.
    scores = np.array([score for _, score in documents]).round(3) + np.arange(len(gains)) * 1e-6
    relevance = {place: gain for place, gain in enumerate(gains) if gain > 0}
    if not relevance:
        return
    ranking = np.argsort(-scores)[:10]
    expected = ndcg_score(gains[None], scores[None], k=10)
    assert compute_ndcg(ranking, relevance) == pytest.approx(expected)


def test_the_nearest_are_those_with_the_largest_products(monkeypatch):
    monkeypatch.setattr("neobert_train.evaluation.similarity._SCORES_AT_ONCE", 90)
    rng = np.random.default_rng(0)
    queries, documents = rng.normal(size=(7, 5)), rng.normal(size=(30, 5))
    found = rank_nearest(queries, documents, 4)
    for query, row in zip(queries, found, strict=True):
        assert row.tolist() == sorted(range(30), key=lambda d: -float(query @ documents[d]))[:4]


def write_retrieval(folder, qrels="q,a,1\n"):
    (folder / "retrieval").mkdir()
    (folder / "retrieval/corpus.csv").write_text("id,title,text\na,A title,a text\nb,,another\n")
    (folder / "retrieval/queries.csv").write_text("id,text\nq,what\nr,who\n")
    (folder / "retrieval/qrels.csv").write_text(f"query-id,corpus-id,score\n{qrels}")
    return folder


def test_queries_without_a_relevant_document_do_not_count(tmp_path):
    task = RetrievalTask("retrieval", write_retrieval(tmp_path, "q,a,1\nr,b,0\n"), 64, {})
    assert len(task.labels) == 1
    assert task.list_settings()[0]["prompts"] == {"query": "", "document": ""}


@pytest.mark.parametrize(
    ("qrels", "message"),
    [
        ("x,a,1\n", r"qrels.csv, row 1: queries has no x"),
        ("q,a,1\nq,x,1\n", r"qrels.csv, row 2: corpus has no x"),
        ("q,a,0\n", r"no document is relevant"),
        ("q,a,nan\n", r"row 1: score is None and no finite number"),
    ],
)
def test_judgements_that_do_not_fit_are_refused(tmp_path, qrels, message):
    with pytest.raises(InputError, match=message):
        RetrievalTask("retrieval", write_retrieval(tmp_path, qrels), 64, {})


def test_pairs_are_read_from_one_file_and_other_pairs_are_another_task(tmp_path):
    (tmp_path / "sts.csv").write_text("text_a,text_b,score\na,b,1\nc,d,2.5\n")
    task = SimilarityTask("sts", tmp_path, 64)
    assert task.labels.tolist() == [1.0, 2.5]
    (tmp_path / "sts.csv").write_text("text_a,text_b,score\na,b,1\nc,d,2\n")
    assert SimilarityTask("sts", tmp_path, 64).digest != task.digest
    with pytest.raises(InputError, match=r"neither .*pairs.csv nor .*test.csv"):
        SimilarityTask("sts/pairs", tmp_path, 64)
