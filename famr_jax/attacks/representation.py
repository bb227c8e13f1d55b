"""What a model's features still know of a class: a linear probe."""

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
        seed: Of the parts.

    Raises:
        ValueError: `folds` below 2, fewer than two classes, or a class with fewer examples than
            folds.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import balanced_accuracy_score
    from sklearn.model_selection import StratifiedKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    if folds < 2:
        raise ValueError(f"`folds` must be >= 2, got {folds}.")
    labels = np.asarray(labels)
    classes, counts = np.unique(labels, return_counts=True)
    if len(classes) < 2:
        raise ValueError(f"`labels` must be of at least 2 classes, got {len(classes)}.")
    if counts.min() < folds:
        raise ValueError(f"`labels` must hold each class {folds} times, got {counts.min()}.")
    splits = StratifiedKFold(folds, shuffle=True, random_state=seed)
    classifier = LogisticRegression(class_weight="balanced", max_iter=2000)
    probe = make_pipeline(StandardScaler(), classifier)
    predicted = cross_val_predict(probe, np.asarray(features), labels, cv=splits)
    return float(balanced_accuracy_score(labels, predicted))
