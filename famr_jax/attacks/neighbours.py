"""MIA-NN, also called CMIA: does a forgotten class still look other than its neighbours?

A retrained model sends images of a class that it never saw to the classes that look like it, in its
own way; an unlearned one often does not. The attack sees probabilities of the classes that are
kept, and tells images of the forgotten class from those of one kept class. It tests a class, not
an example, and only the distance to retrained models means anything.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.special import softmax

from famr_jax.attacks import arrays
from famr_jax.types import check_count

FOLDS = 5


class Profile(NamedTuple):
    """How well the forgotten class is told from each kept class, in the order of `classes`.

    Attributes:
        classes: The kept classes that have enough images, `[k]`.
        accuracy: Balanced accuracy on images left out of the fit, `[k]`.
        error: Its standard error from the numbers of images, `[k]`: .083 of 18 and 18 at chance.
        hits: For each of them how often each image was told right, of the forgotten class first.
    """

    classes: np.ndarray
    accuracy: np.ndarray
    error: np.ndarray
    hits: list[tuple[np.ndarray, np.ndarray]]


class MiaNN(NamedTuple):
    """The attack on one model, beside retrained ones.

    Attributes:
        neighbour: The kept class that retrained models see most in the forgotten one.
        accuracy: Of the model, against the neighbour.
        oracle: Mean of the oracles'.
        gap: The one less the other.
        error: Standard error of the gap over the images, which both saw.
        worst: The kept class with the largest gap in size, and that gap.
        resolved: Whether the gap is more than two standard errors.
        profile: Of the model.
        oracles: Profiles of the oracles.
    """

    neighbour: int
    accuracy: float
    oracle: float
    gap: float
    error: float
    worst: tuple[int, float]
    resolved: bool
    profile: Profile
    oracles: list[Profile]


def neighbour(oracle_logits: Sequence[np.ndarray], labels: np.ndarray, *, forgotten: int) -> int:
    """The kept class that retrained models see most in images of the forgotten one.

        argmax_{c != f} mean over oracles and images x of class f of p(c | x)

    Args:
        oracle_logits: Of each retrained model on test images, `[n, num_classes]`; C of them even if
            nothing was trained for the forgotten class.
        labels: Of those images, `[n]`.
        forgotten: The class f.

    Raises:
        ValueError: No oracle, or one that gives NaN; no image of the class; other shapes.
    """
    if not len(oracle_logits):
        raise ValueError("`oracle_logits` must hold at least 1 model, got 0.")
    checked = [_checked(each, labels, forgotten) for each in oracle_logits]
    mine = checked[0][1] == forgotten
    means = np.mean([p[mine].mean(0) for p, _ in checked], axis=0)
    if not np.isfinite(means).all():
        raise ValueError(f"`oracle_logits` must be finite on class {forgotten}, got NaN.")
    return int(np.argmax(np.where(np.arange(len(means)) == forgotten, -np.inf, means)))


def class_profile(
    logits: np.ndarray,
    labels: np.ndarray,
    *,
    forgotten: int,
    against: Sequence[int] | None = None,
    seeds: int = 3,
) -> Profile:
    """Tells the forgotten class from each kept one by a model's probabilities of kept classes.

    A linear support vector machine (C=1, balanced) on all probabilities but the forgotten class's,
    by five-fold cross-validation over all test images of the two classes, its splits drawn anew
    for each seed. A kept class with fewer than five images is left out.

    Args:
        logits: Of the model on test images, `[n, num_classes]`.
        labels: Of those images, `[n]`.
        forgotten: The forgotten class.
        against: The kept classes to tell it from; all if not given.
        seeds: Cross-validations to average.

    Raises:
        ValueError: Fewer than three classes, or five images of the forgotten one or of a class
            that `against` names; other shapes.

    Source: Ebrahimpour-Boroojeny et al. (arXiv 2506.20893). Their kernel and constants are not
        known: these are ours.
    """
    check_count("seeds", seeds)
    p, labels = _checked(logits, labels, forgotten)
    seen = np.delete(p, forgotten, axis=1)
    mine = seen[labels == forgotten]
    if len(mine) < FOLDS:
        raise ValueError(f"`labels` must hold {FOLDS} of class {forgotten}, got {len(mine)}.")
    counts = np.bincount(labels, minlength=p.shape[1])
    kept = np.flatnonzero((counts >= FOLDS) & (np.arange(p.shape[1]) != forgotten))
    if against is not None:
        if not len(against):
            raise ValueError("`against` must name at least 1 class, got none.")
        for c in against:
            if c not in kept:
                rule = f"must be classes other than {forgotten} with {FOLDS} images"
                raise ValueError(f"`against` {rule}, got {c!r}.")
        kept = np.array(against, int)
    hits = [_hits(mine, seen[labels == c], seeds) for c in kept]
    return Profile(
        kept,
        np.array([(a.mean() + b.mean()) / 2 for a, b in hits]),
        np.array([np.hypot(_error(a), _error(b)) / 2 for a, b in hits]),
        hits,
    )


def mia_nn(
    logits: np.ndarray,
    oracle_logits: Sequence[np.ndarray],
    labels: np.ndarray,
    *,
    forgotten: int,
    seeds: int = 3,
) -> MiaNN:
    """The attack on a model beside that on retrained ones: the distance between both is the leak.

    Args:
        logits: As `class_profile`.
        oracle_logits: As `neighbour`.
        labels: Of the test images, `[n]`.
        forgotten: The forgotten class.
        seeds: As `class_profile`.

    Raises:
        ValueError: As both; too few images of the neighbour.

    Source: As `class_profile`.
    """
    near = neighbour(oracle_logits, labels, forgotten=forgotten)
    profile = class_profile(logits, labels, forgotten=forgotten, seeds=seeds)
    oracles = [
        class_profile(each, labels, forgotten=forgotten, seeds=seeds) for each in oracle_logits
    ]
    if near not in profile.classes:
        count = int(np.sum(np.asarray(labels) == near))
        raise ValueError(f"`labels` must hold {FOLDS} of the neighbour {near}, got {count}.")
    at = int(np.flatnonzero(profile.classes == near)[0])
    means = np.mean([each.accuracy for each in oracles], axis=0)
    gaps = profile.accuracy - means
    worst = int(np.argmax(np.abs(gaps)))
    differences = [
        mine - np.mean([each.hits[at][side] for each in oracles], axis=0)
        for side, mine in enumerate(profile.hits[at])
    ]
    error = np.hypot(*(each.std(ddof=1) / np.sqrt(len(each)) for each in differences)) / 2
    return MiaNN(
        near,
        float(profile.accuracy[at]),
        float(means[at]),
        float(gaps[at]),
        float(error),
        (int(profile.classes[worst]), float(gaps[worst])),
        bool(abs(gaps[at]) > 2 * error),
        profile,
        oracles,
    )


def _checked(logits, labels, forgotten):
    logits = arrays.numbers("logits", logits, ndim=2)
    if logits.shape[1] < 3:
        raise ValueError(f"`logits` must be of at least 3 classes, got {logits.shape[1]}.")
    labels = arrays.classes("labels", labels, logits.shape[:1], logits.shape[1])
    if not np.any(labels == forgotten):
        raise ValueError(f"`forgotten` must be a class with images, got {forgotten!r}.")
    with np.errstate(invalid="ignore"):  # what is not finite makes its classes NaN
        return softmax(logits, axis=1), labels


def _hits(mine, others, seeds):
    """How often each image of either class was told right, over the seeds."""
    from sklearn.model_selection import StratifiedKFold
    from sklearn.svm import SVC

    x, truth = np.concatenate([mine, others]), np.repeat([1, 0], [len(mine), len(others)])
    if not np.isfinite(x).all():
        return np.full(len(mine), np.nan), np.full(len(others), np.nan)
    right = np.zeros(len(x))
    for seed in range(seeds):
        splits = StratifiedKFold(FOLDS, shuffle=True, random_state=seed)
        for fitted, held in splits.split(x, truth):
            attacker = SVC(C=1, kernel="linear", class_weight="balanced")
            attacker.fit(x[fitted], truth[fitted])
            right[held] += attacker.predict(x[held]) == truth[held]
    return right[: len(mine)] / seeds, right[len(mine) :] / seeds


def _error(hits):
    """Standard error of a share of right answers; one more of each kind, so that it is never 0."""
    n = len(hits)
    share = (hits.sum() + 1) / (n + 2)
    return np.sqrt(share * (1 - share) / n)
