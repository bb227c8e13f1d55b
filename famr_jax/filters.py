"""Filters of a classifier's outputs that remove a class: probabilities in, probabilities out.

They change no weight: what the class has left in features and logits stays there, so that a filter
keeps outputs from a user and forgets nothing. Arrays are those of any `predict_proba`.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from famr_jax.types import check_labels, check_number

TOLERANCE = 1e-10
"""Length below which a residual of the orthogonalisation is none, as in MPRU's code."""


def masked(p: np.ndarray, *, removed: int) -> np.ndarray:
    """Gives the removed class's share to the others in proportion: the baseline to beat.

        q_r = 0,    q_c = p_c / (1 - p_r)

    A row that has nothing else gets a uniform distribution over the other classes.

    Args:
        p: Probabilities, `[n, num_classes]`.
        removed: The class r.

    Raises:
        ValueError: Rows that are no distributions; a class that there is not.
    """
    p = _checked(p, removed)
    return _normalised(_without(p, removed), removed)


def tilted(
    p: np.ndarray, similarity: np.ndarray, *, removed: int, beta: float = 10.0
) -> np.ndarray:
    """Gives the removed class's share to the others, those that are similar to it favoured.

        q_r = 0,    q_c = p_c + p_r t_c,    t_c proportional to p_c exp(beta s_c) over c != r

    A row of the removed class, p_r near 1, gets `targets.Tilted`, others keep what they have; at
    beta 0 it is `masked`. To tilt the removed share alone is our choice: the source has no filter.

    Args:
        p: Probabilities, `[n, num_classes]`.
        similarity: s, of each class to the removed one, `[num_classes]`: a row of
            `targets.head_similarity`.
        removed: The class r.
        beta: Strength of the tilt.

    Raises:
        ValueError: As of `masked`; another number of similarities, or one that is not finite.

    Source: TRW (arXiv 2506.20893), its target.
    """
    p, s = _checked(p, removed), np.asarray(similarity, np.float64)
    check_number("beta", beta)
    if s.shape != p.shape[1:] or not np.isfinite(s).all():
        rule = f"must be {p.shape[1]} finite numbers, one a class"
        raise ValueError(f"`similarity` {rule}, got {s.tolist()}.")
    rest = _without(p, removed)
    tilt = beta * (s - np.delete(s, removed).max())
    tilt[removed] = 0  # its share is zero, and its own similarity shall not overflow
    return rest + p[:, [removed]] * _normalised(rest * np.exp(tilt), removed)


class Projection(NamedTuple):
    """What MPRU knows of a classifier before it filters; see `fit_projection`.

    Attributes:
        removed: The class r.
        direction: e_r, `[num_classes]`: what of the class's mean prediction the others, as far as
            they came before it, do not have; a unit vector, or zeros.
        profiles: Where the removed share of a row of each group goes, `[num_classes,
            num_classes]`, a distribution over the other classes.
    """

    removed: int
    direction: np.ndarray
    profiles: np.ndarray


def fit_projection(
    p: np.ndarray, groups: np.ndarray, *, removed: int, order: Sequence[int] | None = None
) -> Projection:
    """Fits MPRU's projection and redistribution to the predictions on some examples.

        a_c = mean of p over group c,    e_0, e_1, ... = Gram-Schmidt of a in `order`
        v = |p - (p . e_r) e_r| / sum,   profile_c = mean of v over group c, without r, normalised

    Args:
        p: Probabilities, `[n, num_classes]`; of training images for a filter that can be deployed.
        groups: A class of each example, `[n]`: its label, or its predicted class.
        removed: The class r.
        order: All classes in the order of the orthogonalisation; that of their indices, as in the
            authors' code, if not given. Only the classes before r matter: with r first e_r is a_r,
            with r last, as for the class that was learned last, what no other has.

    Raises:
        ValueError: As of `masked`; groups that are no classes; an order that is no permutation.

    Source: MPRU (arXiv 2510.26230), steps 1, 2 and 4 of its code.
    """
    p = _checked(p, removed)
    count = p.shape[1]
    groups = _groups(groups, p)
    order = list(range(count)) if order is None else [int(c) for c in order]
    if sorted(order) != list(range(count)):
        raise ValueError(f"`order` must name each of the {count} classes once, got {order}.")
    means = _means(p, groups)
    basis: list[np.ndarray] = []
    direction = np.zeros(count)
    for c in order[: order.index(removed) + 1]:
        direction = means[c].copy()
        for known in basis:
            direction -= (direction @ known) * known
        length = np.linalg.norm(direction)
        direction = direction / length if length > TOLERANCE else np.zeros(count)
        basis.append(direction)
    left = _projected(p, direction)
    return Projection(
        removed, direction, _normalised(_without(_means(left, groups), removed), removed)
    )


def projected(p: np.ndarray, fitted: Projection, groups: np.ndarray | None = None) -> np.ndarray:
    """Filters predictions by MPRU: what is left on the class goes to the profile of the group.

        v = |p - (p . e_r) e_r| / sum
        q_r = 0,    q_c proportional to v_r profile_c + (1 - v_r) p_c / (1 - p_r)

    Where e_r is the class's own axis v_r is 0, and this is `masked`.

    Args:
        p: Probabilities, `[n, num_classes]`.
        fitted: Of `fit_projection`.
        groups: A class of each example, `[n]`; the predicted one if not given.

    Raises:
        ValueError: As of `masked`; groups that are no classes.

    Source: MPRU (arXiv 2510.26230), steps 3 and 5 of its code, which adds 1e-12 to 1 - p_r.
    """
    removed = fitted.removed
    p = _checked(p, removed)
    if fitted.direction.shape != p.shape[1:]:
        rule = f"must have the {len(fitted.direction)} classes of `fitted`"
        raise ValueError(f"`p` {rule}, got {p.shape[1]}.")
    groups = p.argmax(1) if groups is None else _groups(groups, p)
    kept = _projected(p, fitted.direction)[:, [removed]]
    q = kept * fitted.profiles[groups] + (1 - kept) * _normalised(_without(p, removed), removed)
    return _normalised(q, removed)


def projected_as_published(p: np.ndarray, labels: np.ndarray, *, removed: int) -> np.ndarray:
    """MPRU as its authors ran it: fitted to the images it filters, grouped by their true labels.

    No one who filters has the labels; `fit_projection` on training images and `projected` by the
    predicted class need none.

    Args:
        p: Probabilities on test images, `[n, num_classes]`.
        labels: Their true classes, `[n]`.
        removed: The class.

    Raises:
        ValueError: As of `fit_projection`.

    Source: MPRU (arXiv 2510.26230), its code.
    """
    return projected(p, fit_projection(p, labels, removed=removed), labels)


def _checked(p, removed):
    p = np.asarray(p, np.float64)
    if p.ndim != 2 or p.shape[1] < 2:
        raise ValueError(f"`p` must be [n, num_classes >= 2], got {list(p.shape)}.")
    if not (np.isfinite(p).all() and (p >= 0).all() and np.allclose(p.sum(1), 1, atol=1e-3)):
        raise ValueError("`p` must be probabilities, rows >= 0 that sum to 1, got others.")
    if not isinstance(removed, int | np.integer) or not 0 <= removed < p.shape[1]:
        raise ValueError(f"`removed` must be a class of {p.shape[1]}, got {removed!r}.")
    return p / p.sum(1, keepdims=True)  # those of float32 sum to 1 within 1e-7 only


def _groups(groups, p):
    groups = np.asarray(groups)
    if groups.shape != (len(p),):
        raise ValueError(
            f"`groups` must be a class of each of {len(p)} rows, got {list(groups.shape)}."
        )
    try:
        check_labels(groups, p.shape[1])
    except ValueError as error:
        raise ValueError(str(error).replace("`labels`", "`groups`")) from None
    return groups


def _means(values, groups):
    """The mean row of each group, `[num_classes, num_classes]`; zeros of a group without rows."""
    member = groups[:, None] == np.arange(values.shape[1])
    return member.T @ values / np.maximum(member.sum(0), 1)[:, None]


def _projected(p, direction):
    left = np.abs(p - (p @ direction)[:, None] * direction)
    total = left.sum(1, keepdims=True)
    return np.divide(left, total, out=np.zeros_like(left), where=total > TOLERANCE)


def _without(p, removed):
    rest = p.copy()
    rest[:, removed] = 0
    return rest


def _normalised(rest, removed):
    """Rows that sum to 1; a row of zeros becomes uniform over all classes but the removed one."""
    total = rest.sum(1, keepdims=True)
    even = np.full(rest.shape[1], 1 / (rest.shape[1] - 1))
    even[removed] = 0
    return np.where(total > 0, rest / np.where(total > 0, total, 1), even)
