"""What attacks read of a model's outputs: one number per example, in float64 from logits.

A twin `..._as_published` gives what much-copied code computes under the same name, so that numbers
in papers can be compared with; it is wrong, and its docstring says how.
"""

from typing import Any

import numpy as np
from scipy.special import log_softmax, logsumexp, softmax

from famr_jax.attacks import arrays

_QUIET = np.errstate(invalid="ignore")
"""What is NaN comes from NaN, or from infinity less infinity, and needs no warning."""


@_QUIET
def margin(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The log-odds of the label, log(p_y / (1 - p_y)), which attacks call the scaled confidence.

        phi = z_y - log sum_{c != y} exp z_c

    From logits, so that a probability of 1 - 1e-20 is not taken for 1. NaN where a logit is NaN.

    Args:
        logits: Of one model or more, `[..., n, num_classes]`.
        labels: Class indices, `[n]`.

    Returns:
        One value per example, `[..., n]`.

    Raises:
        ValueError: Fewer than two classes; labels of another length, or that are no classes.
    """
    logits, own = _checked(logits, labels)
    at = np.broadcast_to(own, logits.shape)
    others = logsumexp(np.where(at, -np.inf, logits), axis=-1)
    return np.where(at, logits, 0).sum(-1) - others


@_QUIET
def modified_entropy(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """An entropy that knows the label: 0 where it is surely predicted, large where surely not.

        -(1 - p_y) log p_y - sum_{c != y} p_c log(1 - p_c)

    Args:
        logits: `[..., n, num_classes]`.
        labels: Class indices, `[n]`.

    Returns:
        One value in nats per example, `[..., n]`, >= 0; infinite where the label has no chance.

    Raises:
        ValueError: As `margin`.

    Source: Song and Mittal (arXiv 2003.10595), section 4.
    """
    logits, own = _checked(logits, labels)
    log_p, log_rest = log_softmax(logits, axis=-1), _log_rest(logits)
    terms = np.where(own, -np.exp(log_rest) * log_p, -np.exp(log_p) * log_rest)
    certain = np.where(own, np.exp(log_rest) == 0, np.exp(log_p) == 0)
    return np.where(certain, 0, terms).sum(-1)


@_QUIET
def modified_entropy_as_published(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """What the public code of membership attacks computes in place of `modified_entropy`.

        -sum_c q_c log p_c,    q_c = 1 - p_c for every class c among all labels, else p_c

    It replaces the columns of all labels in every row, and takes log p_c for log(1 - p_c): once
    every class occurs the labels no longer matter.

    Source: the evaluation code of Unlearn-Sparse and SalUn, as it stands in many repositories.
    """
    logits, _ = _checked(logits, labels)
    log_p = np.maximum(log_softmax(logits, axis=-1), np.log(1e-30))
    p = softmax(logits, axis=-1)
    replaced = np.isin(np.arange(logits.shape[-1]), labels)
    return -(np.where(replaced, 1 - p, p) * log_p).sum(-1)


@_QUIET
def zrf(logits: np.ndarray, random_logits: np.ndarray) -> float:
    """How nearly a model predicts like a fresh one: 1 less their mean Jensen-Shannon divergence.

        1 - mean_x [KL(p || m) + KL(q || m)] / 2,    m = (p + q) / 2, in nats

    Args:
        logits: Of the model on the forget set, `[n, num_classes]`.
        random_logits: Of a model with fresh weights, likewise.

    Returns:
        A number between 1 - log 2 and 1; the oracle's is the target, which need not be 1.

    Raises:
        ValueError: Two shapes, or other axes.

    Source: Chundawat et al. (arXiv 2205.08096), equation 5.
    """
    p, q = _pair(logits, random_logits)
    middle = np.logaddexp(p, q) - np.log(2)
    return float(1 - np.mean(_kl(p, middle) + _kl(q, middle)) / 2)


@_QUIET
def zrf_as_published(logits: np.ndarray, random_logits: np.ndarray) -> float:
    """What the public code computes in place of `zrf`.

        1 - mean_x [KL(m || p) + KL(m || q)] / (2 C)

    Both divergences are the other way round, and PyTorch's mean divides by the C classes too.

    Source: the code of arXiv 2205.08096, as it stands in many repositories.
    """
    p, q = _pair(logits, random_logits)
    middle = np.logaddexp(p, q) - np.log(2)
    return float(1 - np.mean(_kl(middle, p) + _kl(middle, q)) / (2 * p.shape[-1]))


def _checked(logits, labels):
    logits = arrays.numbers("logits", logits)
    if logits.ndim < 2 or logits.shape[-1] < 2:
        rule = "must be [..., n, num_classes] of at least 2 classes"
        raise ValueError(f"`logits` {rule}, got shape {list(logits.shape)}.")
    labels = arrays.classes("labels", labels, logits.shape[-2:-1], logits.shape[-1])
    return logits, labels[:, None] == np.arange(logits.shape[-1])


def _log_rest(logits):
    """log(1 - p_c) of each class; the likeliest one's is no difference of nearly equal numbers."""
    top = np.arange(logits.shape[-1]) == np.argmax(logits, axis=-1)[..., None]
    p = np.where(top, 0, softmax(logits, axis=-1))
    rest: Any = logsumexp(np.where(top, -np.inf, logits), axis=-1)  # no pair, unless asked for
    rest = rest - logsumexp(logits, axis=-1)
    return np.where(top, rest[..., None], np.log1p(-p))


def _pair(logits, random_logits):
    logits = arrays.numbers("logits", logits, ndim=2)
    random_logits = arrays.numbers("random_logits", random_logits, ndim=2)
    if logits.shape != random_logits.shape:
        shapes = f"{list(logits.shape)} and {list(random_logits.shape)}"
        raise ValueError(f"`logits` and `random_logits` must have one shape, got {shapes}.")
    return log_softmax(logits, axis=-1), log_softmax(random_logits, axis=-1)


def _kl(log_p, log_q):
    terms = np.exp(log_p) * (log_p - log_q)
    return np.where(np.exp(log_p) == 0, 0, terms).sum(-1)
