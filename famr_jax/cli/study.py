"""What only studies an unlearning run: other batch orders, the stationary point, the two forms."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import optax
from jax import Array

from famr_jax import curvature, losses, minimise, unlearn
from famr_jax.cli.flags import make_optimizer
from famr_jax.methods import famr
from famr_jax.types import ApplyFn, Batch, Context, Objective, Pair, Params, Unlearner

UNLEARNING_SEEDS = 3
MICRO_BATCH = 256
CONVERGED_TO, CONVERGED_STEPS = 1e-2, 100

Watch = Callable[[Params], dict[str, float]]
"""What the curves show of any weights: numbers by name."""


class Start(NamedTuple):
    """What every study of an unlearning run starts from.

    Attributes:
        original: The trained weights.
        forget: The forget set.
        epochs: Epochs of unlearning.
        batch_size: Examples a step.
        watch: What is told of every end.
    """

    original: Params
    forget: Batch
    epochs: int
    batch_size: int
    watch: Watch

    def run(self, method: Unlearner, key: Array) -> unlearn.Unlearned:
        """A method that sees the forget set alone, for these epochs."""
        return unlearn.run(
            method,
            self.original,
            self.forget,
            epochs=self.epochs,
            batch_size=self.batch_size,
            key=key,
        )


def seeds(start: Start, method: Unlearner, keys: Array) -> dict[str, list[float]]:
    """The same unlearning under other orders of the batches, one for each key."""
    ends = [start.watch(start.run(method, key).params) for key in keys]
    return {name: [end[name] for end in ends] for name in ends[0]}


def stationarity(start: Start, objective: Objective, end: Params, key: Array) -> dict[str, Any]:
    """How far from grad J = 0 a run stopped at `end`, and the descent carried to convergence."""
    original, objective = start.original, minimise.InBatches(objective, MICRO_BATCH)
    context, pair = Context(original), Pair(start.forget, None)
    found = minimise.minimise(
        objective, end, context, pair, key=key, tol=CONVERGED_TO, max_steps=CONVERGED_STEPS
    )
    return {
        "at_anchor": gradient_norm(objective, original, context, pair, key),
        "end": gradient_norm(objective, end, context, pair, key),
        "distance": _distance(end, original),
        "converged": {
            "norm": found.grad_norm,
            "steps": found.num_steps,
            "converged": bool(found.converged),
            "distance": _distance(found.params, original),
            "from_end": _distance(found.params, end),
            **start.watch(found.params),
        },
    }


def forms(
    start: Start, apply_fn: ApplyFn, *, lam: float, lr: float, key: Array
) -> list[dict[str, Any]]:
    """FAMR in the mean and the sum form, under plain descent and Adam: which obeys the step's rule.

    The rule, eta <= 1/(L + lam) with L the curvature at the anchor, is one for gradient descent:
    Adam's rows have no answer to it. At equal lam the forms are two objectives;
    lam_mean = lam_sum / |T| is one.
    """
    curved = largest_curvature(apply_fn, start.original, start.forget, batch_size=MICRO_BATCH)
    table = []
    for name in ("sgd", "adam"):
        optimizer = make_optimizer(name, lr)
        for form, weight in (("mean", 1.0), ("sum", float(len(start.forget)))):
            method = famr(apply_fn, lam=lam, forget_weight=weight, optimizer=optimizer)
            done, limit = start.run(method, key), 1 / (weight * curved + lam)
            row: dict[str, Any] = {"form": form, "optimizer": name, "lr": lr, "lam": lam}
            row |= {"L": weight * curved, "limit": limit, "finite": done.finite}
            row["obeys"] = lr <= limit if name == "sgd" else None
            table.append(row | (start.watch(done.params) if done.finite else {}))
    return table


@jax.jit
def gradient_norm(
    objective: Objective, params: Params, context: Context, pair: Pair, key: Array
) -> Array:
    """||grad J(params)|| on whole sets: how far a point is from stationary."""
    return optax.tree.norm(jax.grad(lambda p: objective(p, context, pair, key)[0])(params))


def largest_curvature(
    apply_fn: ApplyFn, params: Params, forget: Batch, *, batch_size: int
) -> float:
    """Largest eigenvalue of the Hessian of the mean forget loss, to one per mille."""

    def loss_fn(params, batch):
        return losses.uniform_kl(apply_fn(params, batch.x))

    hessian = curvature.Hessian(loss_fn, params, forget, batch_size)
    found = curvature.eigenvalues(hessian, params, k=1, tol=1e-3, key=jax.random.key(0))
    return float(found.values[0])


def _distance(params: Params, to: Params) -> Array:
    return optax.tree.norm(optax.tree.sub(params, to))
