"""Gauss-Newton ascent: a few uphill steps on the forget loss, by the retained curvature."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax

from famr_jax.curvature import Eigenspace
from famr_jax.curvature.algebra import precise
from famr_jax.curvature.batches import mean_of
from famr_jax.methods.gauss_newton_removal import BATCH, Model
from famr_jax.types import ApplyFn, check_count, check_number, pytree, static
from famr_jax.unlearn import OneShot, in_memory

SHARE = 1e-2
"""Of the trace of the retained curvature: the damping, if none is given."""


@pytree
class Ascending:
    """The edit of `gauss_newton_ascent`, which says what its fields mean."""

    apply_fn: ApplyFn = static()
    rank: int = static(default=400)
    steps: int = static(default=3)
    store: Eigenspace | None = None
    rate: float | None = None
    damping: float | None = None

    @precise
    def __call__(self, params, forget, retain, key):
        model, forget = Model(self.apply_fn), in_memory("forget", forget)
        store, m = self.store, float(len(forget))
        if store is None:
            store = model.store(params, forget, retain, rank=self.rank, key=key)
        left: Any = store.without(model.curvature(params, forget), m, like=params)
        damping = SHARE * jnp.trace(left.matrix) if self.damping is None else self.damping
        rate = m / left.size / self.steps if self.rate is None else self.rate

        def of_batch(params, batch, weight):
            return jnp.vdot(weight, model.losses(params, batch))

        def loss(params):
            """The mean loss on the forget set, and its gradient."""

            def product(batch, weight):
                return jax.value_and_grad(of_batch)(params, batch, weight)

            value, slope = mean_of(product, forget, BATCH)
            return value, jax.tree.map(lambda g, w: g.astype(w.dtype), slope, params)

        before, slope = loss(params)
        steps = left.steps(slope)

        def step(_, state):
            here, refused = state
            solution = dataclasses.replace(steps, b=here[2])(damping)
            moved = jax.tree.map(
                lambda w, x: w + (rate * x).astype(w.dtype), here[0], solution.value
            )
            there = moved, *loss(moved)
            good = jnp.all(
                jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(there)])
            )
            good &= ~solution.negative_curvature
            here = jax.tree.map(lambda new, old: jnp.where(good, new, old), there, here)
            return here, refused + ~good

        start = (params, before, slope), jnp.zeros((), int)
        (params, after, _), refused = jax.lax.fori_loop(0, self.steps, step, start)
        info = {"before": before, "after": after, "refused": refused, "damping": damping}
        info["outside"] = store.outside(slope)
        return params, {name: jnp.asarray(value, float) for name, value in info.items()}


def gauss_newton_ascent(
    apply_fn: ApplyFn,
    *,
    store: Eigenspace | None = None,
    rank: int = 400,
    steps: int = 3,
    rate: float | None = None,
    damping: float | None = None,
    optimizer: optax.GradientTransformation | None = None,
) -> OneShot:
    """Moves the weights uphill on the forget loss by a few Gauss-Newton steps inside a store.

        params <- params + rate U^T [n / (n-m) (S - U G_f U^T m / n) + d]^-1 U grad L_forget(params)

    The retained curvature at the trained weights holds for all steps, the gradient is taken anew.
    One step at rate m / (n-m) is that of `gauss_newton_removal` without a ridge. The loss has no
    upper bound and its gradient grows with it: a rate or a 1 / d that is some times too large takes
    all of a model along. With a store it sees the forget set alone. A step to a loss or weights
    that are not finite is refused. It logs d, refusals, the forget loss before and after, and the
    share of its first gradient outside U.

    Args:
        apply_fn: The model.
        store: As in `gauss_newton_removal`.
        rank: Directions of a store that is taken here.
        steps: How many.
        rate: m / (n-m) / steps if not given: together about one removal.
        damping: d; a hundredth of the trace of the retained curvature if not given.
        optimizer: Not used.

    Raises:
        ValueError: A number out of range; in `init` weights of half precision, or a store of
            another model's.

    Source: K-FADE (arXiv 2602.10568) by its abstract: a few uphill Gauss-Newton steps from the
        forget set. The store in place of K-FAC, taking the forget part out, d and rate are ours.
    """
    del optimizer
    check_count("rank", rank)
    check_count("steps", steps)
    if rate is not None:
        check_number("rate", rate, above=0)
    if damping is not None:
        check_number("damping", damping, above=0)
    edit = Ascending(apply_fn, rank, steps, store, rate, damping)
    return OneShot(edit, epoch_over="retain" if store is None else "forget")
