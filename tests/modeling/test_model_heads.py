"""The masked-LM and the classification head: losses, shapes, errors."""

import numpy as np
import pytest
import torch
from float64_reference import (
    SMALL,
    assert_near,
    build_random_model,
    double_state,
    encode,
    predict,
    random_ids,
    randomise,
)

from neobert_train.modeling.configuration_neobert import NeoBERTConfig
from neobert_train.modeling.heads import NeoBERTForMaskedLM, NeoBERTForSequenceClassification
from neobert_train.modeling.modeling_neobert import NeoBERT

BOUNDS = torch.tensor([0, 6, 7, 12], dtype=torch.int32)


@pytest.fixture(scope="module")
def model():
    return build_random_model()


def build_classifier(num_labels: int, **changes) -> NeoBERTForSequenceClassification:
    config = NeoBERTConfig(**{**SMALL, "num_labels": num_labels, **changes})
    return randomise(NeoBERTForSequenceClassification(config).eval(), seed=2)


def reference_scores(classifier, ids: torch.Tensor) -> torch.Tensor:
    """[CLS] -> dense -> tanh -> classifier; dropout does nothing in eval mode."""
    state = double_state(classifier)
    first = encode(state, classifier.config, ids)[0][0]
    dense = torch.tanh(state["classifier.dense.weight"] @ first + state["classifier.dense.bias"])
    return state["classifier.weight"] @ dense + state["classifier.bias"]


def log_softmax(scores: np.ndarray) -> np.ndarray:
    shifted = scores - scores.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def test_loss_is_the_mean_over_labels_that_are_not_minus_100(model):
    ids, labels = random_ids(2, 8), torch.full((2, 8), -100)
    labels[0, 2], labels[1, 7], labels[1, 3] = 11, 0, 60
    logits = torch.stack([predict(double_state(model), model.config, row) for row in ids])
    scores = log_softmax(logits.detach().numpy())
    expected = -(scores[0, 2, 11] + scores[1, 7, 0] + scores[1, 3, 60]) / 3
    assert float(model(ids, labels=labels).loss.detach()) == pytest.approx(expected, rel=1e-5)


def test_masked_positions_give_the_same_logits_and_loss_as_all_positions(model):
    ids, masked = random_ids(14), torch.tensor([1, 4, 6, 11])
    labels = torch.tensor([3, 30, 0, 60])
    full_labels = torch.full((14,), -100)
    full_labels[masked] = labels
    full = model(ids, cu_seqlens=BOUNDS, labels=full_labels)
    few = model(ids, cu_seqlens=BOUNDS, labels=labels, masked_positions=masked)
    assert few.logits.shape == (4, 61)
    assert_near(few.logits, full.logits[masked])
    assert_near(few.loss, full.loss)
    flat = model(ids.view(2, 7), masked_positions=masked).logits
    assert_near(flat, model(ids.view(2, 7)).logits.flatten(0, 1)[masked])


def test_masked_positions_give_the_same_gradients_as_all_positions():
    ids, masked = random_ids(14), torch.tensor([1, 4, 6, 11])
    labels = torch.full((14,), -100)
    labels[masked] = torch.tensor([3, 30, 0, 60])
    few, full = build_random_model(), build_random_model()
    few(ids, cu_seqlens=BOUNDS, labels=labels[masked], masked_positions=masked).loss.backward()
    full(ids, cu_seqlens=BOUNDS, labels=labels).loss.backward()
    for one, other in zip(few.parameters(), full.parameters(), strict=True):
        assert_near(one.grad, other.grad, relative=1e-5)


def test_return_dict_false_gives_the_same_as_a_tuple(model):
    ids, labels = random_ids(2, 5), random_ids(2, 5)
    named, plain = model(ids, labels=labels), model(ids, labels=labels, return_dict=False)
    assert isinstance(plain, tuple)
    assert [torch.equal(a, b) for a, b in zip(plain, (named.loss, named.logits), strict=True)]
    assert isinstance(model.model(ids, return_dict=False), tuple)


@pytest.mark.parametrize("head", ["masked_lm", "classification"])
def test_transformers_trainer_scales_the_loss_of_accumulated_batches_right(head):
    """Trainer divides by the accumulated batches only for a model that takes no loss arguments;
    any other has to divide the summed loss by `num_items_in_batch` itself."""
    if head == "masked_lm":
        model, ids = build_random_model(), random_ids(2, 5)
        labels = random_ids(2, 5, seed=4)
    else:
        model, ids = build_classifier(3), random_ids(2, 5)
        labels = torch.tensor([0, 2])
    mean = model(ids, labels=labels).loss
    if getattr(model, "accepts_loss_kwargs", True):
        num_items = torch.tensor(4 * labels.numel())
        scaled = model(ids, labels=labels, num_items_in_batch=num_items).loss
        assert_near(scaled, mean / 4)


def test_classifier_equals_its_formula_whatever_the_padding():
    classifier = build_classifier(3)
    ids, mask = random_ids(3, 7), torch.ones(3, 7, dtype=torch.long)
    mask[0, 5:] = 0
    mask[1, :3] = 0
    logits = classifier(ids, mask).logits
    assert logits.shape == (3, 3)
    for row in range(3):
        assert_near(logits[row], reference_scores(classifier, ids[row][mask[row].bool()]))
    unmasked = classifier(ids).logits
    assert_near(unmasked[1], reference_scores(classifier, ids[1]))


@pytest.mark.parametrize("row_form", [False, True])
def test_classifier_scores_every_packed_document(row_form):
    classifier = build_classifier(2)
    ids = random_ids(15)
    logits = classifier(ids[None] if row_form else ids, cu_seqlens=BOUNDS).logits
    assert logits.shape == (3, 2)
    for row, (start, stop) in enumerate([(0, 6), (6, 7), (7, 12)]):
        assert_near(logits[row], reference_scores(classifier, ids[start:stop]))


def test_classifier_drops_out_only_while_training():
    classifier = build_classifier(3, classifier_dropout=0.5)
    ids = random_ids(4, 6)
    assert torch.equal(classifier(ids).logits, classifier(ids).logits)
    classifier.train()
    assert not torch.equal(classifier(ids).logits, classifier(ids).logits)


@pytest.mark.parametrize("named", [True, False])
def test_single_label_loss_is_cross_entropy(named):
    problem = "single_label_classification" if named else None
    classifier, labels = build_classifier(3, problem_type=problem), torch.tensor([2, 0])
    output = classifier(random_ids(2, 6), labels=labels)
    scores = log_softmax(output.logits.detach().double().numpy())
    expected = -(scores[0, 2] + scores[1, 0]) / 2
    assert float(output.loss.detach()) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize("shape", [(2,), (2, 1)])
def test_regression_loss_is_the_mean_square(named, shape):
    classifier = build_classifier(1, problem_type="regression" if named else None)
    targets = np.array([0.5, -2.0])
    labels = torch.tensor(targets, dtype=torch.float32).view(shape)
    output = classifier(random_ids(2, 6), labels=labels)
    expected = np.mean((output.logits.detach().double().numpy()[:, 0] - targets) ** 2)
    assert float(output.loss.detach()) == pytest.approx(expected, rel=1e-5)


def test_regression_of_several_targets_is_the_mean_square_over_all():
    classifier = build_classifier(3, problem_type="regression")
    targets = np.arange(6.0).reshape(2, 3)
    output = classifier(random_ids(2, 6), labels=torch.tensor(targets))
    expected = np.mean((output.logits.detach().double().numpy() - targets) ** 2)
    assert float(output.loss.detach()) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("named", [True, False])
def test_multi_label_loss_is_binary_cross_entropy(named):
    problem = "multi_label_classification" if named else None
    classifier = build_classifier(3, problem_type=problem)
    targets = np.array([[1.0, 0.0, 1.0], [0.0, 0.0, 1.0]])
    labels = torch.tensor(targets, dtype=torch.float32)
    output = classifier(random_ids(2, 6), labels=labels)
    chances = 1 / (1 + np.exp(-output.logits.detach().double().numpy()))
    expected = -np.mean(targets * np.log(chances) + (1 - targets) * np.log(1 - chances))
    assert float(output.loss.detach()) == pytest.approx(expected, rel=1e-5)


def test_exactly_one_of_ids_and_embeddings_is_wanted(model):
    ids = random_ids(1, 4)
    embeds = model.get_input_embeddings()(ids)
    for arguments in ({}, {"input_ids": ids, "inputs_embeds": embeds}):
        with pytest.raises(ValueError, match="exactly one of input_ids and inputs_embeds"):
            model(**arguments)


def test_shapes_that_do_not_fit_are_named(model):
    with pytest.raises(ValueError, match=r"attention_mask has the shape \[2, 3\].*\[2, 4\]"):
        model(random_ids(2, 4), torch.ones(2, 3))
    with pytest.raises(ValueError, match=r"\[T\] or \[1, T\], not \[2, 4\]"):
        model(random_ids(2, 4), cu_seqlens=torch.tensor([0, 4]))
    with pytest.raises(ValueError, match=r"\[B, S\], not \[4\]"):
        model(random_ids(4))


def test_outputs_asked_for_in_the_configuration_are_given():
    config = NeoBERTConfig(**SMALL, output_hidden_states=True, output_attentions=True)
    output = NeoBERT(config)(random_ids(1, 5))
    assert len(output.hidden_states) == 3
    assert len(output.attentions) == 2
    quiet = NeoBERT(config)(random_ids(1, 5), output_hidden_states=False, output_attentions=False)
    assert quiet.hidden_states is None
    assert quiet.attentions is None


def test_masked_lm_head_passes_hidden_states_and_attentions_on():
    model = NeoBERTForMaskedLM(NeoBERTConfig(**SMALL))
    output = model(random_ids(1, 5), output_hidden_states=True, output_attentions=True)
    assert len(output.hidden_states) == 3
    assert len(output.attentions) == 2
