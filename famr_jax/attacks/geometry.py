"""How the classes lie in a model's features: spread within them, distance between them."""

from typing import NamedTuple

import numpy as np


class Geometry(NamedTuple):
    """How the classes lie in a model's features, by their means and spreads.

    Attributes:
        collapse: tr(S_W S_B^+) / C, spread within the classes against that between their means
            (NC1); 0 where every image lies at the mean of its class.
        norms: Deviation of the lengths of the centred means over their average (NC2); 0 if equal.
        angles: Mean of |cos + 1 / (C - 1)| over pairs of centred means (NC2); 0 for a simplex.
        apart: Of each class, `[C]`: the distance of its mean to that of the nearest class, over the
            root mean squared distance of both classes' images to their own means.
        nearest: Which class is the nearest by that measure, `[C]`.
    """

    collapse: float
    norms: float
    angles: float
    apart: np.ndarray
    nearest: np.ndarray


def class_geometry(features: np.ndarray, labels: np.ndarray) -> Geometry:
    """Says how far the classes are apart in a model's features, and how close to neural collapse.

        m_c = mean of class c,  m = mean_c m_c,  S_W = mean_i (h_i - m_{y_i})(h_i - m_{y_i})'
        S_B = mean_c (m_c - m)(m_c - m)',  w_c = mean over class c of |h_i - m_c|^2
        apart_c = min over c' of |m_c - m_c'| / sqrt((w_c + w_c') / 2)

    None of them changes under rotations, shifts and scales.

    Args:
        features: h, `[n, dim]`.
        labels: y, `[n]`; classes without an example are not seen, and C counts the others, sorted.

    Raises:
        ValueError: Other shapes, fewer than two classes, means that coincide or lie at the centre
            of all, or classes in which no image differs from another.

    Source: Papyan, Han, Donoho, "Prevalence of neural collapse" (PNAS 2020), NC1 and NC2; `apart`
        is ours.
    """
    h, labels = np.asarray(features, np.float64), np.asarray(labels)
    if h.ndim != 2 or labels.shape != h.shape[:1]:
        got = f"{list(h.shape)} and {list(labels.shape)}"
        raise ValueError(f"`features` and `labels` must be [n, dim] and [n], got {got}.")
    if not np.isfinite(h).all():
        raise ValueError(f"`features` must be finite, got {h[~np.isfinite(h)][0]}.")
    classes, index = np.unique(labels, return_inverse=True)
    count = len(classes)
    if count < 2:
        raise ValueError(f"`labels` must be of at least 2 classes, got {count}.")
    means = np.stack([h[index == c].mean(axis=0) for c in range(count)])
    inner, centred = h - means[index], means - means.mean(axis=0)
    squares = np.sum(inner**2, axis=1)
    within = np.array([squares[index == c].mean() for c in range(count)])
    lengths = np.linalg.norm(centred, axis=1)
    distance = np.linalg.norm(means[:, None] - means, axis=-1)
    least = distance[~np.eye(count, dtype=bool)].min()
    if not least > 0 or not within.max() > 0:
        rule = "must differ between the means of classes and within a class"
        raise ValueError(f"`features` {rule}, got {least:g} and {within.max():g}.")
    if not lengths.min() > 0:
        where = classes[lengths.argmin()]
        raise ValueError(f"`features` must have no class mean at their centre, got {where}'s.")
    # S_B has rank C - 1 at most; beyond it the singular values of the means are rounding.
    _, values, axes = np.linalg.svd(centred, full_matrices=False)
    kept = values[: count - 1] > max(h.shape[1], count) * np.finfo(float).eps * values[0]
    axes, values = axes[: count - 1][kept], values[: count - 1][kept]
    collapse = np.sum(np.mean((inner @ axes.T) ** 2, axis=0) / values**2)
    pairs = np.triu_indices(count, 1)
    cosines = (centred @ centred.T / np.outer(lengths, lengths))[pairs]
    with np.errstate(divide="ignore"):
        ratio = distance / np.sqrt((within[:, None] + within) / 2)
    np.fill_diagonal(ratio, np.inf)
    return Geometry(
        float(collapse),
        float(lengths.std() / lengths.mean()),
        float(np.mean(np.abs(cosines + 1 / (count - 1)))),
        ratio.min(axis=1),
        classes[ratio.argmin(axis=1)],
    )
