"""Cubic Newton removal: Newton steps on the retained loss whose length a cubic term holds."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array
from jax.flatten_util import ravel_pytree

from famr_jax.curvature import Hessian, Identity, lanczos
from famr_jax.curvature.algebra import Operator, norm, power_of_two, precise
from famr_jax.curvature.batches import mean_of
from famr_jax.curvature.gradients import mean_gradient
from famr_jax.losses import cross_entropy
from famr_jax.types import ApplyFn, Params, check_count, check_number, pytree, static
from famr_jax.unlearn import OneShot, in_memory

BATCH = 256
"""Micro-batch of every product, gradient and loss."""
HALVINGS = 64
"""Geometric means that find a damping anywhere in the range of its floating point."""


class Quadratic(NamedTuple):
    """A gradient g and a symmetric matrix H in the Krylov space of g.

    Attributes:
        size: ||g||.
        values: Eigenvalues of T = V H V^T, ascending, `[k]`.
        first: What g / ||g|| is among their vectors, `[k]`.
        rows: Those vectors, `[k, dim]`; beyond an exhausted space `first` is zero.
    """

    size: Array
    values: Array
    first: Array
    rows: Array

    def step(self, cubic: float | Array) -> tuple[Array, Array, Array]:
        """The minimiser s of g^T s + s^T H s / 2 + (M / 6) ||s||^3 in the space, for M > 0.

            (T + a I) y = -||g|| e_1,    a = M / 2 ||s||,    T + a I >= 0,    s = V^T y

        The damping a is one above the least eigenvalue's negative part, at most sqrt(M ||g|| / 2):
        so far its geometric means are taken, in that unit, so that no square vanishes. No vector of
        a T with non-zero neighbours of its diagonal is orthogonal to e_1: there is no hard case.

        Returns:
            s, flat; a; and by how much it lowers that polynomial.
        """
        unit = jnp.sqrt(self.size) * jnp.sqrt(jnp.asarray(cubic, self.size.dtype) / 2)
        unit, tiny, low = jnp.where(unit > 0, unit, 1), jnp.finfo(unit.dtype).tiny, self.values[0]
        # From the eigenvalues as they are: the least gap is then zero, and not rounding.
        gaps = jnp.where(low > 0, self.values, self.values - low) / unit
        base = jnp.maximum(-low, 0) / unit
        # That of the least is zero by rounding alone.
        floor = jnp.where(jnp.abs(self.first[0]) < jnp.sqrt(tiny), jnp.sqrt(tiny), self.first[0])
        first = self.first.at[0].set(floor)

        def halved(_, ends):
            below, above = ends
            mean = jnp.sqrt(below) * jnp.sqrt(above)
            short = norm(first / (gaps + mean)) <= base + mean
            return jnp.where(short, below, mean), jnp.where(short, mean, above)

        ends = jnp.full_like(unit, tiny), jnp.ones_like(unit)
        above = jax.lax.fori_loop(0, HALVINGS, halved, ends)[1]
        y = self.size / unit * (first / (gaps + above))
        damping = jnp.where(self.size > 0, unit * (base + above), 0)
        fall = self.size * (first @ y) / 2 + damping * (y @ y) / 6
        return -y @ self.rows, damping, fall


def quadratic(matvec: Callable, slope: Any, *, rank: int) -> Quadratic:
    """H in the Krylov space of a gradient, of `rank` products; at most the dimension."""
    flat, unravel = ravel_pytree(slope)
    size = norm(flat)
    found = lanczos(matvec, unravel(jnp.where(size > 0, flat, 1)), num_steps=rank)
    # After an exhausted space Lanczos goes on from a random direction, which g does not reach.
    inside = jnp.cumprod(jnp.concatenate([jnp.ones(1), found.offdiagonal != 0]))
    diagonal = jnp.where(inside > 0, found.diagonal, found.diagonal[0])
    beside = jnp.where(inside[1:] > 0, found.offdiagonal, 0)
    matrix = jnp.diag(diagonal) + jnp.diag(beside, 1) + jnp.diag(beside, -1)
    unit = power_of_two(matrix)
    values, turn = jnp.linalg.eigh(matrix / unit)
    return Quadratic(size, unit * values, turn[0], turn.T @ found.basis)


class _Trial(NamedTuple):
    params: Params
    objective: Array
    cubic: Array
    damping: Array
    refused: Array
    tries: Array
    open: Array


@pytree
class Stepping:
    """The edit of `cure_newton`, which says what its fields mean."""

    apply_fn: ApplyFn = static()
    rank: int = static(default=20)
    steps: int = static(default=5)
    max_trials: int = static(default=10)
    l2: float = 0.0
    cubic: float = 1.0

    @precise
    def __call__(self, params, forget, retain, key):
        del forget, key
        retain = in_memory("retain", retain)

        def losses(params, batch):
            return cross_entropy(self.apply_fn(params, batch.x), batch.labels)

        def objective(params):
            def product(batch, weight):
                return jnp.vdot(weight, losses(params, batch))

            return mean_of(product, retain, BATCH) + self.l2 / 2 * optax.tree.vdot(params, params)

        def step(state, _):
            slope = mean_gradient(losses, state.params, retain, batch_size=BATCH)
            slope = jax.tree.map(lambda g, w: g + self.l2 * w, slope, state.params)
            matrix: Operator = Hessian(losses, state.params, retain, BATCH)
            eye: Operator = Identity()
            model = quadratic(matrix + self.l2 * eye, slope, rank=self.rank)
            unravel = ravel_pytree(state.params)[1]

            def tried(trial):
                s, damping, fall = model.step(trial.cubic)
                moved = jax.tree.map(jnp.add, trial.params, unravel(s))
                after = objective(moved)
                good = trial.objective - after >= fall
                params, value = jax.tree.map(
                    lambda new, old: jnp.where(good, new, old),
                    (moved, after),
                    (trial.params, trial.objective),
                )
                cubic = jnp.where(good, trial.cubic / 2, trial.cubic * 2)
                tries = trial.tries + 1
                open_ = ~good & (tries < self.max_trials)
                return _Trial(params, value, cubic, damping, trial.refused + ~good, tries, open_)

            begun = state._replace(tries=jnp.zeros_like(state.tries), open=jnp.asarray(True))
            return jax.lax.while_loop(lambda trial: trial.open, tried, begun), None

        before = objective(params)
        none = jnp.zeros((), int)
        cubic = jnp.asarray(self.cubic, before.dtype)
        start = _Trial(params, before, cubic, jnp.zeros_like(before), none, none, jnp.asarray(True))
        end, _ = jax.lax.scan(step, start, length=self.steps)
        info = {"before": before, "after": end.objective, "refused": end.refused}
        info |= {"damping": end.damping, "cubic": end.cubic}
        return end.params, {name: jnp.asarray(value, float) for name, value in info.items()}


def cure_newton(
    apply_fn: ApplyFn,
    *,
    rank: int = 20,
    steps: int = 5,
    max_trials: int = 10,
    cubic: float = 1.0,
    l2: float = 0.0,
    optimizer: optax.GradientTransformation | None = None,
) -> OneShot:
    """Moves the weights by a few cubic-regularised Newton steps on the retained objective.

        params <- params + s,    s = argmin g^T s + s^T H s / 2 + (M / 6) ||s||^3
        (H + a I) s = -g,    a = M / 2 ||s||,    H + a I >= 0

    g and H are gradient and exact Hessian, which may be indefinite, of the retained mean loss plus
    ridge; the minimum is that in the Krylov space of `rank` products from g. A step that lowers the
    objective by less than the polynomial is refused and M doubled; once one is taken M is halved.
    The retained gradient is all that it follows: of a training that was not finished it is that
    training that goes on, and what is forgotten is what this forgets. It passes over the retained
    set 1 + steps (1 + 2 rank) times and once a trial, and logs a, M, refusals and the objective.

    Args:
        apply_fn: The model.
        rank: Products of a step.
        steps: How many.
        max_trials: Values of M that a step tries; none taken, the weights stay.
        cubic: M of the first trial, in units of loss over weight^3.
        l2: Ridge of the training objective.
        optimizer: Not used.

    Raises:
        ValueError: A number out of range; in `init` weights of half precision.

    Source: CureNewton (arXiv 2406.14507) by its abstract: cubic-regularised Newton on the retained
        loss where Hessians are degenerate, no damping to tune. The Krylov space, M as in ARC
        (Cartis, Gould and Toint, 2011) and the number of steps are ours.
    """
    del optimizer
    check_count("rank", rank)
    check_count("steps", steps)
    check_count("max_trials", max_trials)
    check_number("cubic", cubic, above=0)
    check_number("l2", l2, least=0)
    edit = Stepping(apply_fn, rank, steps, max_trials, l2, cubic)
    return OneShot(edit, epoch_over="retain")
