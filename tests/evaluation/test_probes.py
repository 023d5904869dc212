"""Linear models on frozen features, against computations of their own."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import log_loss
from sklearn.preprocessing import StandardScaler

from neobert_train.errors import InputError
from neobert_train.evaluation import probes
from neobert_train.evaluation.probes import (
    INVERSE_STRENGTHS,
    RIDGE_PENALTIES,
    fit_classifier,
    fit_regressor,
    join_pairs,
)


def draw_classes(num_train, num_features, num_classes, signal, seed=0):
    """Features of very different scales, of which the first three hold the class."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(num_classes, size=num_train + 200)
    features = generator.normal(size=(len(labels), num_features))
    features[:, :3] += signal * generator.normal(size=(num_classes, 3))[labels]
    features = 5.0 + features * np.geomspace(1e-3, 1e3, num_features)
    return features[:num_train], labels[:num_train], features[num_train:], labels[num_train:]


@pytest.mark.parametrize(("num_train", "num_features"), [(300, 12), (60, 100)])
def test_classes_are_those_of_one_of_the_models_and_better_than_the_others(num_train, num_features):
    train, labels, test, answers = draw_classes(num_train, num_features, 3, 1.5)
    predictions = fit_classifier(train, labels, test)
    scaler = StandardScaler().fit(train)
    models = [
        LogisticRegression(C=strength, max_iter=10_000, tol=1e-8).fit(
            scaler.transform(train), labels
        )
        for strength in INVERSE_STRENGTHS
    ]
    agreements = [(m.predict(scaler.transform(test)) == predictions).mean() for m in models]
    assert max(agreements) >= 0.98
    # It is one of the models that an observer of the test examples would choose.
    losses = [log_loss(answers, m.predict_proba(scaler.transform(test))) for m in models]
    assert losses[int(np.argmax(agreements))] < 1.15 * min(losses)


def test_a_weak_signal_in_many_features_gets_a_strong_penalty():
    train, labels, test, _ = draw_classes(120, 300, 2, 0.5)
    standard, _ = probes.standardise(train, test)
    assert probes._choose_inverse_strength(standard, labels, seed=0) <= 1e-2
    train, labels, test, _ = draw_classes(1000, 5, 2, 4.0)
    standard, _ = probes.standardise(train, test)
    assert probes._choose_inverse_strength(standard, labels, seed=0) >= 0.1


def test_labels_keep_their_ids_and_the_same_seed_gives_the_same():
    train, labels, test, _ = draw_classes(200, 6, 3, 3.0)
    named = np.array([7, 2, 40])[labels]
    predictions = fit_classifier(train, named, test, seed=3)
    assert predictions.dtype == np.int64
    assert set(predictions) == {2, 7, 40}
    assert (predictions == fit_classifier(train, named, test, seed=3)).all()


def test_a_class_of_one_example_and_constant_features_do_no_harm():
    train, labels, test, answers = draw_classes(200, 6, 2, 3.0)
    labels = labels.copy()
    labels[0] = 9
    train[:, 5], test[:, 5] = 0.1, 0.7
    with_constant = fit_classifier(train, labels, test)
    assert (with_constant == answers).mean() > 0.8
    assert (fit_classifier(train[:, :5], labels, test[:, :5]) == with_constant).all()


def test_only_so_many_examples_are_used(monkeypatch):
    train, labels, test, _ = draw_classes(400, 6, 2, 1.0)
    monkeypatch.setattr(probes, "MOST_EXAMPLES", 50)
    drawn = probes._draw_examples(400, seed=5)
    assert len(set(drawn)) == 50
    assert (
        fit_classifier(train, labels, test, seed=5)
        == fit_classifier(train[drawn], labels[drawn], test, seed=5)
    ).all()
    assert fit_regressor(train, labels.astype(float), test, seed=5) == pytest.approx(
        fit_regressor(train[drawn], labels[drawn].astype(float), test)
    )


@pytest.mark.parametrize(("num_train", "num_features"), [(80, 10), (40, 60)])
def test_scores_are_those_of_the_ridge_with_the_least_error_left_out(num_train, num_features):
    generator = np.random.default_rng(1)
    features = generator.normal(size=(num_train + 30, num_features)) * np.geomspace(
        0.01, 100, num_features
    )
    scores = 3 + features @ (generator.normal(size=num_features) / features.std(axis=0))
    scores += generator.normal(size=len(scores)) * 2 * scores.std()
    train, test = features[:num_train], features[num_train:]
    scaled = StandardScaler().fit(train)
    inside, outside = scaled.transform(train), scaled.transform(test)
    errors = [
        np.mean([
            (predict_one(penalty, inside, scores[:num_train], left) - scores[left]) ** 2
            for left in range(num_train)
        ])
        for penalty in RIDGE_PENALTIES
    ]  # fmt: skip
    best = int(np.argmin(errors))
    assert 0 < best < len(RIDGE_PENALTIES) - 1
    expected = Ridge(RIDGE_PENALTIES[best]).fit(inside, scores[:num_train]).predict(outside)
    predictions = fit_regressor(train, scores[:num_train], test)
    assert predictions.dtype == np.float64
    assert predictions == pytest.approx(expected, rel=1e-8)


def predict_one(penalty, features, scores, left):
    """The score of one example by the ridge regression on all others."""
    others = np.arange(len(scores)) != left
    centre, mean = features[others].mean(axis=0), scores[others].mean()
    inside = features[others] - centre
    products = inside.T @ inside + penalty * np.eye(inside.shape[1])
    weights = np.linalg.solve(products, inside.T @ (scores[others] - mean))
    return (features[left] - centre) @ weights + mean


def test_a_pair_has_both_texts_their_distance_and_their_product():
    first, second = np.array([[1.0, -2.0]]), np.array([[3.0, 4.0]])
    assert join_pairs(first, second).tolist() == [[1, -2, 3, 4, 2, 6, 3, -8]]


def test_what_cannot_be_learned_from_is_refused_with_the_reason():
    train, labels, test, _ = draw_classes(40, 4, 2, 1.0)
    with pytest.raises(InputError, match="all 40 training examples are of one class"):
        fit_classifier(train, np.zeros(40, np.int64), test)
    test[3:5, 1] = np.nan
    for fit in (fit_classifier, fit_regressor):
        with pytest.raises(InputError, match="2 of 200 examples have a feature that is not"):
            fit(train, labels, test)
    with pytest.raises(InputError, match="a training score is not a finite number"):
        fit_regressor(train, np.full(40, np.inf), train)
