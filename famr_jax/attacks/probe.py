"""Linear probes: what can still be read from a model's features."""

import numpy as np


def linear_probe(
    features: np.ndarray, labels: np.ndarray, test_features: np.ndarray, test_labels: np.ndarray
) -> float:
    """Accuracy of a logistic regression on frozen features, on examples it was not fitted to.

    Features are standardised by the mean and deviation of the fitted ones. The target is the
    value that the oracle's features give, not chance.

    Args:
        features: To fit on, `[n, dim]`.
        labels: Their classes, `[n]`.
        test_features: To score on, `[m, dim]`.
        test_labels: Their classes, `[m]`.

    Raises:
        ValueError: Fewer than two classes to fit, or nothing to score.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    if len(np.unique(labels)) < 2:
        raise ValueError(f"`labels` must hold at least 2 classes, got {np.unique(labels)}.")
    if len(test_labels) < 1:
        raise ValueError("`test_labels` must hold at least 1 label, got 0.")
    probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    probe.fit(np.asarray(features, np.float64), labels)
    return float(probe.score(np.asarray(test_features, np.float64), test_labels))
