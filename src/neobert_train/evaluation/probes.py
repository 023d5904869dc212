"""Probes: linear models on the features of a network that stays as it is.

How well a linear model tells the classes or scores of texts from frozen features says what the
features hold, in seconds and without a graphics card. Neither torch nor a network is needed here.
"""

from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from neobert_train.errors import InputError

Floats: TypeAlias = npt.NDArray[np.floating[Any]]
Integers: TypeAlias = npt.NDArray[np.integer[Any]]

# More training examples than these are not used.
MOST_EXAMPLES = 5000
# Inverse strengths of the L2 penalty on standardised features, from strong to weak.
INVERSE_STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
# Penalties of ridge regression on standardised features.
RIDGE_PENALTIES = tuple(float(10.0**exponent) for exponent in np.arange(-1.0, 6.5, 0.5))
NUM_FOLDS = 4
_MOST_ITERATIONS = 2000
# Of the largest gradient at which the fit stops; the predictions no longer change long before.
_TOLERANCE = 1e-3
_LEAST_PROBABILITY = 1e-12


def fit_classifier(
    train_features: Floats, train_labels: Integers, test_features: Floats, seed: int = 0
) -> npt.NDArray[np.int64]:
    """Predict classes by logistic regression on standardised features.

    Its penalty is weakened along `INVERSE_STRENGTHS` as long as the cross-entropy in a cross-validation
    of the training examples falls, in `NUM_FOLDS` folds that hold the classes in equal shares.

    Args:
        train_features: [n, d]; of more than `MOST_EXAMPLES`, a part drawn by `seed`.
        train_labels: [n], ids of classes.
        test_features: [m, d].
        seed: decides the part and the folds; the same one gives the same predictions.

    Returns:
        [m] int64, ids of classes that `train_labels` holds.

    Raises:
        InputError: a feature is not finite, or all examples are of one class.
    """
    kept = _draw_examples(len(train_features), seed)
    labels = np.asarray(train_labels, np.int64)[kept]
    train, test = _rotate(*standardise(train_features[kept], test_features))
    if len(np.unique(labels)) < 2:
        raise InputError(
            f"all {len(labels)} training examples are of one class, which leaves nothing to learn: "
            f"give examples of two or more"
        )
    inverse_strength = _choose_inverse_strength(train, labels, seed)
    classifier = _build_classifier().set_params(C=inverse_strength).fit(train, labels)
    return np.asarray(classifier.predict(test), np.int64)


def fit_regressor(
    train_features: Floats, train_scores: Floats, test_features: Floats, seed: int = 0
) -> npt.NDArray[np.float64]:
    """Predict scores by ridge regression on standardised features.

    The penalty is the one among `RIDGE_PENALTIES` with the least squared error of the training
    examples, each predicted from all others; both have a closed form.

    Args:
        train_features: [n, d]; of more than `MOST_EXAMPLES`, a part drawn by `seed`.
        train_scores: [n].
        test_features: [m, d].
        seed: decides the part.

    Returns:
        [m] float64.

    Raises:
        InputError: a feature or a score is not finite.
    """
    kept = _draw_examples(len(train_features), seed)
    scores = np.asarray(train_scores, np.float64)[kept]
    if not np.isfinite(scores).all():
        raise InputError(
            "a training score is not a finite number: correct it or leave the example out"
        )
    train, test = _rotate(*standardise(train_features[kept], test_features))
    mean = scores.mean()
    squares, axes = np.linalg.eigh(train.T @ train)
    rotated = train @ axes
    products = rotated.T @ (scores - mean)
    errors = []
    for penalty in RIDGE_PENALTIES:
        shrunk = 1 / (np.maximum(squares, 0.0) + penalty)
        # The diagonal of the matrix that turns the scores into their predictions.
        leverages = 1 / len(train) + rotated**2 @ shrunk
        residuals = scores - mean - rotated @ (shrunk * products)
        errors.append(np.mean((residuals / (1 - leverages)) ** 2))
    penalty = RIDGE_PENALTIES[int(np.argmin(errors))]
    weights = axes @ (products / (np.maximum(squares, 0.0) + penalty))
    return np.asarray(test @ weights + mean, np.float64)


def join_pairs(first: Floats, second: Floats) -> Floats:
    """Return the features of pairs of texts: [u, v, |u - v|, u * v].

    The form that InferSent gave them (Conneau et al., 2017, arXiv 1705.02364).

    Args:
        first, second: [n, d], of the first and the second text of every pair.

    Returns:
        [n, 4 d].
    """
    return np.concatenate([first, second, np.abs(first - second), first * second], axis=1)


def standardise(
    train: Floats, test: Floats
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return both in float64, by the mean and the standard deviation of the training features.

    A feature that is the same in all of these becomes 0.

    Args:
        train: [n, d].
        test: [m, d].

    Raises:
        InputError: a feature is not finite.
    """
    train, test = np.asarray(train, np.float64), np.asarray(test, np.float64)
    for features in (train, test):
        num_bad = int((~np.isfinite(features)).any(axis=1).sum())
        if num_bad:
            raise InputError(
                f"{num_bad} of {len(features)} examples have a feature that is not a finite number: "
                f"the network has diverged, or computes in a format too narrow for it"
            )
    mean, deviation = train.mean(axis=0), train.std(axis=0)
    # What remains of a constant feature is rounding.
    varies = deviation > 1e-10 * np.maximum(1.0, np.abs(mean))
    scale = np.where(varies, 1 / np.where(varies, deviation, 1.0), 0.0)
    return (train - mean) * scale, (test - mean) * scale


def _draw_examples(num_examples: int, seed: int) -> npt.NDArray[np.int64]:
    """Return the indices of the examples that are used, ascending."""
    if num_examples <= MOST_EXAMPLES:
        return np.arange(num_examples)
    drawn = np.random.default_rng(seed).choice(num_examples, MOST_EXAMPLES, replace=False)
    return np.sort(drawn)


def _rotate(
    train: npt.NDArray[np.float64], test: npt.NDArray[np.float64]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return both in a basis of the training features where these are fewer than their dimensions.

    A penalty on the squared length of the weights gives the same predictions in any such basis.
    """
    if len(train) >= train.shape[1]:
        return train, test
    basis, _ = np.linalg.qr(train.T)
    return train @ basis, test @ basis


def _build_classifier() -> Any:
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression(max_iter=_MOST_ITERATIONS, tol=_TOLERANCE)


def _choose_inverse_strength(
    features: npt.NDArray[np.float64], labels: npt.NDArray[np.int64], seed: int
) -> float:
    """Return the inverse strength after which the cross-entropy over the folds rises."""
    folds = _deal_folds(labels, seed)
    parts = [(folds != fold, folds == fold) for fold in range(NUM_FOLDS)]
    parts = [part for part in parts if len(np.unique(labels[part[0]])) > 1 and part[1].any()]
    # Each begins where it was with the stronger penalty.
    classifiers = [_build_classifier().set_params(warm_start=True) for _ in parts]
    best, least = INVERSE_STRENGTHS[0], np.inf
    for inverse_strength in INVERSE_STRENGTHS:
        loss = 0.0
        for classifier, (inside, outside) in zip(classifiers, parts, strict=True):
            classifier.set_params(C=inverse_strength).fit(features[inside], labels[inside])
            probabilities = classifier.predict_proba(features[outside])
            loss += _sum_cross_entropy(probabilities, classifier.classes_, labels[outside])
        if loss >= least:
            break
        best, least = inverse_strength, loss
    return best


def _deal_folds(labels: npt.NDArray[np.int64], seed: int) -> npt.NDArray[np.int64]:
    """Return the fold of every example, [n]; the examples of a class are dealt in turns."""
    order = np.random.default_rng(seed).permutation(len(labels))
    by_class = order[np.argsort(labels[order], kind="stable")]
    folds = np.empty(len(labels), np.int64)
    folds[by_class] = np.arange(len(labels)) % NUM_FOLDS
    return folds


def _sum_cross_entropy(
    probabilities: npt.NDArray[np.float64],
    classes: npt.NDArray[np.int64],
    labels: npt.NDArray[np.int64],
) -> float:
    """Return the summed cross-entropy in nats; a class that the model does not know has next to none.

    Args:
        probabilities: [n, number of classes].
        classes: their ids, ascending.
        labels: [n].
    """
    places = np.minimum(np.searchsorted(classes, labels), len(classes) - 1)
    known = classes[places] == labels
    chosen = np.where(known, probabilities[np.arange(len(labels)), places], 0.0)
    return float(-np.log(np.maximum(chosen, _LEAST_PROBABILITY)).sum())
