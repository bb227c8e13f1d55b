"""Our side of the curvature benchmark, without what a user of the library would not import.

    python -m experiments.benchmarks.curvature_ours PROBLEM TASK

runs one task on a pickled problem in a fresh process and prints a line when its result is ready:
the cold runs. A task is a function of a problem that prepares, and returns what is timed:
`run() -> (value, products)`.
"""

import pickle
import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from famr_jax import losses, models
from famr_jax.curvature import Hessian, density, eigenvalues, linearized, solve
from famr_jax.curvature.batches import mean_of
from famr_jax.models.vit import Variant, ViT
from famr_jax.types import Batch


def model_of(problem: dict[str, Any]) -> models.Model:
    """The architecture: one by name, or a ViT of any width, depth and heads."""
    classes, shape = problem["num_classes"], problem["image_shape"]
    if isinstance(problem["model"], str):
        return models.create(problem["model"], num_classes=classes, image_shape=shape)
    patch, *variant = problem["model"]
    return models.Model("vit", classes, shape, ViT(classes, patch, Variant(*variant)))


def hessian(problem: dict[str, Any], batch_size: int | None) -> Hessian:
    """The Hessian of mean cross-entropy at the problem's weights, over all of its data."""
    model = model_of(problem)

    def loss_fn(params, batch):
        return losses.cross_entropy(model.apply(params, batch.x), batch.labels)

    params, x, labels = jax.tree.map(jnp.asarray, [problem[k] for k in ("params", "x", "labels")])
    return Hessian(loss_fn, params, Batch(x, labels), batch_size)


def product(problem: dict[str, Any]) -> Callable[[], tuple[Any, int]]:
    """One product, from the weights."""
    matvec, v, apply = hessian(problem, problem["batch_size"]), problem["v"], jax.jit(_apply)
    return lambda: (apply(matvec, v), 1)


def loop(problem: dict[str, Any]) -> Callable[[], tuple[Any, int]]:
    """Steps of the power method, from the weights."""
    matvec, v, length = hessian(problem, None), problem["v"], problem["loop"]
    power = jax.jit(_power, static_argnames="length")
    return lambda: (power(matvec, v, length=length), length)


def _apply(matvec, v):
    return matvec(v)


def _power(matvec, v, *, length):
    product, unravel = linearized(matvec), ravel_pytree(v)[1]

    def step(flat, _):
        image = ravel_pytree(product(unravel(flat)))[0]
        return image / jnp.linalg.norm(image), None

    return unravel(jax.lax.scan(step, ravel_pytree(v)[0], None, length=length)[0])


def top(problem: dict[str, Any]) -> Callable[[], tuple[Any, int]]:
    """The largest eigenvalues with their vectors."""
    matvec = hessian(problem, None)

    def run():
        key = jax.random.key(0)
        found = eigenvalues(matvec, matvec.params, k=problem["k"], tol=problem["tol"], key=key)
        return (found.values, found.vectors), int(found.num_products)

    return run


def slq(problem: dict[str, Any]) -> Callable[[], tuple[Any, int]]:
    """The spectral density: nodes and weights."""
    matvec = hessian(problem, None)
    steps, probes = problem["steps"], problem["probes"]

    def run():
        sizes = {"num_steps": steps, "num_probes": probes}
        found = density(matvec, matvec.params, **sizes, key=jax.random.key(0))
        return (found.nodes, found.weights), steps * probes

    return run


def inverse(problem: dict[str, Any]) -> Callable[[], tuple[Any, int]]:
    """(H + damping I)^-1 v by conjugate gradients."""
    matvec, v = hessian(problem, None), problem["v"]

    def run():
        found = solve(matvec, v, damping=problem["damping"], tol=problem["tol"], max_steps=500)
        return found.value, int(found.num_steps)

    return run


def gradient(problem: dict[str, Any]) -> Callable[[], tuple[Any, int]]:
    """The gradient of the mean loss."""
    matvec, take = hessian(problem, problem["batch_size"]), jax.jit(_gradient)
    return lambda: (take(matvec), 0)


def _gradient(matvec):
    def sum_of_batch(batch, weight):
        def total(params):
            return jnp.vdot(weight, matvec.loss_fn(params, batch))

        return jax.grad(total)(matvec.params)

    return mean_of(sum_of_batch, matvec.data, matvec.batch_size)


def flops(problem: dict[str, Any]) -> dict[str, float]:
    """XLA's count for one gradient, one product and each further one, all data in one batch."""
    whole, v = hessian(problem, None), problem["v"]
    held = jax.jit(linearized)(whole)
    counted = {"gradient": (_gradient, whole), "product": (_apply, whole, v)}
    counted["further product"] = (_apply, held, v)
    return {
        name: jax.jit(function).lower(*args).compile().cost_analysis()["flops"]
        for name, (function, *args) in counted.items()
    }


def working_memory(problem: dict[str, Any]) -> int:
    """Bytes that XLA takes for one product beside its arguments and result."""
    matvec = hessian(problem, problem["batch_size"])
    compiled = jax.jit(_apply).lower(matvec, problem["v"]).compile()
    return compiled.memory_analysis().temp_size_in_bytes


TASKS = {"product": product, "loop": loop, "top": top, "density": slq, "inverse": inverse}

if __name__ == "__main__":
    with open(sys.argv[1], "rb") as file:
        jax.block_until_ready(TASKS[sys.argv[2]](pickle.load(file))())
    print("ready", flush=True)
    sys.stdin.read()  # Until whoever measures the process has read its memory.
