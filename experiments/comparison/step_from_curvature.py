"""Does the curvature at the trained weights propose the step of an unlearning method?

Claim (ours): a step of one over the largest eigenvalue keeps retained accuracy within ten points
and comes within .05 of the best of four steps in Tug of War, against one oracle, on validation
images. The eigenvalue is that of the Hessian of the retained loss, or of the method's objective at
its start, for Adam D^-1/2 H D^-1/2 with D^2 the mean square of minibatch gradients.

    python -m experiments.comparison.step_from_curvature --models mlp_32
    python -m experiments.comparison.step_from_curvature --models vit_mu/2
        --methods gradient_ascent famr_reweighted finetune

Half an hour each on two very busy CPU cores, most of it compilation. Expect for how many of the
methods a proposal keeps the accuracy, and for how many it reaches the grid too:

    mlp_32    class:3     retained 4, 4 of 8   own 4, 2 of 8
    mlp_32    random:0.1  retained 2, 1 of 8   own 2, 1 of 8
    vit_mu/2  class:3     retained 2, 1 of 3   own 2, 0 of 3
    vit_mu/2  random:0.1  retained 1, 1 of 3   own 2, 2 of 3

So there is no such helper: the retained loss proposes one step for all that Adam runs, where good
steps differ by decades. On the random tenth no method that sees the forget set alone survives it.
"""

from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.comparison import trials
from experiments.comparison.choosing import Choosing, validation_of
from experiments.comparison.judging import as_columns
from experiments.comparison.method_comparison import sizes_of
from experiments.comparison.searches import SEARCHES
from experiments.comparison.step_page import PROPOSALS, claims, headline, page
from experiments.harness.run import Experiment, main
from famr_jax import curvature
from famr_jax.cli.bench import Bench
from famr_jax.cli.flags import BenchFlags
from famr_jax.methods.finetune import finetune
from famr_jax.store import fingerprint
from famr_jax.types import Batch, Context, Objective, Pair, Params, pytree

PRODUCTS, DRAWS = 16, 16
"""Steps of Lanczos, and minibatches of which the gradients' scale is the mean."""
EPSILON = 1e-8
METHODS = ("famr", "famr_reweighted", "gradient_ascent", "boundary_shrink", "delete")
METHODS += ("finetune", "descent_ascent", "random_labels")


@dataclass(frozen=True)
class Flags:
    """Settings of a run."""

    forget: tuple[str, ...] = ("class:3", "random:0.1")
    """Forget sets."""
    models: tuple[str, ...] = ("mlp_32", "vit_mu/2")
    """Models."""
    methods: tuple[str, ...] = METHODS
    """Names of `searches.SEARCHES` that descend one objective."""
    bench: BenchFlags = field(default_factory=lambda: BenchFlags(oracles=1))


SMALL = Flags(
    forget=("class:3",),
    models=("mlp_8",),
    methods=("delete", "gradient_ascent"),
    bench=BenchFlags(train_epochs=10, batch_size=128, oracles=1),
)
"""The configuration that the test suite runs."""


def check(flags: Flags) -> None:
    """Raises a `ValueError` for a method that descends no objective, or none at all."""
    for name in flags.methods:
        if name not in SEARCHES or "lr" not in SEARCHES[name].grid:
            raise ValueError(f"`methods` must descend an objective, got {name!r}.")


@pytree
class Preconditioned:
    """S H S, the Hessian of an objective between the roots of an optimizer's scales."""

    objective: Objective
    context: Context
    params: Params
    pair: Pair
    key: jax.Array
    scale: Params

    def value(self, params):
        """The objective."""
        return self.objective(params, self.context, self.pair, self.key)[0]

    def __call__(self, v):
        v = jax.tree.map(jnp.multiply, self.scale, v)
        image = jax.jvp(jax.grad(self.value), (self.params,), (v,))[1]
        return jax.tree.map(jnp.multiply, self.scale, image)


@partial(jax.jit, static_argnames=("adam", "batch_size"))
def largest(method: Any, params: Params, sets: Pair, key: jax.Array, *, adam: bool, batch_size=32):
    """The largest eigenvalue, by magnitude, of the Hessian of a `Descent`'s objective at its start.

    Of the whole sets; with `adam` between the roots of its scales, a mean over minibatches.
    """
    first, drawing, draws, start = jax.random.split(key, 4)
    state = method.init(params, sets.forget, sets.retain, first)
    matrix = Preconditioned(method.objective, state.context, state.params, sets, draws, None)
    scale = jax.tree.map(jnp.ones_like, state.params)

    def part(batch: Batch, key):
        return batch[jax.random.choice(key, len(batch), (min(batch_size, len(batch)),), False)]

    def squares(key):
        forget, retain, own = jax.random.split(key, 3)
        pair = Pair(part(sets.forget, forget), part(sets.retain, retain))
        gradient = jax.grad(replace(matrix, pair=pair, key=own).value)(state.params)
        return jax.tree.map(jnp.square, gradient)

    if adam:
        found = jax.lax.map(squares, jax.random.split(drawing, DRAWS))
        scale = jax.tree.map(lambda leaf: (jnp.sqrt(leaf.mean(0)) + EPSILON) ** -0.5, found)
    leaves, tree = jax.tree.flatten(scale)
    keys = jax.random.split(start, len(leaves))
    pairs = zip(keys, leaves, strict=True)
    v = jax.tree.unflatten(tree, [jax.random.normal(k, leaf.shape) for k, leaf in pairs])
    found = curvature.lanczos(replace(matrix, scale=scale), v, num_steps=PRODUCTS)
    sides = jnp.diag(found.offdiagonal, 1) + jnp.diag(found.offdiagonal, -1)
    return jnp.max(jnp.abs(jnp.linalg.eigvalsh(jnp.diag(found.diagonal) + sides)))


def measure(flags: Flags, bench: Bench) -> dict[str, Any]:
    """A row for each run: model, forget set, method, whose step, and what it reached."""
    rows = []
    kept = validation_of(np.asarray(bench.test.labels), bench.flags.seed)
    for name in flags.models:
        other = bench.on(name)
        original = other.original(f"original {name}").params
        for gone in other.forget_sets(flags.forget):
            (judge, *_) = other.oracles(gone)
            choosing = Choosing(other, gone, judge, other.test[kept])
            rows.append(_row(name, gone, "original", "", None, choosing(original)))
            for method in flags.methods:
                config = other.config(gone.mask) | {"judge": fingerprint(judge), "of": method}
                found = other.store.remember(
                    f"{method} {name} {gone.name}",
                    config,
                    partial(_tried, method, choosing, original),
                    sources=(*other.sources, "famr_jax.methods", Path(__file__)),
                )
                rows += [_row(name, gone, method, *each) for each in found]
    return {"rows": as_columns(rows)}


def _row(model, gone, method, by, lr, numbers):
    kept = {name: numbers[name] for name in ("for_acc", "ret_acc")}
    row = {"model": model, "forget": gone.spec, "method": method, "by": by, "lr": lr}
    return row | kept | {"tow": numbers["by_oracle"]}


def _tried(name: str, choosing: Choosing, original: Params) -> list[Any]:
    """Whose step, the step, and its numbers: of the grid and of both proposals."""
    bench, search = choosing.bench, SEARCHES[name]
    mask, setting = choosing.gone.mask, {key: values[-1] for key, values in search.grid.items()}
    apply_fn, sets = bench.model.apply, Pair(bench.train[mask], bench.train[~mask])
    adam = search.optimizer != "sgd"
    steps = [("grid", lr) for lr in search.grid["lr"]]
    for by in PROPOSALS:
        own = trials.made(search, setting, apply_fn).method
        method = own if by == "own" else finetune(apply_fn)
        found = largest(method, original, sets, bench.keys.probes, adam=adam)
        steps.append((by, 1 / float(found)))
    done = []
    for by, lr in steps:
        run = partial(trials.unlearned, sizes=sizes_of(bench, choosing.gone))
        at = setting | {"lr": lr}
        key = bench.keys.unlearn
        (params,) = run(search, at, apply_fn, [original], [], bench.train, mask, key=key)
        done.append([by, lr, choosing(params)])
    return done


EXPERIMENT = Experiment(
    module="experiments.comparison.step_from_curvature",
    flags=Flags,
    small=SMALL,
    measure=measure,
    claims=claims,
    page=page,
    headline=headline,
    check=check,
)

if __name__ == "__main__":
    main(EXPERIMENT)
