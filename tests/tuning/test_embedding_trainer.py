"""The cached loss has the gradients of the plain one, in float64 and in bf16, with prompts and without."""

import copy

import pytest
import torch
import torch.nn.functional as F
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

from neobert_train.config.schema import Precision
from neobert_train.models.exported import open_exported
from neobert_train.tuning.embedder_folder import EmbedderFolder
from neobert_train.tuning.embedding_data import load_sets
from neobert_train.tuning.embedding_model import build_model
from neobert_train.tuning.embedding_trainer import EmbeddingTrainer, count_steps, list_prompts

PROMPTS = ('query_prompt="search for: "', 'document_prompt="a passage: "')


def build_trainer(train, folder, output, *overrides, precision=Precision.fp32):
    """A trainer over the pairs, and the inputs of its first batch."""
    config = train.compose(folder, output, "temperature=0.07", *overrides)
    sets = load_sets(config, lambda text: None)
    with open_exported(config.model, "model") as exported:
        model = build_model(exported, config, "model")
    trainer = EmbeddingTrainer(
        model, config, sets, EmbedderFolder(config.output), precision, torch.device("cpu")
    )
    return trainer, next(iter(trainer.get_train_dataloader()))


def compute_gradients(model, loss):
    model.zero_grad()
    loss.backward()
    return {
        name: weight.grad.clone()
        for name, weight in model.named_parameters()
        if weight.grad is not None
    }


def compute_reference(model, features, temperature):
    """InfoNCE written out: every positive and negative of the batch is a candidate for every anchor."""
    anchors, *candidates = (
        F.normalize(model(dict(feature))["sentence_embedding"], dim=-1) for feature in features
    )
    scores = anchors @ torch.cat(candidates).T / temperature
    return F.cross_entropy(scores, torch.arange(len(anchors)))


@pytest.mark.parametrize(
    "overrides",
    [(), PROMPTS, (*PROMPTS, "pool_prompts=false"), ("pooling=cls",), ("mini_batch_size=1",)],
    ids=["plain", "prompts", "prompts left out of the mean", "cls", "one at a time"],
)
def test_gradients_of_the_cached_loss_are_those_of_infonce_in_float64(
    train, neobert, tmp_path, overrides
):
    trainer, inputs = build_trainer(train, neobert, tmp_path / "out", *overrides)
    model = trainer.model.double().eval()
    features, _ = trainer.collect_features(inputs)
    assert len(features) == 3
    cached = compute_gradients(model, trainer.loss(copy.deepcopy(features), None))
    plain = compute_gradients(
        model, MultipleNegativesRankingLoss(model, scale=1 / 0.07)(copy.deepcopy(features), None)
    )
    reference = compute_gradients(model, compute_reference(model, copy.deepcopy(features), 0.07))
    assert cached.keys() == plain.keys() == reference.keys()
    for name, expected in reference.items():
        assert expected.abs().max() > 0, name
        for found in (cached[name], plain[name]):
            assert (found - expected).norm() <= 1e-10 * expected.norm(), name


def test_gradients_in_bf16_are_near_those_in_fp32(train, neobert, tmp_path):
    gradients = {}
    for precision in Precision.fp32, Precision.bf16:
        trainer, inputs = build_trainer(
            train, neobert, tmp_path / precision.value, precision=precision
        )
        trainer._prepare_for_training(1, None, None)
        trainer.model.zero_grad()
        trainer.current_gradient_accumulation_steps = 1
        trainer.training_step(trainer.model_wrapped, inputs)
        gradients[precision] = torch.cat(
            [weight.grad.flatten() for weight in trainer.model.parameters()]
        )
        assert all(weight.dtype is torch.float32 for weight in trainer.model.parameters())
    exact, rough = gradients.values()
    assert F.cosine_similarity(exact, rough, dim=0) > 0.99
    assert rough.norm() == pytest.approx(float(exact.norm()), rel=0.1)
    assert not torch.equal(exact, rough)


def test_prompts_stand_before_the_texts_that_they_are_for(train, neobert, tmp_path):
    config = train.compose(neobert, tmp_path, *PROMPTS, 'anchor_prompt="ask: "')
    sets = load_sets(config, lambda text: None)
    assert list_prompts(config, sets) == {
        "pairs": {"anchor": "ask: ", "positive": "a passage: ", "negative_1": "a passage: "}
    }
    _, inputs = build_trainer(train, neobert, tmp_path / "out", *PROMPTS)
    tokenizer = build_trainer(train, neobert, tmp_path / "out2")[0].processing_class
    for column, prompt in (
        ("anchor", "search for :"), ("positive", "a passage :"), ("negative_1", "a passage :"),
    ):  # fmt: skip
        text = tokenizer.decode(inputs[f"{column}_input_ids"][0], skip_special_tokens=True)
        assert text.startswith(prompt)


def test_steps_are_those_of_whole_batches(train, neobert, tmp_path):
    config = train.compose(neobert, tmp_path, "batch_size=20", "epochs=2")
    sets = load_sets(config, lambda text: None)
    assert count_steps(config, sets) == 4  # 48 rows are two batches of 20, and 8 that are left out
    config.max_steps = 7
    assert count_steps(config, sets) == 7
