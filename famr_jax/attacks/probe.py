"""Linear probes: what a model's features still know."""

from typing import Any

import numpy as np


def linear_probe(
    features: np.ndarray, labels: np.ndarray, *, folds: int = 5, seed: int = 0
) -> float:
    """Balanced accuracy of a linear classifier on frozen features, on examples left out of its fit.

    Logistic regression with balanced classes on standardised features; every example is predicted
    by the probe fitted to the other folds. Chance is one over the number of classes. The target is
    the oracle's value, from examples that neither model was trained on.

    Args:
        features: Activations, `[n, dim]`.
        labels: What to tell apart, `[n]`: classes, or whether an example is of one class.
        folds: Stratified parts of the examples.
        seed: Draws the parts.

    Raises:
        ValueError: `folds` below 2, fewer than two classes, a class with fewer examples than folds,
            or features that are not finite.
    """
    from sklearn.metrics import balanced_accuracy_score
    from sklearn.model_selection import StratifiedKFold, cross_val_predict

    if folds < 2:
        raise ValueError(f"`folds` must be >= 2, got {folds}.")
    labels = np.asarray(labels)
    fewest = _fewest(labels)
    if fewest < folds:
        raise ValueError(f"`labels` must hold each class {folds} times, got {fewest}.")
    _check_finite("features", features)
    splits = StratifiedKFold(folds, shuffle=True, random_state=seed)
    predicted = cross_val_predict(_classifier(), np.asarray(features), labels, cv=splits)
    return float(balanced_accuracy_score(labels, predicted))


def held_out_probe(
    features: np.ndarray, labels: np.ndarray, test_features: np.ndarray, test_labels: np.ndarray
) -> float:
    """Accuracy of the same classifier on other examples than those it was fitted to.

    For examples that belong together, such as an image in two styles: give one half of them to each
    side.

    Args:
        features: To fit on, `[n, dim]`.
        labels: Their classes, `[n]`.
        test_features: To score on, `[m, dim]`.
        test_labels: Their classes, `[m]`.

    Raises:
        ValueError: Fewer than two classes to fit, nothing to score, or features that are not
            finite.
    """
    _fewest(labels)
    if len(test_labels) < 1:
        raise ValueError("`test_labels` must hold at least 1 label, got 0.")
    _check_finite("features", features)
    _check_finite("test_features", test_features)
    probe = _classifier().fit(np.asarray(features, np.float64), labels)
    return float(probe.score(np.asarray(test_features, np.float64), test_labels))


def _classifier() -> Any:
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    return make_pipeline(
        StandardScaler(), LogisticRegression(class_weight="balanced", max_iter=2000)
    )


def _check_finite(name: str, features: np.ndarray) -> None:
    lost = ~np.isfinite(features)
    if lost.any():
        raise ValueError(f"`{name}` must be finite, got {np.asarray(features)[lost][0]}.")


def _fewest(labels: np.ndarray) -> int:
    classes, counts = np.unique(labels, return_counts=True)
    if len(classes) < 2:
        raise ValueError(f"`labels` must be of at least 2 classes, got {len(classes)}.")
    return counts.min()
