"""Fine-tuning: its schedule, its head, what it learns, and which evaluation counts."""

import dataclasses

import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoTokenizer

from neobert_train.tuning import finetuning
from neobert_train.tuning.examples import Examples
from neobert_train.tuning.finetuning import Classifier, RunOptions, fine_tune
from neobert_train.tuning.hyperparameters import FineTuning
from support.architectures import write_folder

SETTINGS = FineTuning(
    learning_rate=3e-3, batch_size=8, weight_decay=0.01, epochs=6, max_steps=None, warmup_fraction=0.1,
    decay_fraction=1.0, final_fraction=0.0, evaluate_every_steps=None, evaluations_per_epoch=10,
    patience=None, max_length=16, dropout=0.1, adam_beta1=0.9, adam_beta2=0.999, adam_epsilon=1e-8,
    max_grad_norm=1.0,
)  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tokenizer):
    folder = tmp_path_factory.mktemp("bert")
    write_folder(folder, "bert", tokenizer)
    return folder


def run(folder, train, evaluation, num_classes, settings=SETTINGS, seed=0, **options):
    """Predictions of a run whose score is accuracy, or minus the squared error."""

    def score(predictions):
        if num_classes is None:
            return -float(np.square(predictions - evaluation.labels).mean())
        return float((predictions == evaluation.labels).mean())

    return fine_tune(
        lambda: AutoModel.from_pretrained(folder, attn_implementation="eager"),
        AutoTokenizer.from_pretrained(folder), train, evaluation, score, settings, seed,
        RunOptions(num_classes, **options),
    )  # fmt: skip


def build_examples(num, pairs=False, regression=False):
    labels = np.arange(num) % 2
    words = ["terrible", "wonderful"]
    texts = [f"it is {words[label]} {'so ' * (i % 5)}" for i, label in enumerate(labels)]
    others = [f"and {words[label]} again" for label in labels] if pairs else None
    return Examples(texts, others, labels * 2.0 if regression else labels)


@pytest.mark.parametrize(
    ("step", "expected"), [(0, 1 / 6), (2, 0.5), (5, 1.0), (47, 0.55), (89, 0.1), (99, 0.1)]
)
def test_the_paper_warms_up_decays_to_a_tenth_and_stays(step, expected):
    settings = dataclasses.replace(
        SETTINGS, warmup_fraction=0.06, decay_fraction=0.9, final_fraction=0.1
    )
    assert settings.multiply(step, 100) == pytest.approx(expected)


def test_steps_are_those_of_the_epochs_up_to_the_most():
    assert SETTINGS.count_steps(17) == 6 * 3
    assert dataclasses.replace(SETTINGS, max_steps=4).count_steps(17) == 4


@pytest.mark.parametrize("pairs", [False, True])
def test_texts_and_pairs_are_learned(folder, pairs):
    train, evaluation = build_examples(48, pairs), build_examples(11, pairs)
    predictions = run(folder, train, evaluation, 2)
    assert predictions.dtype == np.int64
    assert (predictions == evaluation.labels).mean() > 0.9


def test_scores_are_learned(folder):
    train, evaluation = build_examples(48, regression=True), build_examples(11, regression=True)
    predictions = run(folder, train, evaluation, None)
    assert np.corrcoef(predictions, evaluation.labels)[0, 1] > 0.9


def test_words_are_learned_and_those_behind_the_longest_length_are_the_most_frequent(folder):
    def build(num):
        texts = [["it", "is"] * (i % 3) + ["wonderful", "unbelievably"] for i in range(num)]
        labels = np.concatenate([[0] * (len(words) - 2) + [1, 2] for words in texts])
        return Examples(texts, None, labels)

    train, evaluation = build(60), build(7)
    predictions = run(folder, train, evaluation, 3)
    assert (predictions == evaluation.labels).mean() > 0.9
    # [CLS] it is it [SEP]
    short = dataclasses.replace(SETTINGS, max_length=5)
    frequent = np.bincount(train.labels).argmax()
    predictions = run(folder, train, evaluation, 3, short)
    third = np.flatnonzero([len(words) == 6 for words in evaluation.texts])[0]
    start = sum(len(words) for words in evaluation.texts[:third])
    assert (predictions[start + 3 : start + 6] == frequent).all()


def test_a_run_is_its_seed(folder):
    train, evaluation = build_examples(16, regression=True), build_examples(9, regression=True)
    short = dataclasses.replace(SETTINGS, epochs=1)
    first = run(folder, train, evaluation, None, short, seed=1)
    np.testing.assert_array_equal(first, run(folder, train, evaluation, None, short, seed=1))
    assert not np.array_equal(first, run(folder, train, evaluation, None, short, seed=2))


def test_the_best_evaluation_counts_and_patience_ends_a_run(folder, monkeypatch):
    evaluation = build_examples(6)
    planted = [np.array([i] * 6) for i in range(9)]
    scores = dict(zip(range(9), [0.1, 0.5, 0.4, 0.5, 0.3, 0.9, 0, 0, 0], strict=True))
    seen = []

    def predict(self):
        seen.append(self.trainer.state.global_step)
        return planted[len(seen) - 1]

    monkeypatch.setattr(finetuning._Best, "_predict", predict)
    settings = dataclasses.replace(SETTINGS, evaluate_every_steps=500, patience=3, epochs=1)
    best = fine_tune(
        lambda: AutoModel.from_pretrained(folder), AutoTokenizer.from_pretrained(folder),
        build_examples(160), evaluation, lambda rows: scores[int(rows[0])], settings, 0, RunOptions(2),
    )  # fmt: skip
    # A tenth of the 20 steps of an epoch; the third evaluation after the best ends the run.
    assert seen == [2, 4, 6, 8, 10]
    assert best.tolist() == [1] * 6


def test_the_encoder_of_the_best_evaluation_is_kept(folder, tmp_path, monkeypatch):
    scores = iter([0.5, 0.9, 0.1, 0.2])
    kept = []
    monkeypatch.setattr(
        finetuning._Best, "_predict",
        lambda self: kept.append(
            {n: p.detach().clone() for n, p in self.trainer.model.encoder.named_parameters()}
        ) or np.zeros(6),
    )  # fmt: skip
    settings = dataclasses.replace(
        SETTINGS, evaluate_every_steps=1, evaluations_per_epoch=1, epochs=1, batch_size=4
    )
    fine_tune(
        lambda: AutoModel.from_pretrained(folder), AutoTokenizer.from_pretrained(folder),
        build_examples(16), build_examples(6), lambda rows: next(scores), settings, 0,
        RunOptions(2, save_to=tmp_path / "best"),
    )  # fmt: skip
    saved = dict(AutoModel.from_pretrained(tmp_path / "best").named_parameters())
    assert all(torch.equal(saved[name], value) for name, value in kept[1].items())
    assert any(not torch.equal(saved[name], value) for name, value in kept[2].items())


def test_an_encoder_that_is_kept_is_the_trained_one(folder, tmp_path):
    train = build_examples(16)
    short = dataclasses.replace(SETTINGS, epochs=1)
    run(folder, train, train, 2, short, save_to=tmp_path / "kept")
    before = AutoModel.from_pretrained(folder).state_dict()
    after = AutoModel.from_pretrained(tmp_path / "kept").state_dict()
    moved = [name for name in before if not torch.equal(before[name], after[name])]
    assert any("layer.0" in name for name in moved)
    AutoTokenizer.from_pretrained(tmp_path / "kept")


def test_scores_that_are_not_finite_are_an_error(folder):
    wild = dataclasses.replace(
        SETTINGS, learning_rate=1e20, max_grad_norm=None, warmup_fraction=0.0
    )
    with pytest.raises(FloatingPointError, match="not finite"):
        run(folder, build_examples(16), build_examples(6), 2, wild)


def test_the_head_is_dense_tanh_linear_on_the_first_token(folder):
    network = Classifier(AutoModel.from_pretrained(folder), 3, dropout=0.1, on_words=False).eval()
    ids = torch.randint(1000, 2000, (2, 7))
    with torch.no_grad():
        states = network.encoder(input_ids=ids).last_hidden_state
        found = network(input_ids=ids)["logits"]
        dense, out = network.dense, network.classifier
        expected = torch.tanh(states[:, 0] @ dense.weight.T + dense.bias) @ out.weight.T + out.bias
    torch.testing.assert_close(found, expected)
    assert network.dense.weight.std().item() == pytest.approx(0.02, rel=0.1)
