"""One class removed from one classifier by every filter, beside classifiers trained without it."""

import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from famr_jax import filters

EPS = 1e-12
"""What a probability of zero counts as in a divergence, as in MPRU's code."""
MASKED = "masked"
PUBLISHED = "MPRU as published"
DEPLOYABLE = "MPRU"
FIRST = "MPRU, removed first"
LAST = "MPRU, removed last"
TILTED = "tilted"


class Outputs(NamedTuple):
    """What a classifier says, and what a filter may know of it.

    Attributes:
        train: Probabilities of training examples, `[n, num_classes]`.
        test: Of test examples, `[m, num_classes]`.
        similarity: Of its classes, `[num_classes, num_classes]`.
    """

    train: np.ndarray
    test: np.ndarray
    similarity: np.ndarray


class Labels(NamedTuple):
    """Classes of the training and of the test examples."""

    train: np.ndarray
    test: np.ndarray


def names(betas: Sequence[float]) -> list[str]:
    """Every filter, the baseline first."""
    return [MASKED, PUBLISHED, DEPLOYABLE, FIRST, LAST, *(f"{TILTED} {beta:g}" for beta in betas)]


def applied(name: str, outputs: Outputs, labels: Labels, removed: int) -> np.ndarray:
    """The test predictions that a filter makes of a classifier's."""
    p = outputs.test
    if name == MASKED:
        return filters.masked(p, removed=removed)
    if name == PUBLISHED:
        return filters.projected_as_published(p, labels.test, removed=removed)
    if name.startswith(TILTED):
        beta = float(name.removeprefix(TILTED))
        return filters.tilted(p, outputs.similarity[removed], removed=removed, beta=beta)
    others = [c for c in range(p.shape[1]) if c != removed]
    order = {DEPLOYABLE: None, FIRST: [removed, *others], LAST: [*others, removed]}[name]
    fitted = filters.fit_projection(outputs.train, labels.train, removed=removed, order=order)
    return filters.projected(p, fitted)


def kl(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    """KL(p || q) of each pair of rows, `[n]`, zeros counted as `EPS`."""
    return np.sum(np.where(p > 0, p * np.log(np.maximum(p, EPS) / np.maximum(q, EPS)), 0), axis=1)


def compare(
    classifier: str,
    removed: int,
    originals: Sequence[Outputs],
    oracles: Sequence[np.ndarray],
    labels: Labels,
    betas: Sequence[float],
) -> list[dict[str, Any]]:
    """A row for each filter and for the original and the oracles, with a number a seed.

    `kl_forget` and `kl_retain` are KL(oracle || model) over test examples of the removed class and
    of the others, averaged over the oracles, all over the kept classes, renormalised: over all of
    them it is infinite for a filter. `_all` are those of all classes. An oracle is compared with
    the others: the floor.

    Args:
        classifier: Its name.
        removed: The class.
        originals: Of each seed.
        oracles: Test probabilities of each, `[m, num_classes]`.
        labels: Of the examples.
        betas: Strengths of the tilt.
    """
    gone = labels.test == removed
    heads = {"classifier": classifier, "removed": removed}

    def measured(pairs):
        found = [_measured(q, others, gone, labels.test) for q, others in pairs]
        return {key: [row[key] for row in found] for key in found[0]}

    def reference(model, pairs):
        whole = measured(pairs)
        kept = [(masked(q), [masked(o) for o in others]) for q, others in pairs]
        ending = {f"{key}_all": whole[key] for key in ("kl_forget", "kl_retain")}
        return heads | {"model": model} | measured(kept) | ending

    def masked(p):
        return filters.masked(p, removed=removed)

    rows = [reference("original", [(outputs.test, oracles) for outputs in originals])]
    if len(oracles) > 1:
        others = [[*oracles[:i], *oracles[i + 1 :]] for i in range(len(oracles))]
        rows.append(reference("oracle", list(zip(oracles, others, strict=True))))
    kept = [masked(p) for p in oracles]
    for name in names(betas):
        timed = [_timed(lambda o=o, n=name: applied(n, o, labels, removed)) for o in originals]
        row = measured([(q, kept) for q, _ in timed])
        rows.append(heads | {"model": name} | row | {"seconds": [s for _, s in timed]})
    return rows


def _measured(q, oracles, gone, labels):
    each = np.mean([kl(oracle, q) for oracle in oracles], axis=0)
    right = q[~gone].argmax(1) == labels[~gone]
    return {
        "kl_forget": float(each[gone].mean()),
        "kl_retain": float(each[~gone].mean()),
        "acc_retain": float(right.mean()),
    }


def _timed(function: Callable[[], Any]) -> tuple[Any, float]:
    begun = time.perf_counter()
    found = function()
    return found, time.perf_counter() - begun
