"""Uses of an exported model: sentence-transformers."""

from typing import Any

import torch
from torch import Tensor

from compatibility.given import ONNX_TOLERANCE, Given, NotOfferedError, Use, compare, want

PACKAGE = "sentence_transformers"
QUESTIONS = ["who speaks", "what is peace", "where is the union"] * 4


def load_embedder(folder: Any, **settings: Any) -> Any:
    """Return a `SentenceTransformer` on the CPU."""
    build = want(PACKAGE, "SentenceTransformer")
    return build(str(folder), trust_remote_code=True, device="cpu", **settings)


def average(given: Given) -> Tensor:
    """Return the mean hidden state of each text."""
    return given.expected["hidden"].sum(1) / given.expected["mask"].sum(1, keepdim=True)


def embed(given: Given) -> None:
    """`SentenceTransformer(folder)` of a plain export: the mean over tokens"""
    compare(torch.tensor(load_embedder(given.models / "model").encode(given.texts)), average(given))


def embed_by_pooling(given: Given) -> None:
    """The same of `export pooling=mean` and `pooling=cls`, cut at the context"""
    for name, expected in (("mean", average(given)), ("cls", given.expected["hidden"][:, 0])):
        model = load_embedder(given.models / name)
        assert model.max_seq_length == 512
        compare(torch.tensor(model.encode(given.texts)), expected)
        assert torch.tensor(model.encode("word " * 2000)).isfinite().all()


def embed_in_processes(given: Given) -> None:
    """`start_multi_process_pool`: two processes embed"""
    model = load_embedder(given.models / "mean")
    pool = model.start_multi_process_pool(["cpu", "cpu"])
    encode = getattr(model, "encode_multi_process", None)
    found = encode(given.texts, pool) if encode else model.encode(given.texts, pool=pool)
    model.stop_multi_process_pool(pool)
    compare(torch.tensor(found), average(given))


def save_embedder(given: Given) -> None:
    """`SentenceTransformer.save_pretrained`, loaded again"""
    load_embedder(given.models / "cls").save_pretrained(str(given.scratch / "saved"))
    found = load_embedder(given.scratch / "saved").encode(given.texts)
    compare(torch.tensor(found), given.expected["hidden"][:, 0])


def train_embedder(given: Given) -> None:
    """`SentenceTransformerTrainer` with `MultipleNegativesRankingLoss`: 4 steps, saved"""
    model = load_embedder(given.models / "mean")
    columns = {"anchor": QUESTIONS, "positive": given.texts * 4}
    arguments = want(PACKAGE, "SentenceTransformerTrainingArguments")(
        str(given.scratch / "trainer"), max_steps=4, per_device_train_batch_size=3, report_to=[],
        learning_rate=1e-3, disable_tqdm=True,
    )  # fmt: skip
    want(PACKAGE, "SentenceTransformerTrainer")(
        model, arguments, train_dataset=want("datasets", "Dataset").from_dict(columns),
        loss=want(f"{PACKAGE}.losses", "MultipleNegativesRankingLoss")(model),
    ).train()  # fmt: skip
    vectors = torch.tensor(model.encode(given.texts))
    assert not torch.allclose(vectors, average(given), atol=1e-4)
    model.save_pretrained(str(given.scratch / "saved"))
    compare(torch.tensor(load_embedder(given.scratch / "saved").encode(given.texts)), vectors)


def rank_pairs(given: Given) -> None:
    """`CrossEncoder`: a fine-tuned classifier of pairs, saved and loaded again; a new head"""
    build = want(PACKAGE, "CrossEncoder")
    pairs = [(given.texts[0], text) for text in given.texts]
    inputs = given.load_tokenizer()(pairs, padding=True, return_tensors="pt")
    expected = given.load("SequenceClassification", "sequence")(**inputs).logits
    model = build(str(given.models / "sequence"), trust_remote_code=True, device="cpu")
    compare(torch.tensor(model.predict(pairs)), expected)
    model.save_pretrained(str(given.scratch / "saved"))
    again = build(str(given.scratch / "saved"), trust_remote_code=True, device="cpu")
    compare(torch.tensor(again.predict(pairs)), expected)
    fresh = build(str(given.models / "model"), num_labels=1, trust_remote_code=True, device="cpu")
    assert len(fresh.rank(given.texts[0], given.texts)) == 3


def embed_sparsely(given: Given) -> None:
    """`SparseEncoder`: SPLADE on the vocabulary"""
    model = want(PACKAGE, "SparseEncoder")(
        str(given.models / "model"), trust_remote_code=True, device="cpu"
    )
    scores = torch.log1p(given.expected["logits"].relu())
    expected = scores.masked_fill(~given.expected["mask"].bool()[..., None], 0).amax(1)
    compare(model.encode(given.texts, convert_to_sparse_tensor=False), expected)


def embed_by_onnx(given: Given) -> None:
    """`SentenceTransformer(backend="onnx")` of `export format=onnx pooling=mean`"""
    try:
        want("optimum.onnxruntime", "ORTModelForFeatureExtraction")
    except NotOfferedError as error:
        raise NotOfferedError(
            "it needs optimum-onnx, of which the newest (0.1.0) needs transformers below 4.58"
        ) from error
    model = load_embedder(given.models / "mean", backend="onnx")
    compare(torch.tensor(model.encode(given.texts)), average(given), ONNX_TOLERANCE)


USES: list[Use] = [
    embed,
    embed_by_pooling,
    embed_in_processes,
    save_embedder,
    train_embedder,
    rank_pairs,
    embed_sparsely,
    embed_by_onnx,
]
