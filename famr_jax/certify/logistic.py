"""Certified removal from L2-regularised logistic regression: one Newton step, a bound, and noise.

One regression a head on shared inputs, labels +-1: binary, or one against the rest for each class;
the inputs may be the frozen features of a network that never saw what is to be removed. Each head
minimises, over the n examples that it retains,

    L(w) = sum_i log(1 + exp(-s_i w.x_i)) + (l2 n / 2) |w|^2 + b.w

Removing examples moves w to w + H^-1 D: D the removed terms' gradient at w with their share of the
ridge, H the Hessian over what remains. What is left of the gradient is (H_path - H) H^-1 D. With
v = H^-1 D, and sigma' of slope at most CURVE = 1/(6 sqrt 3), row i of the difference is at most
t CURVE |x_i.v| at the fraction t of the step, 1/2 on average, so

    |grad L(w + v)| <= |grad L(w)| + CURVE/2 |X| |(x_i.v)^2|

|X| the spectral norm of the retained inputs. Bounds add up over a stream; divided by l2 n they
bound the distance to the retrained weights, L being strongly convex.

Noise hides that distance. Two Gaussians whose means are mu standard deviations apart have a log
density ratio N(+-mu^2/2, mu^2), hence P(A) <= e^epsilon Q(A) + delta for every event exactly when

    delta >= Phi(mu/2 - epsilon/mu) - e^epsilon Phi(-mu/2 - epsilon/mu)

which grows with mu: `gaussian_shift` inverts it. (Guo et al. take mu = epsilon/c with delta = 1.5
exp(-c^2/2). For delta of 1e-2 to 1e-8 that is safe up to epsilon 7 and false from epsilon 10.)

- noise "output": w is fitted with b = 0 and stays secret; a release adds N(0, sigma^2). The shift
  is the weights' distance, at most spent/(l2 n). Every constant is proved: this is certified.
- noise "objective": b ~ N(0, sigma^2) is drawn before the fit, as by Guo et al. The shift is the
  gradient left, at most spent. Their theorem takes it as independent of b, and it is a function of
  b: one of the same length that always points to 0 breaks the promise. So this is not called
  certified, and `privacy_loss` gives the exact log density ratio at a draw.

Either promise is of one released model, up to rounding, for requests made blind to earlier noise.

Source: Guo et al. (arXiv 1911.03030), section 3; Balle and Wang (arXiv 1805.06530), theorem 8.
"""

import math
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.optimize
import scipy.stats
from jax import Array

from famr_jax.minimise import repeat
from famr_jax.types import check_key, check_labels, check_number, pytree, static

CURVE = 1 / (6 * math.sqrt(3))
"""Largest slope of sigma', the curvature of the logistic loss; reached at +-log(2 + sqrt 3)."""

TOL, MAX_STEPS = 1e-13, 200


@pytree
class Fitted:
    """Weights that examples can be removed from.

    Attributes:
        weights: One row a head, `[heads, dim]`; secret with noise "output".
        b: The noise in the objective, `[heads, dim]`; zero with noise "output".
        retained: Which examples the weights may still know, `[n]`.
        spent: Bound on each head's gradient of the objective on what is retained, `[heads]`.
        l2: Ridge of the mean objective.
        sigma: Standard deviation of the noise.
        noise: Where the noise goes, "objective" or "output".
    """

    weights: Array
    b: Array
    retained: Array
    spent: Array
    l2: float
    sigma: float
    noise: Literal["objective", "output"] = static()

    @property
    def distance(self) -> float:
        """Bound on the distance of all weights to those refitted on what is retained."""
        return float(jnp.linalg.norm(self.spent) / (self.l2 * jnp.sum(self.retained)))


def fit(
    x: Array,
    signs: Array,
    *,
    l2: float,
    sigma: float,
    noise: Literal["objective", "output"] = "output",
    retained: Array | None = None,
    key: Array,
) -> Fitted:
    """Fits every head by damped Newton steps; what gradient is left counts as spent.

    Args:
        x: Inputs, `[n, dim]`, float64, a column of ones among them if there is to be a bias.
        signs: Labels +-1, `[n, heads]`; see `one_vs_rest`.
        l2: Ridge of the mean objective, over all of w.
        sigma: Standard deviation of the noise.
        noise: "objective" or "output"; the module says what either promises.
        retained: Mask of the examples to fit, `[n]`; all if not given.
        key: PRNG key of the noise in the objective.

    Raises:
        ValueError: Inputs that are not float64 or not finite, shapes that do not agree, labels
            other than +-1, `l2` or `sigma` not positive, an unknown `noise`, no example.
    """
    check_key(key)
    check_number("l2", l2, above=0)
    check_number("sigma", sigma, above=0)
    if noise not in ("objective", "output"):
        raise ValueError(f"`noise` must be 'objective' or 'output', got {noise!r}.")
    x, signs = _check_data(x, signs)
    retained = jnp.ones(len(x), bool) if retained is None else _mask("retained", retained, len(x))
    drawn = sigma * jax.random.normal(key, (signs.shape[1], x.shape[1]), x.dtype)
    b = drawn if noise == "objective" else jnp.zeros_like(drawn)
    weights, left = _fit(x, signs, b, retained, l2)
    return Fitted(weights, b, retained, left, l2, sigma, noise)


class Removed(NamedTuple):
    """What one removal gives.

    Attributes:
        fitted: The weights after it, and the sum of the bounds so far.
        bound: This removal's bound on each head's gradient, `[heads]`.
        residual: The gradient that is really there, all removals together, `[heads]`.
    """

    fitted: Fitted
    bound: Array
    residual: Array


def remove(fitted: Fitted, x: Array, signs: Array, rows: Array, *, settle: bool = False) -> Removed:
    """Removes examples by one Newton step. Whether the promise still stands, `account` says.

    Args:
        fitted: From `fit`, or from an earlier removal.
        x: The inputs of the fit.
        signs: The labels of the fit.
        rows: Mask of the examples to remove, `[n]`.
        settle: Step on the whole gradient of what is retained in place of D, for one pass more: it
            undoes what earlier removals left, and only this one's bound counts as spent.

    Raises:
        ValueError: Inputs that `fit` refuses, no row, a row that is not retained, or no row left.
    """
    x, signs = _check_data(x, signs)
    rows = _mask("rows", rows, len(x))
    if jnp.any(rows & ~fitted.retained):
        raise ValueError("`rows` must be retained so far, got one that is not.")
    if not jnp.any(fitted.retained & ~rows):
        raise ValueError("`rows` must leave an example, got all that are retained.")
    return _remove(fitted, x, signs, rows, settle=settle)


class Account(NamedTuple):
    """What a promise has left.

    Attributes:
        epsilon: How far the promise lets the log density ratio go.
        delta: In what share of the draws the promise may break.
        sigma: Standard deviation of the noise.
        budget: How large the sum of the bounds may be, as a gradient norm over all heads.
        spent: How large it is.
        certified: Whether the promise stands and every constant of it is proved.
        advice: What to do, in words.
    """

    epsilon: float
    delta: float
    sigma: float
    budget: float
    spent: float
    certified: bool
    advice: str

    @property
    def remaining(self) -> float:
        """What is left of the budget; negative once it is overdrawn."""
        return self.budget - self.spent

    @property
    def stands(self) -> bool:
        """Whether the spent part is within the budget."""
        return self.remaining >= 0


def account(fitted: Fitted, *, epsilon: float, delta: float) -> Account:
    """What is left before the promise (epsilon, delta) breaks and the model must be retrained.

    Raises:
        ValueError: `epsilon` negative, or `delta` outside [1e-12, 1).
    """
    budget = gaussian_shift(epsilon, delta) * float(fitted.sigma)
    if fitted.noise == "output":
        budget *= float(fitted.l2 * jnp.sum(fitted.retained))
    spent = float(jnp.linalg.norm(fitted.spent))
    stands = spent <= budget
    certified = stands and fitted.noise == "output"
    advice = "release" if stands else "the budget is spent: retrain on what is retained"
    return Account(epsilon, delta, float(fitted.sigma), budget, spent, certified, advice)


def release(fitted: Fitted, *, key: Array) -> Array:
    """The weights that may be shown, `[heads, dim]`; a fresh key for each release."""
    check_key(key)
    if fitted.noise == "objective":
        return fitted.weights
    noise = jax.random.normal(key, fitted.weights.shape, fitted.weights.dtype)
    return fitted.weights + fitted.sigma * noise


def gaussian_delta(shift: float, epsilon: float) -> float:
    """Smallest delta for which N(0, 1) and N(shift, 1) are (epsilon, delta)-indistinguishable.

    Raises:
        ValueError: `shift` or `epsilon` negative or not finite.
    """
    check_number("shift", shift, least=0)
    check_number("epsilon", epsilon, least=0)
    if shift == 0:
        return 0.0
    near, far = shift / 2 - epsilon / shift, -shift / 2 - epsilon / shift
    # e^epsilon alone would overflow.
    return float(scipy.stats.norm.cdf(near) - np.exp(epsilon + scipy.stats.norm.logcdf(far)))


def gaussian_shift(epsilon: float, delta: float) -> float:
    """Largest distance of means, in standard deviations, that (epsilon, delta) allows.

    Raises:
        ValueError: `epsilon` negative, or `delta` outside [1e-12, 1).
    """
    if not 1e-12 <= delta < 1:
        raise ValueError(f"`delta` must be in [1e-12, 1), got {delta!r}.")

    # `gaussian_delta` rounds by 1e-16; a root on the far side of that would promise too much.
    def excess(shift):
        return gaussian_delta(shift, epsilon) - (delta - 1e-14)

    high = 1.0
    while excess(high) < 0:
        high *= 2
    root: Any = scipy.optimize.brentq(excess, 0.0, high, xtol=1e-15)  # no pair, unless asked for
    return float(root)


def one_vs_rest(labels: Array, num_classes: int) -> Array:
    """Labels +-1 of one head for each class, `[n, num_classes]`, float64.

    Raises:
        ValueError: A label that is no class.
    """
    check_labels(labels, num_classes)
    return jnp.where(labels[:, None] == jnp.arange(num_classes), 1.0, -1.0)


def privacy_loss(fitted: Fitted, x: Array, signs: Array, removals: Array) -> Array:
    """Log density ratio of removing and of retraining, at the weights that removing gives.

    Exact, by the change of variables b -> w -> w after the removals, where that is one to one.
    Below epsilon at all draws of the noise but a share delta, the promise holds in this direction.

    Args:
        fitted: From `fit` with noise "objective".
        x: Inputs of the fit.
        signs: Labels of the fit.
        removals: Masks in order, `[steps, n]`.

    Returns:
        In nats, `[heads]`; that of all heads together is the sum, their noise being independent.

    Raises:
        ValueError: Noise "output", whose densities are other ones.
    """
    if fitted.noise != "objective":
        raise ValueError(f"`noise` must be 'objective', got {fitted.noise!r}.")
    return _privacy_losses(fitted, x, signs, jnp.asarray(removals))


# Heads go through `lax.map`: under `vmap`, batched LAPACK calls that XLA runs side by side can wait
# for each other on two cores.


@jax.jit
def _fit(x, signs, b, retained, l2):
    def head(each):
        s, b = each

        def gradient(w):
            return _gradient(w, x, s, retained, l2) + b

        def move(w, grad):
            step = -jnp.linalg.solve(_hessian(w, x, s, retained, l2), grad)
            # The damping of self-concordance: no step overshoots, and the last ones are whole.
            reach = jnp.max(jnp.abs(x @ step) * retained)
            return w + step * jnp.where(reach > 0, jnp.log1p(reach) / reach, 1)

        start, target = jnp.zeros_like(b), TOL * len(x)
        w, grad, _ = repeat(gradient, move, start, target=target, max_steps=MAX_STEPS)
        return w, jnp.linalg.norm(grad)

    return jax.lax.map(head, (signs.T, b))


@partial(jax.jit, static_argnames="settle")
def _remove(fitted, x, signs, rows, *, settle):
    keep = fitted.retained & ~rows
    norm = jnp.sqrt(jnp.linalg.eigvalsh((x.T * keep) @ x)[-1])

    def head(each):
        w, b, s = each
        whole = -_gradient(w, x, s, keep, fitted.l2) - b
        removed = whole if settle else _gradient(w, x, s, rows, fitted.l2)
        v, short = _newton_step(w, x, s, keep, removed, fitted.l2)
        bound = CURVE / 2 * norm * jnp.linalg.norm((x @ v) ** 2 * keep) + short
        return w + v, bound, jnp.linalg.norm(_gradient(w + v, x, s, keep, fitted.l2) + b)

    weights, bound, residual = jax.lax.map(head, (fitted.weights, fitted.b, signs.T))
    spent = bound if settle else fitted.spent + bound
    after = Fitted(weights, fitted.b, keep, spent, fitted.l2, fitted.sigma, fitted.noise)
    return Removed(after, bound, residual)


def _newton_step(w, x, s, keep, removed, l2):
    """H^-1 D, and the norm of what the solve leaves of D."""
    hessian = _hessian(w, x, s, keep, l2)
    v = jnp.linalg.solve(hessian, removed)
    return v, jnp.linalg.norm(removed - hessian @ v)


def _gradient(w, x, s, mask, l2):
    """The gradient of the masked terms with their share of the ridge, without b."""
    return x.T @ (-s * jax.nn.sigmoid(-s * (x @ w)) * mask) + l2 * jnp.sum(mask) * w


def _hessian(w, x, s, mask, l2):
    p = jax.nn.sigmoid(s * (x @ w))
    return (x.T * (p * (1 - p) * mask)) @ x + l2 * jnp.sum(mask) * jnp.eye(len(w), dtype=w.dtype)


@jax.jit
def _privacy_losses(fitted, x, signs, removals):
    def log_det(matrix):
        return jnp.linalg.slogdet(matrix)[1]

    def log_density(w, s, keep):
        """The density of w as the minimum on `keep`, b being what makes it one."""
        b, hessian = _gradient(w, x, s, keep, fitted.l2), _hessian(w, x, s, keep, fitted.l2)
        return log_det(hessian) - jnp.sum(b**2) / (2 * fitted.sigma**2)

    def head(each):
        start, s = each

        def body(carry, rows):
            w, keep, volume = carry
            before, keep = _hessian(w, x, s, keep, fitted.l2), keep & ~rows
            after = _hessian(w, x, s, keep, fitted.l2)
            v = jnp.linalg.solve(after, _gradient(w, x, s, rows, fitted.l2))
            # The Jacobian of w -> w + H^-1 D is H^-1 (H + dD/dw - dH/dw [v]).
            p = jax.nn.sigmoid(s * (x @ w))
            turn = (x.T * (s * p * (1 - p) * (1 - 2 * p) * (x @ v) * keep)) @ x
            return (w + v, keep, volume + log_det(before - turn) - log_det(after)), None

        carry = (start, fitted.retained, jnp.zeros_like(start[0]))
        (end, keep, volume), _ = jax.lax.scan(body, carry, removals)
        return log_density(start, s, fitted.retained) - volume - log_density(end, s, keep)

    return jax.lax.map(head, (fitted.weights, signs.T))


def _mask(name, rows, n):
    rows = jnp.asarray(rows)
    if rows.dtype != bool or rows.shape != (n,) or not jnp.any(rows):
        rule = f"must be a boolean mask of shape [{n}] with an example in it"
        got = f"{jnp.sum(rows)} of {rows.dtype}{list(rows.shape)}"
        raise ValueError(f"`{name}` {rule}, got {got}.")
    return rows


def _check_data(x, signs):
    x, signs = jnp.asarray(x), jnp.asarray(signs)
    if x.dtype != jnp.float64 or signs.dtype != jnp.float64:
        raise ValueError(f"`x` and `signs` must be float64, got {x.dtype} and {signs.dtype}.")
    if x.ndim != 2 or signs.ndim != 2 or len(x) != len(signs) or not x.size or not signs.size:
        raise ValueError(f"`x` must be [n, dim], `signs` [n, heads], got {x.shape}, {signs.shape}.")
    if not jnp.all(jnp.isfinite(x)) or not jnp.all(jnp.abs(signs) == 1):
        raise ValueError("`x` must be finite and `signs` +-1, got others.")
    return x, signs
