"""The demo's network: FAMR over lam and one-step removal, beside models retrained without T.

Weights of two trainings compare only if they started alike, and then hardly: the oracles start
where the original did, and controls, retrained on everything in another order, show how far a
training wanders that forgets nothing. Outputs compare always.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree

from experiments.gap_softmax import cosine
from experiments.workbench import Case, Workbench
from famr_jax import metrics, minimise, statistics, unlearn
from famr_jax.curvature import Hessian, Solution, fisher, solve
from famr_jax.methods import famr
from famr_jax.types import Context, Pair, Params

CONVERGED_TO, CONVERGED_STEPS = 1e-3, 500
SOLVED_TO, SOLVE_STEPS = 1e-2, 300
SETS = ("forget", "test")


class Ruler:
    """Where a model lies: distances in weights and in outputs to the original and the oracles.

    The first oracle chooses hyperparameters; no number is reported against it.
    """

    def __init__(self, bench: Workbench, case: Case, original: Params, oracles: Sequence[Params]):
        kept = bench.test[np.flatnonzero(~np.isin(bench.test.labels, case.classes))]
        self.pair = minimise.split(bench.train, case.mask)
        self.sets = {"forget": self.pair.forget, "test": kept}
        self.apply = bench.model.apply
        self.original = np.asarray(ravel_pytree(original)[0])
        self.chooser, *self.oracles = [self.place(oracle) for oracle in oracles]

    def place(self, params: Params) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Step from the original, flat, and logits on the forget set and the kept test images."""
        logits = {s: metrics.predict(self.apply, params, self.sets[s].x) for s in SETS}
        step = np.asarray(ravel_pytree(params)[0]) - self.original
        return step, jax.tree.map(np.asarray, logits)

    def measure(self, params: Params) -> dict[str, Any]:
        """A row of the table; `chosen_by` is all that a selection may look at."""
        place = self.place(params)
        row = self._alone(place) | self._mean(place, self.oracles)
        chooser = self._apart(place, self.chooser)
        return row | {"chosen_by": sum(chooser[f"kl_{s}"] for s in SETS)}

    def null(self) -> dict[str, Any]:
        """Each oracle against the others, in the mean; with bands of one more oracle."""
        rows, bands = [], {}
        for oracle in self.oracles:
            others = [other for other in self.oracles if other is not oracle]
            rows.append(self._alone(oracle) | self._mean(oracle, others))
        values = {name: [row[name] for row in rows] for name in rows[0]}
        for name in ("kl_forget", "kl_test"):
            bands[f"{name}_band"] = statistics.prediction_interval(values[name])
        means = {name: float(np.mean(column)) for name, column in values.items()}
        return {"n": len(rows)} | means | bands

    def _alone(self, place):
        step, logits = place
        accuracy = {s: metrics.accuracy(logits[s], self.sets[s].labels) for s in SETS}
        own = {f"acc_{s}": float(value) for s, value in accuracy.items()}
        return {"moved": float(np.linalg.norm(step))} | own

    def _mean(self, place, oracles):
        rows = [self._apart(place, oracle) for oracle in oracles]
        return {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}

    def _apart(self, place, oracle):
        """From one model to one oracle: weights, angle of the steps, divergence, logits."""
        (step, logits), (goal, wanted) = place, oracle
        apart = {"to_oracle": float(np.linalg.norm(step - goal))}
        if (cos := cosine(step, goal)) is not None:
            apart["cos"] = cos
        for s in SETS:
            apart[f"kl_{s}"] = float(jnp.mean(metrics.kl(wanted[s], logits[s])))
            # Logits mean something up to a constant over the classes.
            difference = wanted[s] - logits[s]
            difference -= difference.mean(axis=1, keepdims=True)
            apart[f"logits_{s}"] = float(np.linalg.norm(difference, axis=1).mean())
        return apart


def compare(
    bench: Workbench,
    case: Case,
    original: Params,
    oracles: Sequence[Params],
    *,
    lams: Sequence[float],
    dampings: Sequence[float],
    optimizer: optax.GradientTransformation,
    epochs: int,
) -> dict[str, Any]:
    """One forget set: FAMR converged and by epochs, removal by one step, all measured."""
    ruler = Ruler(bench, case, original, oracles)
    book = lambda what, *args: bench.clock.time(f"{what} {case.name}", partial(*args))  # noqa: E731
    removal = partial(_removal, bench, ruler, original)
    retain = ruler.pair.retain
    rounded = fisher(bench.model.apply, original, retain.x)
    solutions = [book("one step", removal, rounded, d) for d in dampings]
    one_step = [_solved(ruler, original, *each) for each in zip(dampings, solutions, strict=True)]
    best = min(range(len(dampings)), key=lambda i: one_step[i]["chosen_by"])
    taken = np.asarray(ravel_pytree(solutions[best].value)[0])

    converged, by_epochs = [], []
    for lam in lams:
        method = famr(bench.model.apply, lam=lam, optimizer=optimizer)
        found = book("stationary points", _stationary, bench, ruler, original, method.objective)
        how = {"num_steps": int(found.num_steps), "converged": bool(found.converged)}
        angle = {"cos_one_step": cosine(ruler.place(found.params)[0], taken)}
        converged.append({"lam": lam} | how | angle | ruler.measure(found.params))
        params = book("epochs", _run, bench, ruler, original, method, epochs)
        by_epochs.append({"lam": lam} | ruler.measure(params))
    exactly = Hessian(minimise.loss_fn(bench.model.apply), original, retain)
    stopped = book("exact Hessian", removal, exactly, dampings[best])
    chosen = lambda rows: min(rows, key=lambda row: row["chosen_by"])  # noqa: E731
    loss_fn, size = minimise.loss_fn(bench.model.apply), len(bench.train)
    pulls = [_pull(loss_fn, original, part, size) for part in (bench.train, ruler.pair.forget)]
    whole, forgotten = (float(jnp.linalg.norm(ravel_pytree(pull)[0])) for pull in pulls)
    return {
        "forget": case.spec,
        # The one-step formulas take the original for a minimum, where this is zero.
        "leftover": whole / forgotten,
        "num_forget": len(ruler.sets["forget"]),
        "num_test": len(ruler.sets["test"]),
        "original": ruler.measure(original),
        "null": ruler.null(),
        "famr": {"converged": converged, "epochs": by_epochs},
        "one_step": one_step,
        "exact_hessian": _solved(ruler, original, dampings[best], stopped),
        "best": {
            "famr, converged": chosen(converged),
            "famr, epochs": chosen(by_epochs),
            "one step": one_step[best],
        },
    }


def wandering(original: Params, controls: Sequence[Params]) -> dict[str, Any]:
    """How far trainings on everything end from the original, though they start where it did."""
    start, *ends = (np.asarray(ravel_pytree(params)[0]) for params in (original, *controls))
    moved = [float(np.linalg.norm(end - start)) for end in ends]
    return {"n": len(moved), "moved": moved, "norm": float(np.linalg.norm(start))}


def _stationary(bench, ruler, original, objective):
    settings = {"tol": CONVERGED_TO, "max_steps": CONVERGED_STEPS, "key": bench.key("unlearn")}
    pair = Pair(ruler.pair.forget, None)
    return minimise.minimise(objective, original, Context(original), pair, **settings)


def _run(bench, ruler, original, method, epochs):
    sizes = {"epochs": epochs, "batch_size": bench.flags.batch_size, "key": bench.key("unlearn")}
    return unlearn.run(method, original, ruler.pair.forget, **sizes).params


def _removal(bench, ruler, original, curvature, damping):
    """((1/n) sum over the retained of the curvature + damping I)^-1 g_T / n."""
    n, retain = len(bench.train), ruler.pair.retain
    pull = _pull(minimise.loss_fn(bench.model.apply), original, ruler.pair.forget, n)
    settings = {"damping": damping, "tol": SOLVED_TO, "max_steps": SOLVE_STEPS}
    return solve((len(retain) / n) * curvature, pull, **settings)


@partial(jax.jit, static_argnames="loss_fn")
def _pull(loss_fn, params, forget, n):
    return jax.grad(lambda params: jnp.sum(loss_fn(params, forget)) / n)(params)


def _solved(ruler: Ruler, original: Params, damping: float, found: Solution) -> dict[str, Any]:
    """How the solve went, and where its step leads."""
    return {
        "damping": damping,
        "num_steps": int(found.num_steps),
        "residual": float(found.residual),
        "converged": bool(found.converged),
        "negative_curvature": bool(found.negative_curvature),
        **ruler.measure(jax.tree.map(jnp.add, original, found.value)),
    }
