"""Membership attacks on one number per example: SVC on confidence, logistic regression on loss."""

import numpy as np


def svc_confidence(
    retain: np.ndarray, test: np.ndarray, forget: np.ndarray, *, seed: int = 0
) -> float:
    """Share of the forget set that a confidence attack calls non-member.

    An RBF support vector classifier (C=3, gamma=auto) learns to tell retained training examples
    (members) from test examples by p_y alone, a random draw of as many of each as the smaller has.
    The target is the oracle's value; higher is not better for a random forget set. NaN if one of
    the numbers is.

    Args:
        retain: Confidence p_y of retained training examples, `[r]`.
        test: p_y of test examples, `[t]`.
        forget: p_y of the forget set, `[f]`.
        seed: Draws among the retained.

    Raises:
        ValueError: One of the sets is empty.

    Source: SalUn (arXiv 2310.12508), its public evaluation code.
    """
    from sklearn.svm import SVC

    for name, values in (("retain", retain), ("test", test), ("forget", forget)):
        if len(values) < 1:
            raise ValueError(f"`{name}` must hold at least 1 confidence, got 0.")
    if any(np.isnan(values).any() for values in (retain, test, forget)):
        return float("nan")
    size = min(len(retain), len(test))
    draw = np.random.default_rng(seed).choice
    members = draw(np.asarray(retain), size, replace=False)
    others = draw(np.asarray(test), size, replace=False)
    x = np.concatenate([members, others])[:, None]
    y = np.repeat([1, 0], size)
    attacker = SVC(C=3, gamma="auto", kernel="rbf").fit(x, y)
    return float(np.mean(attacker.predict(np.asarray(forget)[:, None]) == 0))


def loss_attack(forget: np.ndarray, test: np.ndarray, *, seed: int = 0) -> float:
    """Balanced accuracy of telling forget from test examples by their loss; 0.5 is chance.

    Logistic regression with balanced classes on the standardised logarithm of the per-example
    cross-entropy, so that the scale of the losses does not matter, over 10 stratified splits. The
    target is the oracle's value, near 0.5 for a random forget set. NaN if a loss is.

    Args:
        forget: Cross-entropy of the forget set, `[f]`, at least 10 examples. Losses of 0 count as
            half of the least of both sets, infinite ones as twice the largest.
        test: Cross-entropy of test examples, `[t]`, at least 10.
        seed: Draws the splits.

    Raises:
        ValueError: Fewer than 10 examples on a side.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold, cross_val_score
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    for name, values in (("forget", forget), ("test", test)):
        if len(values) < 10:
            raise ValueError(f"`{name}` must hold at least 10 losses, got {len(values)}.")
    if np.isnan(forget).any() or np.isnan(test).any():
        return float("nan")
    x = _log(np.concatenate([forget, test]).astype(float))[:, None]
    y = np.repeat([1, 0], [len(forget), len(test)])
    splits = StratifiedKFold(10, shuffle=True, random_state=seed)
    attacker = make_pipeline(StandardScaler(), LogisticRegression(class_weight="balanced"))
    return float(cross_val_score(attacker, x, y, cv=splits, scoring="balanced_accuracy").mean())


def _log(losses):
    """Logarithms, of zeros and infinite losses just beyond the others."""
    between = losses[(losses > 0) & np.isfinite(losses)]
    if not between.size:
        between = np.ones(1)
    return np.log(np.clip(losses, between.min() / 2, 2 * between.max()))
