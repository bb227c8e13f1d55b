"""How alike two models' features are, up to a rotation and a scale."""

import numpy as np

from famr_jax.attacks import arrays


def unbiased_hsic(features: np.ndarray, other_features: np.ndarray) -> float:
    """Dependence of two models' features of the same examples, without the bias of a small sample.

    With K = X X' and L = Y Y', their diagonals set to 0,

        HSIC = [tr(K L) + 1'K1 1'L1 / ((n - 1)(n - 2)) - 2 1'KL1 / (n - 2)] / (n (n - 3))

    taken from the features themselves, in O(n d^2) time and without an n x n matrix, in float64. It
    is 0 on average for features that are independent, and may then fall below.

    Args:
        features: X, `[n, dim]`.
        other_features: Y, `[n, other dim]`, of the same examples in the same order.

    Raises:
        ValueError: Fewer than four examples, other examples in the two, other shapes, or numbers
            that are not finite.

    Source: Song et al., "Feature selection via dependence maximization", JMLR 13 (2012), eq. 5.
    """
    x, y = _centred("features", features), _centred("other_features", other_features)
    if len(x) != len(y):
        raise ValueError(f"`other_features` must be of {len(x)} examples, got {len(y)}.")
    n = len(x)
    # Centred, so that sums over rows of X X' vanish and what is left is its diagonal's.
    squares = [np.sum(each**2, axis=1) for each in (x, y)]
    traces = np.sum((x.T @ y) ** 2) - squares[0] @ squares[1]
    totals = [-np.sum(each) for each in squares]
    both = squares[0] @ squares[1]
    sums = traces + totals[0] * totals[1] / ((n - 1) * (n - 2)) - 2 * both / (n - 2)
    return float(sums / (n * (n - 3)))


def cka(features: np.ndarray, other_features: np.ndarray) -> float:
    """Debiased linear centred kernel alignment of two models' features of the same examples.

        CKA = HSIC(X, Y) / sqrt(HSIC(X, X) HSIC(Y, Y)),    HSIC by `unbiased_hsic`

    1 for features that are rotations, scalings and shifts of one another, about 0 for independent
    ones, also slightly below. The biased estimator tends to 1 where there are fewer examples than
    features.

    Args:
        features: X, `[n, dim]`.
        other_features: Y, `[n, other dim]`, of the same examples in the same order.

    Raises:
        ValueError: As `unbiased_hsic`; features that vary too little to be compared.

    Source: Kornblith et al., "Similarity of neural network representations revisited" (ICML 2019),
        debiased as in Nguyen, Raghu, Kornblith (ICLR 2021), eq. 3.
    """
    both = unbiased_hsic(features, other_features)
    own = [unbiased_hsic(each, each) for each in (features, other_features)]
    for name, value in zip(("features", "other_features"), own, strict=True):
        if not value > 0:
            rule = "must vary, with a positive `unbiased_hsic` of its own"
            raise ValueError(f"`{name}` {rule}, got {value:g}.")
    return both / float(np.sqrt(own[0] * own[1]))


def _centred(name, features):
    """In float64, less its mean, which leaves the unbiased estimator as it is."""
    x = arrays.numbers(name, features, ndim=2)
    if len(x) < 4:
        raise ValueError(f"`{name}` must be of at least 4 examples, got {len(x)}.")
    if not np.isfinite(x).all():
        raise ValueError(f"`{name}` must be finite, got {x[~np.isfinite(x)][0]}.")
    centred = x - x.mean(axis=0)
    # What differs by rounding alone does not vary.
    return np.where(np.abs(centred) > len(x) * np.finfo(float).eps * np.abs(x), centred, 0)
