"""Likelihood-ratio attacks: was an example trained on, by shadow models that were or were not?

All take the log-odds of labels, `margin`, of the model under test and of shadow models. They differ
in the shadows: those of `lira` are as trained, those of `u_lira` and `ruli` are unlearned by the
method under test. With shadows that were not unlearned U-LiRA is plain LiRA, and finds too little.
"""

from collections.abc import Callable

import numpy as np
from scipy.special import logsumexp
from scipy.stats import norm

from famr_jax.attacks import arrays
from famr_jax.types import check_count

LEAST_SHADOWS = 2
"""Shadows on each side of an example, or a Gaussian has no width."""
LEAST_WIDTH = 1e-3
"""Log-odds that differ by less are the same to these attacks: the least width of a density."""


def halves(forget: np.ndarray, *, shadows: int, seed: int = 0) -> np.ndarray:
    """What each shadow model is trained on: a random half of all that holds half of the forget set.

    Shadows come in pairs of complements, so that every example is in every second shadow. All have
    the same number of examples of both kinds, hence one program; of an odd number, one example is
    in neither of a pair. A shadow unlearns `halves & forget` and retains `halves & ~forget`.

    Args:
        forget: The forget set, a mask `[n]`.
        shadows: How many shadows.
        seed: Of the draw.

    Returns:
        Masks, `[shadows, n]`.

    Raises:
        ValueError: Fewer than two examples on a side of the mask, or no shadow.

    Source: The sampling of Hayes et al. (arXiv 2403.01218), section 4, in pairs.
    """
    forget = arrays.mask("forget", forget, np.shape(forget))
    check_count("shadows", shadows)
    if forget.ndim != 1 or min(forget.sum(), (~forget).sum()) < 2:
        counts = f"{forget.sum()} and {(~forget).sum()}"
        raise ValueError(f"`forget` must hold, and leave, 2 examples, got {counts}.")
    generator, found = np.random.default_rng(seed), np.zeros((shadows, len(forget)), bool)
    for first in range(0, shadows, 2):
        for side in (forget, ~forget):
            order = generator.permutation(np.flatnonzero(side))
            half = len(order) // 2
            found[first, order[:half]] = True
            found[first + 1 : first + 2, order[half : 2 * half]] = True
    return found


def u_lira(
    margins: np.ndarray,
    unlearned: np.ndarray,
    members: np.ndarray,
    *,
    used: np.ndarray | None = None,
) -> np.ndarray:
    """U-LiRA's score of each example: high where a model unlearned it rather than never saw it.

        score = log N(phi; IN) - log N(phi; OUT)

    IN are margins of shadows trained on the example that unlearned it by the same method, OUT those
    of shadows that unlearned others and never saw it; a Gaussian each, no narrower than 0.001.

    Args:
        margins: phi of the model under test, `[n]`, or of several, `[..., n]`.
        unlearned: phi of K shadows after unlearning, `[K, n]`. A shadow is trained on a random half
            of all data that holds a random half of the forget set, and unlearns that half.
        members: Whether a shadow was trained on an example, `[K, n]`, boolean.
        used: Which of them densities are fitted to, likewise; all if not given.

    Returns:
        Scores like `margins`; NaN where something is not finite.

    Raises:
        ValueError: Other shapes; fewer than two shadows on a side of an example.

    Source: Hayes et al. (arXiv 2403.01218), section 4.
    """
    return _log_ratio(_gaussian, margins, "unlearned", unlearned, members, used)


def lira(
    margins: np.ndarray,
    trained: np.ndarray,
    members: np.ndarray,
    *,
    used: np.ndarray | None = None,
) -> np.ndarray:
    """LiRA's score of each example: high where a model behaves as if trained on it.

    The formula of `u_lira` with the shadows as they were trained, which knows nothing of the method
    that unlearned the model under test.

    Args:
        margins: phi of the model under test, `[n]`, or of several, `[..., n]`.
        trained: phi of the K shadows before unlearning, `[K, n]`.
        members: As `u_lira`.
        used: As `u_lira`.

    Raises:
        ValueError: As `u_lira`.

    Source: Carlini et al. (arXiv 2112.03570), section 4, online and with a variance per example.
    """
    return _log_ratio(_gaussian, margins, "trained", trained, members, used)


def ruli(
    margins: np.ndarray,
    unlearned: np.ndarray,
    members: np.ndarray,
    *,
    used: np.ndarray | None = None,
) -> np.ndarray:
    """RULI's privacy score of each example: as `u_lira`, by kernel densities in place of Gaussians.

        score = log p(phi; IN) - log p(phi; OUT),    p the mean of Gaussians of width 1

    Its game is that of U-LiRA, unlearned against held out; the paper's ratio p_IN / (p_IN + p_OUT)
    is a monotone function of this score. The width is that of its code, which names none and so
    has scikit-learn's, whatever the spread of the margins. Of its shadows a third is trained on an
    example and keeps it: `used` leaves those out.

    Args:
        margins: As `u_lira`.
        unlearned: As `u_lira`.
        members: As `u_lira`.
        used: As `u_lira`.

    Raises:
        ValueError: As `u_lira`.

    Source: Naderloui et al. (arXiv 2506.13009), game 2, and its code.
    """
    return _log_ratio(_kernels, margins, "unlearned", unlearned, members, used)


def in_turn(
    attack: Callable[..., np.ndarray],
    margins: np.ndarray,
    shadows: np.ndarray,
    members: np.ndarray,
) -> np.ndarray:
    """Scores of every shadow as the model under test, by an attack fitted to the others.

    Pooled they have K n scores, of which `members` says the truth: enough for low rates of false
    positives where one model is not. With the shadow under test one of the other side is left out,
    example by example: else its own side is the smaller one, and with six shadows the area of an
    attack on nothing is not .5 but .37.

    Args:
        attack: `u_lira`, `lira` or `ruli`.
        margins: phi of the K models under test, `[K, n]`: the shadows after unlearning.
        shadows: phi of the same shadows that the attack is fitted to, `[K, n]`.
        members: As `u_lira`.

    Returns:
        Scores, `[K, n]`.

    Raises:
        ValueError: As `u_lira`, of one shadow less on each side.
    """
    shadows = arrays.numbers("shadows", shadows, ndim=2)
    margins = arrays.numbers("margins", margins, ndim=2)
    if margins.shape != shadows.shape:
        shapes = f"{list(margins.shape)} and {list(shadows.shape)}"
        raise ValueError(f"`margins` and `shadows` must have one shape, got {shapes}.")
    members = arrays.mask("members", members, shadows.shape)
    _check_sides(members, ~members, LEAST_SHADOWS + 1)
    partners, rows = _partners(members), np.arange(len(shadows))[:, None]
    return np.stack(
        [
            attack(margins[k], shadows, members, used=(rows != k) & (rows != partners[k]))
            for k in range(len(shadows))
        ]
    )


def _partners(members):
    """For each shadow and example one shadow of the other side, `[K, n]`, in pairs while they last.

    Both of a pair are then scored by the same densities, of which neither has a part.
    """
    found = np.empty(members.shape, int)
    for j, mine in enumerate(members.T):
        inside, outside = np.flatnonzero(mine), np.flatnonzero(~mine)
        found[inside, j] = np.resize(outside, len(inside))
        found[outside, j] = np.resize(inside, len(outside))
    return found


def _log_ratio(density, margins, name, shadows, members, used):
    shadows = arrays.numbers(name, shadows, ndim=2)
    members = arrays.mask("members", members, shadows.shape)
    used = np.ones_like(members) if used is None else arrays.mask("used", used, shadows.shape)
    margins = arrays.numbers("margins", margins)
    if margins.shape[-1:] != shadows.shape[1:]:
        shapes = f"{list(margins.shape)} and {list(shadows.shape)}"
        raise ValueError(f"`margins` and `{name}` must be of the same n examples, got {shapes}.")
    inside, outside = members & used, ~members & used
    _check_sides(inside, outside, LEAST_SHADOWS)
    lost = used & ~np.isfinite(shadows)
    bad = ~np.isfinite(margins) | lost.any(0)
    phi, shadows = np.where(bad, 0, margins), np.where(np.isfinite(shadows), shadows, 0)
    scores = density(phi, shadows, inside) - density(phi, shadows, outside)
    return np.where(bad, np.nan, scores)


def _check_sides(inside, outside, least):
    fewest = min(inside.sum(0).min(), outside.sum(0).min())
    if fewest < least:
        rule = f"must have {least} shadows on each side of every example"
        raise ValueError(f"`members` {rule}, got {fewest}.")


def _gaussian(phi, shadows, chosen):
    count = chosen.sum(0)
    mean = np.where(chosen, shadows, 0).sum(0) / count
    variance = np.where(chosen, (shadows - mean) ** 2, 0).sum(0) / (count - 1)
    return norm.logpdf(phi, mean, np.maximum(np.sqrt(variance), LEAST_WIDTH))


def _kernels(phi, shadows, chosen):
    each = norm.logpdf(phi[..., None, :], shadows)
    weights = np.broadcast_to(chosen, each.shape)
    return logsumexp(each, axis=-2, b=weights) - np.log(chosen.sum(0))
