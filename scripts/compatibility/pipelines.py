"""Uses of an exported model: the pipelines of transformers."""

from typing import Any

import torch
import transformers

from compatibility.given import Given, NotOfferedError, Use, compare


def build_pipeline(given: Given, task: str, folder: str, **settings: Any) -> Any:
    """Return a pipeline on the CPU."""
    try:
        transformers.pipelines.check_task(task)
    except KeyError as error:
        raise NotOfferedError("transformers has no such pipeline") from error
    model = str(given.models / folder)
    return transformers.pipeline(
        task, model=model, trust_remote_code=True, device="cpu", **settings
    )


def fill_mask(given: Given) -> None:
    """`fill-mask`, one text and a batch"""
    fill = build_pipeline(given, "fill-mask", "model")
    texts = ["The [MASK] of the union.", "My fellow [MASK], the state of our union is strong."]
    tokenizer, model = given.load_tokenizer(), given.load()
    for text, guesses in zip(texts, fill(texts, batch_size=2), strict=True):
        inputs = tokenizer(text, return_tensors="pt")
        masked = inputs["input_ids"] == tokenizer.mask_token_id
        best = model(**inputs).logits[masked][0].softmax(-1).topk(5)
        assert [guess["token"] for guess in guesses] == best.indices.tolist()
        compare(torch.tensor([guess["score"] for guess in guesses]), best.values)
    assert fill(texts[0])[0]["token"] == fill(texts)[0][0]["token"]


def extract_features(given: Given) -> None:
    """`feature-extraction`"""
    found = build_pipeline(given, "feature-extraction", "model")(given.texts)
    for row, features in enumerate(found):
        kept = given.expected["mask"][row].bool()
        compare(torch.tensor(features)[0], given.expected["hidden"][row][kept])


def classify_text(given: Given) -> None:
    """`text-classification`"""
    classify = build_pipeline(given, "text-classification", "sequence")
    scores = given.expected["sequence"].softmax(-1)
    for row, guess in enumerate(classify(given.texts)):
        index = classify.model.config.label2id[guess["label"]]
        compare(torch.tensor(guess["score"]), scores[row, index])
        assert index == int(scores[row].argmax())


def classify_tokens(given: Given) -> None:
    """`token-classification`, also joined to words"""
    classify = build_pipeline(given, "token-classification", "token", ignore_labels=[])
    found = torch.tensor([guess["score"] for guess in classify(given.texts[0])])
    kept = given.expected["mask"][0].bool()
    compare(found, given.expected["token"][0][kept].softmax(-1).amax(-1)[1:-1])
    words = classify(given.texts[0], aggregation_strategy="first")
    assert all(given.texts[0][word["start"] : word["end"]] for word in words)


def answer_questions(given: Given) -> None:
    """`question-answering`"""
    answer = build_pipeline(given, "question-answering", "question")
    found = answer(question="Who speaks?", context=given.texts[-1])
    assert given.texts[-1][found["start"] : found["end"]] == found["answer"] != ""


def classify_unseen(given: Given) -> None:
    """`zero-shot-classification`"""
    classify = build_pipeline(given, "zero-shot-classification", "sequence")
    found = classify(given.texts[0], candidate_labels=["peace", "war", "trade"])
    assert abs(sum(found["scores"]) - 1) < 1e-4
    tokenizer, model = given.load_tokenizer(), given.load("SequenceClassification", "sequence")
    pairs = [(given.texts[0], f"This example is {label}.") for label in found["labels"]]
    entailment = model.config.label2id["entailment"]
    logits = model(**tokenizer(pairs, padding=True, return_tensors="pt")).logits[:, entailment]
    compare(torch.tensor(found["scores"]), logits.softmax(-1))


USES: list[Use] = [
    fill_mask,
    extract_features,
    classify_text,
    classify_tokens,
    answer_questions,
    classify_unseen,
]
