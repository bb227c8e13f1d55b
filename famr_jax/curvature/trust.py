"""The damping at which a step stays where the model is nearly linear: chosen by trust."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from famr_jax.curvature.algebra import precise
from famr_jax.curvature.batches import mean_of, some_each
from famr_jax.curvature.operators import OutputsFn
from famr_jax.curvature.solve import WORDS, Solution
from famr_jax.types import Params, as_pytree, check_count, check_number

LOW, HIGH = 0.02, 0.03
"""Mean KL in nats between which a step is as long as it may be; fitted on four cases."""
NEAR = 1.02
"""Ratio of two dampings, one trusted and one not, below which the search ends."""


class Trusted(NamedTuple):
    """A damping and the step it gives, and what a judge needs.

    Attributes:
        damping: What was chosen; the last that was tried, if none was trusted.
        solution: The solution at it. Its value is zero if none was trusted.
        divergence: Mean KL(moved || linearised) of the model at the step, nats.
        met: Whether it is at most `high`, and the system was positive definite.
        num_trials: Dampings tried; 0 if it was given.
        num_products: Products of all their solutions.
    """

    damping: Array
    solution: Solution
    divergence: Array
    met: Array
    num_trials: Array
    num_products: Array

    @property
    def why(self) -> str:
        """What was chosen and why, in words."""
        spent = f"{int(self.num_trials)} trials, {int(self.num_products)} products"
        if not self.met:
            why = WORDS[int(self.solution.reason)] if self.solution.negative_curvature else "KL"
            told = f"refused: no damping up to {float(self.damping):.2g} keeps the model linear"
            return f"{told} ({why} {float(self.divergence):.2g}); {spent}"
        by = "by trust" if self.num_trials else "as given"
        chosen = f"damping {float(self.damping):.2g} {by}, KL {float(self.divergence):.2g}"
        return f"{chosen}; {spent}"


@precise
def trust_damping(
    step_of: Callable[[Array], Solution],
    outputs_fn: OutputsFn,
    params: Params,
    data: Any,
    *,
    start: float | Array,
    least: float | Array = 0.0,
    most: float | Array,
    low: float | Array = LOW,
    high: float | Array = HIGH,
    max_trials: int = 24,
    batch_size: int | None = None,
) -> Trusted:
    """Finds the damping whose step moves the model as far as its linearisation still holds.

        mean KL(softmax f(params + x) || softmax(f + J x)) in [low, high]

    It doubles or halves `start`, then takes geometric means. At `least`, such as the ridge of the
    training objective, a smaller KL is enough: the step is Newton's own.

    Args:
        step_of: `damping -> solution`, a pytree: `store.steps(b)`, or one that calls `solve`.
        outputs_fn: The model's logits, `(params, data) -> [n, C]`.
        params: The weights that the step is from.
        data: The sample that the KL is a mean over.
        start: The first damping; 3e-5 of the trace of the curvature was near on four cases.
        least: The smallest damping.
        most: The largest, as the trace: no direction of the curvature then decides any more.
        low: KL below which a smaller damping is tried.
        high: KL above which a step is not trusted.
        max_trials: Dampings tried at most; one up to `high` is taken then if there is one.
        batch_size: Micro-batch of the sample; None for all at once.

    Raises:
        ValueError: A number out of range.
    """
    check_number("start", start, above=0)
    check_number("least", least, least=0)
    check_number("most", most, above=0)
    check_number("low", low, above=0)
    check_number("high", high, above=0)
    check_count("max_trials", max_trials)
    if not isinstance(low, Array) and not isinstance(high, Array) and low > high:
        raise ValueError(f"`low` must be at most `high` {high:g}, got {low:g}.")
    step_of = as_pytree(step_of)
    return _search(
        step_of, params, data, start, least, most, low, high,
        outputs_fn=outputs_fn, max_trials=max_trials, batch_size=batch_size,
    )  # fmt: skip


class _Trial(NamedTuple):
    damping: Array
    wanting: Array
    trusted: Array
    best: Trusted
    going_on: Array


@partial(jax.jit, static_argnames=("outputs_fn", "max_trials", "batch_size"))
def _search(
    step_of, params, data, start, least, most, low, high, *, outputs_fn, max_trials, batch_size
):
    def tried(damping):
        solution = step_of(damping)
        divergence = _divergence(outputs_fn, params, solution.value, data, batch_size)
        return solution, jnp.where(solution.negative_curvature, jnp.inf, divergence)

    def body(trial):
        damping, best = trial.damping, trial.best
        solution, divergence = tried(damping)
        good = divergence <= high
        enough = good & ((divergence >= low) | (damping <= least))
        wanting = jnp.where(good, trial.wanting, damping)  # the largest that is not trusted
        trusted = jnp.where(good, damping, trial.trusted)  # the smallest that is
        mean = jnp.sqrt(wanting * trusted)
        between = jnp.isfinite(trusted) & (wanting > 0)
        following = jnp.where(good, jnp.maximum(damping / 2, least), damping * 2)
        following = jnp.where(between, mean, following)
        num_products = best.num_products + solution.num_steps
        found = Trusted(damping, solution, divergence, good, best.num_trials + 1, num_products)
        best = jax.tree.map(lambda new, old: jnp.where(good | ~best.met, new, old), found, best)
        best = best._replace(num_trials=found.num_trials, num_products=num_products)
        over = enough | (best.num_trials >= max_trials) | (following > most)
        over |= between & (trusted < NEAR * wanting)
        return _Trial(following, wanting, trusted, best, ~over)

    first = jnp.maximum(jnp.asarray(start, float), least)
    shapes = jax.eval_shape(tried, first)
    solution, divergence = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    none = jnp.zeros((), solution.num_steps.dtype)
    best = Trusted(first, solution, divergence, jnp.asarray(False), none, none)
    infinity = jnp.full_like(first, jnp.inf)
    begun = _Trial(first, jnp.zeros_like(first), infinity, best, jnp.asarray(True))
    best = jax.lax.while_loop(lambda trial: trial.going_on, body, begun).best
    value = jax.tree.map(lambda leaf: jnp.where(best.met, leaf, 0), best.solution.value)
    return best._replace(solution=best.solution._replace(value=value))


def divergence(
    outputs_fn: OutputsFn, params: Params, step: Params, data: Any, *, batch_size: int | None = None
) -> Array:
    """Mean KL(softmax f(params + step) || softmax(f + J step)) over a set, in nats."""
    return _divergence(outputs_fn, params, step, data, batch_size)


def _divergence(outputs_fn, params, step, data, batch_size):
    moved = jax.tree.map(jnp.add, params, step)

    def product(batch, weight):
        def outputs(params):
            return some_each(outputs_fn(params, batch), batch)

        start, change = jax.jvp(outputs, (params,), (step,))
        log_p, log_q = (jax.nn.log_softmax(z) for z in (outputs(moved), start + change))
        return jnp.vdot(weight.astype(log_p.dtype), jnp.sum(jnp.exp(log_p) * (log_p - log_q), -1))

    return mean_of(product, data, batch_size)
