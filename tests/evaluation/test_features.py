"""Vectors of texts, against a model that sees one text at a time."""

import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoTokenizer

from neobert_train.evaluation.features import embed_texts, normalise
from support.architectures import write_folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tokenizer):
    folder = tmp_path_factory.mktemp("bert")
    write_folder(folder, "bert", tokenizer)
    return folder


def test_vectors_are_means_over_the_tokens_of_each_text(folder):
    network = AutoModel.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    texts = [" ".join(["peace"] * n) for n in (1, 40, 3, 90, 7)]
    vectors = embed_texts(network, tokenizer, texts, max_length=32, batch_tokens=80)
    for text, vector in zip(texts, vectors, strict=True):
        inputs = tokenizer(text, truncation=True, max_length=32, return_tensors="pt")
        with torch.no_grad():
            expected = network(**inputs).last_hidden_state[0].mean(0).numpy()
        np.testing.assert_allclose(vector, expected, atol=1e-5)


def test_vectors_that_are_not_finite_are_an_error(folder):
    network = AutoModel.from_pretrained(folder).eval()
    torch.nn.init.constant_(network.embeddings.LayerNorm.weight, torch.nan)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    with pytest.raises(FloatingPointError):
        embed_texts(network, tokenizer, ["a"], 32, 64)


def test_normalised_vectors_have_length_one_and_zero_stays():
    vectors = normalise(np.array([[3.0, 4.0], [0.0, 0.0]], np.float32))
    np.testing.assert_allclose(vectors, [[0.6, 0.8], [0, 0]], rtol=1e-6)
