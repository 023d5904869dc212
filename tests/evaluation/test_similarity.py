"""Ranking and its score, against scikit-learn's and numpy's own."""

import itertools

import numpy as np
import pytest
import pytrec_eval
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr
from sklearn.metrics import ndcg_score

from neobert_train.errors import InputError
from neobert_train.evaluation.candidates import load_candidate
from neobert_train.evaluation.conditions import Conditions
from neobert_train.evaluation.similarity import (
    RetrievalTask,
    SimilarityTask,
    compute_ndcg,
    rank_nearest,
)
from support.architectures import write_folder

CONDITIONS = Conditions(torch.device("cpu"), bf16=False, batch_tokens=512)


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
    assert task.list_settings()[0]["prompts"] == {"query": None, "document": None}


@pytest.mark.parametrize(
    ("qrels", "message"),
    [
        ("x,a,1\n", r"qrels.csv, row 1: queries has no x"),
        ("q,a,1\nq,x,1\n", r"qrels.csv, row 2: corpus has no x"),
        ("q,a,0\n", r"no document is relevant"),
        ("q,a,nan\n", r"row 1: score is 'nan' and no finite number"),
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


@pytest.fixture(scope="module")
def candidate(tmp_path_factory, tokenizer):
    folder = tmp_path_factory.mktemp("bert")
    write_folder(folder, "bert", tokenizer)
    return load_candidate(str(folder), folder / "exports", trust_remote_code=False)


def embed_alone(candidate, text):
    """The mean hidden state of a text, in float64."""
    inputs = candidate.load_tokenizer()(text, return_tensors="pt")
    with torch.no_grad():
        states = candidate.load_encoder().eval()(**inputs).last_hidden_state[0]
    return states.double().mean(0).numpy()


def test_likeness_is_the_rank_correlation_of_cosines(candidate, tmp_path):
    words = ["peace", "war", "tax", "law", "army", "navy"]
    rows = [
        (f"{a} and {b}", f"the {b}", i % 4) for i, (a, b) in enumerate(itertools.pairwise(words))
    ]
    text = "".join(f"{a},{b},{score}\n" for a, b, score in rows)
    (tmp_path / "sts.csv").write_text(f"text_a,text_b,score\n{text}")
    task = SimilarityTask("sts", tmp_path, 64)
    found = task.measure(candidate, task.list_settings()[0], 0, CONDITIONS)
    pairs = [(embed_alone(candidate, a), embed_alone(candidate, b)) for a, b, _ in rows]
    cosines = [u @ v / np.linalg.norm(u) / np.linalg.norm(v) for u, v in pairs]
    np.testing.assert_allclose(found.predictions, cosines, atol=1e-5)
    expected = spearmanr(cosines, [score for *_, score in rows]).statistic
    assert found.values["score"] == pytest.approx(expected)


def test_retrieval_is_what_trec_eval_computes(candidate, tmp_path):
    rng = np.random.default_rng(0)
    words = ["peace", "war", "tax", "law", "army", "navy", "trade", "money", "public", "nation"]
    documents = {f"d{i}": " ".join(rng.choice(words, 6)) for i in range(30)}
    queries = {f"q{i}": " ".join(rng.choice(words, 3)) for i in range(8)}
    judged = {
        query: {f"d{d}": int(rng.integers(1, 3)) for d in rng.choice(30, 4, replace=False)}
        for query in queries
    }
    folder = tmp_path / "retrieval"
    folder.mkdir()
    for name, texts in (("corpus", documents), ("queries", queries)):
        lines = "".join(f"{key},{text}\n" for key, text in texts.items())
        (folder / f"{name}.csv").write_text(f"id,text\n{lines}")
    lines = "".join(f"{q}\t{d}\t{g}\n" for q, row in judged.items() for d, g in row.items())
    (folder / "qrels.tsv").write_text(f"query-id\tcorpus-id\tscore\n{lines}")
    task = RetrievalTask("retrieval", tmp_path, 64, {"query": "find: "})
    found = task.measure(candidate, task.list_settings()[0], 0, CONDITIONS)
    vectors = {key: embed_alone(candidate, text) for key, text in documents.items()}
    run = {}
    for query, text in queries.items():
        vector = embed_alone(candidate, f"find: {text}")
        run[query] = {
            key: float(vector @ other / np.linalg.norm(vector) / np.linalg.norm(other))
            for key, other in vectors.items()
        }
    measured = pytrec_eval.RelevanceEvaluator(judged, {"ndcg_cut.10"}).evaluate(run)
    expected = [measured[query]["ndcg_cut_10"] for query in queries]
    np.testing.assert_allclose(found.predictions, expected, atol=1e-6)
    assert found.values["score"] == pytest.approx(np.mean(expected))
