"""The audit: models of scikit-learn and torch by their arrays, checkpoints, verdicts, refusals."""

import json

import jax
import numpy as np
import pytest
from conftest import CLASSES, random_batch

from famr_jax import __main__ as commands
from famr_jax import audit, checkpoint, evaluation, statistics
from famr_jax.audit.auditing import _held_out, _judged
from famr_jax.forget import ForgetSet

GONE = 2
"""The class that is forgotten."""


def fitted(x, labels, seed, *, without=None):
    """Logits of all rows by a logistic regression on a bootstrap of some of them."""
    from sklearn.linear_model import LogisticRegression

    rng = np.random.default_rng(seed)
    rows = np.flatnonzero(labels != without) if without is not None else np.arange(len(labels))
    drawn = np.concatenate(
        [rng.choice(rows[labels[rows] == c], 30) for c in np.unique(labels[rows])]
    )
    model = LogisticRegression(max_iter=500).fit(x[drawn], labels[drawn])
    logits = np.full((len(x), 3), -8.0)
    scores = model.predict_log_proba(x)
    logits[:, model.classes_] = scores
    return logits


@pytest.fixture(scope="module")
def iris():
    """Arrays by model: before, eight oracles without a class, and one more that no one knows."""
    from sklearn.datasets import load_iris

    x, labels = load_iris(return_X_y=True)
    x = x + np.random.default_rng(0).normal(size=x.shape)
    is_train = np.arange(len(x)) % 3 > 0
    shared = {
        "labels": labels,
        "split": np.where(is_train, "train", "test"),
        "forget": is_train & (labels == GONE),
        "ids": np.arange(len(x)),
    }
    rows = np.flatnonzero(is_train)

    def model(seed, without=None):
        logits = np.empty((len(x), 3))
        logits[:] = fit(seed, without)
        return shared | {"logits": logits, "features": x}

    def fit(seed, without):
        from sklearn.linear_model import LogisticRegression

        kept = rows[labels[rows] != without]
        drawn = np.random.default_rng(seed).choice(kept, len(kept))
        found = LogisticRegression(max_iter=500).fit(x[drawn], labels[drawn])
        logits = np.full((len(x), 3), -8.0)
        logits[:, found.classes_] = found.predict_log_proba(x)
        return logits

    return {
        "before": model(0),
        "oracles": [model(seed, GONE) for seed in range(1, 9)],
        "unseen": model(9, GONE),
    }


def test_a(iris):
    found = audit.arrays(iris["before"], iris["unseen"], iris["oracles"])
    for line in found.lines:
        print(line)
    print(found.verdict, found.words, found.held_out)
    audit.write(found, "/tmp/filters/a.html", name="unseen")
    found = audit.arrays(iris["before"], iris["before"], iris["oracles"])
    print(found.verdict, found.words)
    found = audit.arrays(iris["before"], iris["before"], iris["oracles"][:2])
    print(found.verdict, found.words)
    assert 0
