"""What two attacks that know retrained models find of a forgotten class: arrays in, numbers out."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from scipy.special import softmax

from famr_jax import attacks

LEAST_MODELS = 3
"""Models of a kind, or U-LiRA's densities have no width with one left out."""
DEALS = 20
"""Deals of the oracles to two sides, of which U-LiRA's null is made."""
CURVE = np.logspace(-4, 0, 41)
"""False positive rates at which a ROC is kept."""


@dataclass(frozen=True)
class Outputs:
    """Logits of K models on the forgotten training images and on all test images.

    Attributes:
        forget: `[K, n, num_classes]`.
        labels: `[n]`.
        test: `[K, m, num_classes]`.
        test_labels: `[m]`.
    """

    forget: np.ndarray
    labels: np.ndarray
    test: np.ndarray
    test_labels: np.ndarray

    @cached_property
    def margins(self) -> np.ndarray:
        """Log-odds of the labels of the forgotten images, `[K, n]`."""
        return attacks.margin(self.forget, self.labels)

    @cached_property
    def for_acc(self) -> np.ndarray:
        """Accuracy on the forgotten images, `[K]`."""
        return np.mean(np.argmax(self.forget, -1) == self.labels, axis=1)

    def kept_acc(self, forgotten: int) -> np.ndarray:
        """Accuracy on test images of the other classes, `[K]`."""
        kept = self.test_labels != forgotten
        return np.mean(np.argmax(self.test[:, kept], -1) == self.test_labels[kept], axis=1)


def references(oracles: Outputs, *, forgotten: int) -> dict[str, Any]:
    """The neighbour, and what the attacks find of the oracles themselves: bands and null."""
    near = attacks.neighbour(oracles.test, oracles.test_labels, forgotten=forgotten)
    told = told_apart(oracles, near, forgotten)
    generator, dealt = np.random.default_rng(0), []
    for _ in range(DEALS):
        mixed = generator.permutation(oracles.margins)
        half = len(mixed) // 2
        scores, members = game(mixed[:half], mixed[half : 2 * half])
        dealt.append(attacks.auc(scores, members).value)
    return {
        "neighbour": near,
        "oracle_mia_nn": told.tolist(),
        "oracle_share": shares(oracles, near, forgotten).tolist(),
        "oracle_for_acc": oracles.for_acc.tolist(),
        "oracle_kept_acc": oracles.kept_acc(forgotten).tolist(),
        "null_auc": [float(np.mean(dealt)), float(np.std(dealt, ddof=1))],
    }


def attacked(models: Outputs, *, oracles: Outputs, forgotten: int) -> dict[str, Any]:
    """Both attacks on K models beside as many oracles, with standard errors over the models.

    The gap of the nearest-neighbour attack is the models' mean balanced accuracy less the oracles';
    that of U-LiRA the area less .5, which nothing but retraining need have.
    """
    near = attacks.neighbour(oracles.test, oracles.test_labels, forgotten=forgotten)
    mine, theirs = (told_apart(each, near, forgotten) for each in (models, oracles))
    sent, expected = (shares(each, near, forgotten) for each in (models, oracles))
    return {
        "for_acc": float(models.for_acc.mean()),
        "kept_acc": float(models.kept_acc(forgotten).mean()),
        "share": float(sent.mean()),
        "share_gap": float(sent.mean() - expected.mean()),
        "share_error": error_of_difference(sent, expected),
        "mia_nn": float(mine.mean()),
        "mia_nn_gap": float(mine.mean() - theirs.mean()),
        "mia_nn_error": error_of_difference(mine, theirs),
        **{
            f"u_lira_{key}": value for key, value in u_lira(models.margins, oracles.margins).items()
        },
    }


def told_apart(models: Outputs, near: int, forgotten: int) -> np.ndarray:
    """Balanced accuracy of telling the class from its neighbour by each model's outputs, `[K]`."""
    return np.array(
        [
            attacks.class_profile(
                logits, models.test_labels, forgotten=forgotten, against=(near,), seeds=1
            ).accuracy[0]
            for logits in models.test
        ]
    )


def shares(models: Outputs, near: int, forgotten: int) -> np.ndarray:
    """Of what each model gives kept classes on test images of the class, its neighbour's, `[K]`."""
    logits = models.test[:, models.test_labels == forgotten]
    p = softmax(np.delete(logits, forgotten, axis=2), axis=2)
    return p[:, :, near - (near > forgotten)].mean(1)


def u_lira(unlearned: np.ndarray, oracles: np.ndarray) -> dict[str, Any]:
    """U-LiRA's game on a class: did a model unlearn it, or never see it?

    All images of a class are in a model or none is, so that models, not images, are independent:
    the error is the jackknife's over pairs of an unlearned model and an oracle, the attack made
    anew without each pair.

    Args:
        unlearned: Margins of K models after unlearning, `[K, n]`, at least 4.
        oracles: Margins of as many that never saw the class.

    Returns:
        Area under the curve, its error, and the curve at `CURVE`.
    """
    scores, members = game(unlearned, oracles)
    count, left = len(unlearned), []
    for k in range(count):
        less = game(*(np.delete(each, k, axis=0) for each in (unlearned, oracles)))
        left.append(attacks.auc(*less).value)
    false, true = attacks.roc(scores, members)
    return {
        "auc": float(attacks.auc(scores, members).value),
        "error": float(np.sqrt((count - 1) * np.var(left))),
        "curve": [float(true[np.searchsorted(false, rate, "right") - 1]) for rate in CURVE],
    }


def game(unlearned: np.ndarray, oracles: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Every model in turn under test, the others the shadows: scores, and who unlearned."""
    rows = np.concatenate([unlearned, oracles])
    members = np.repeat([True, False], len(unlearned))[:, None] & np.ones_like(rows, bool)
    return attacks.in_turn(attacks.u_lira, rows, rows, members), members


def error_of_difference(mine: np.ndarray, theirs: np.ndarray) -> float:
    """Standard error of the difference of two means of independent models."""
    return float(np.sqrt(mine.var(ddof=1) / len(mine) + theirs.var(ddof=1) / len(theirs)))
