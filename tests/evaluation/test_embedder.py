"""Vectors of texts, against a model that sees one text at a time."""

import numpy as np
import pytest
import torch
from sentence_transformers.sentence_transformer.modules import Pooling
from transformers import AutoModel, AutoTokenizer

from neobert_train.evaluation.candidates import load_candidate
from neobert_train.evaluation.conditions import Conditions
from neobert_train.evaluation.embedder import embed_texts, load_embedder, normalise
from support.architectures import write_folder

CONDITIONS = Conditions(torch.device("cpu"), bf16=False, batch_tokens=100)


@pytest.fixture(scope="module")
def candidate(tmp_path_factory, tokenizer):
    folder = tmp_path_factory.mktemp("bert")
    write_folder(folder, "bert", tokenizer)
    return load_candidate(str(folder), folder / "exports", trust_remote_code=False)


def test_vectors_are_means_over_the_tokens_of_each_text(candidate):
    network = AutoModel.from_pretrained(candidate.folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(candidate.folder)
    texts = [" ".join(["peace"] * n) for n in (1, 40, 3, 90, 7)]
    model = load_embedder(candidate, 32, CONDITIONS)
    vectors = embed_texts(model, texts, batch_tokens=80, prompt="query: ")
    for text, vector in zip(texts, vectors, strict=True):
        inputs = tokenizer("query: " + text, truncation=True, max_length=32, return_tensors="pt")
        with torch.no_grad():
            expected = network(**inputs).last_hidden_state[0].mean(0).numpy()
        np.testing.assert_allclose(vector, expected, atol=1e-5)


def test_a_sentence_transformers_model_keeps_its_pooling(candidate, tmp_path):
    model = load_embedder(candidate, 32, CONDITIONS)
    model[1] = Pooling(model.get_embedding_dimension(), "cls")
    model.save(str(tmp_path / "own"))
    own = load_candidate(str(tmp_path / "own"), tmp_path / "exports", trust_remote_code=False)
    vectors = embed_texts(load_embedder(own, 32, CONDITIONS), ["peace and war"], 64)
    np.testing.assert_allclose(vectors, embed_texts(model, ["peace and war"], 64), atol=1e-6)
    mean = embed_texts(load_embedder(candidate, 32, CONDITIONS), ["peace and war"], 64)
    assert np.abs(vectors - mean).max() > 0.01


def test_a_model_uses_its_own_prompts_for_its_roles(candidate, tmp_path):
    model = load_embedder(candidate, 32, CONDITIONS)
    model.prompts = {"query": "ask: ", "document": "read: "}
    plain = embed_texts(model, ["peace", "ask: peace", "read: peace"], 64, prompt="")
    for role, expected in (("query", plain[1]), ("document", plain[2]), (None, plain[0])):
        (vector,) = embed_texts(model, ["peace"], 64, role=role)
        np.testing.assert_allclose(vector, expected, atol=1e-5)
    (vector,) = embed_texts(model, ["peace"], 64, prompt="read: ", role="query")
    np.testing.assert_allclose(vector, plain[2], atol=1e-5)


def test_vectors_that_are_not_finite_are_an_error(candidate):
    model = load_embedder(candidate, 32, CONDITIONS)
    torch.nn.init.constant_(model[0].auto_model.embeddings.LayerNorm.weight, torch.nan)
    with pytest.raises(FloatingPointError):
        embed_texts(model, ["a"], 64)


def test_normalised_vectors_have_length_one_and_zero_stays():
    vectors = normalise(np.array([[3.0, 4.0], [0.0, 0.0]], np.float32))
    np.testing.assert_allclose(vectors, [[0.6, 0.8], [0, 0]], rtol=1e-6)
