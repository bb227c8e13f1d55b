"""One trained model and one forget set: what the certificates at every lam share."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from jax.flatten_util import ravel_pytree

from famr_jax import curvature, metrics, minimise, models
from famr_jax.certify import segment
from famr_jax.losses import uniform_kl
from famr_jax.types import Batch, Context, Pair, Params

DENSE = 2000
"""Up to so many weights, matrices are written out; above, Lanczos and conjugate gradients."""


class Problem(NamedTuple):
    """A trained model, in float64.

    Attributes:
        name: For the report.
        model: The architecture.
        anchor: The trained weights.
        l2: Ridge of the training objective, or the damping that stands in for one.
        has_ridge: Whether it was the training objective's.
        convex: Whether the forget loss is convex in the weights, which is then proved.
        points: Nodes on each segment.
        tol: How far FAMR's gradient falls, relative to that at the anchor.
    """

    name: str
    model: models.Model
    anchor: Params
    l2: float
    has_ridge: bool
    convex: bool
    points: int
    tol: float


class Shared(NamedTuple):
    """What the certificates of one problem and one forget set share at every lam.

    Attributes:
        problem: The trained model.
        pair: The forget set and the retained data.
        test: Where outputs are compared.
        key: PRNG key of Lanczos and of the minimisers.
        loss: The forget loss at the anchor.
        grad: Its gradient there.
        hessian: Its Hessian there.
        lowest_forget: The Hessian's least eigenvalue, 0 where the forget loss is convex.
        influence_grad: The gradient of the influence step.
        retained: Its matrix, Gauss-Newton of the retained data and ridge.
        lowest_retained: That matrix's least eigenvalue.
        step: The influence step, as its solver left it.
        influence: The influence estimate of the retrained weights.
        oracle: The retrained optimum; None for a model trained without a ridge, or not reached.
    """

    problem: Problem
    pair: Pair
    test: Batch
    key: Array
    loss: float
    grad: Params
    hessian: curvature.Hessian
    lowest_forget: float
    influence_grad: Params
    retained: Callable
    lowest_retained: float
    step: curvature.Solution
    influence: Params
    oracle: Params | None


def trained(model: models.Model, train: Batch, *, l2: float, key: Array) -> Params:
    """The minimum of the training objective that L-BFGS reaches from fresh weights."""
    fresh = minimise.double(model.init(key))
    ridge, pair = minimise.Ridge(model.apply, l2, float(len(train))), Pair(None, train)
    found = minimise.minimise(ridge, fresh, Context(fresh), pair, key=key, tol=1e-7, max_steps=5000)
    return found.params


def prepare(problem: Problem, train: Batch, test: Batch, mask: np.ndarray, key: Array) -> Shared:
    """Curvatures at the anchor, the influence step, and the retrained optimum."""
    apply_fn, anchor, pair = problem.model.apply, problem.anchor, minimise.split(train, mask)
    loss, grad = loss_and_gradient(forget_loss(apply_fn), anchor, pair.forget)
    hessian = curvature.Hessian(forget_loss(apply_fn), anchor, pair.forget)
    lowest_forget = 0.0 if problem.convex else ends(hessian, anchor, key)[0]

    n, retain = float(len(pair.retain)), Pair(None, pair.retain)
    ridge = minimise.Ridge(apply_fn, problem.l2, n)
    # Without a ridge in training, l2 damps the solve and has no part in the gradient.
    bare = ridge if problem.has_ridge else minimise.Ridge(apply_fn, 0.0, n)
    influence_grad = gradient(bare, anchor, anchor, retain)
    gauss_newton = curvature.fisher(outputs(apply_fn), anchor, pair.retain)
    retained = gauss_newton + problem.l2 * curvature.Identity()
    step = solved(retained, influence_grad, 0.0)
    lowest_retained = problem.l2
    if n * problem.model.num_classes >= size(anchor):  # else the rank is less than the size
        lowest_retained = max(ends(retained, anchor, key)[0], problem.l2)
    oracle = None
    if problem.has_ridge:
        found = minimise.minimise(
            ridge, anchor, Context(anchor), retain, key=key, tol=1e-6, max_steps=5000
        )
        oracle = found.params if found.converged else None
    return Shared(
        problem, pair, test, key, float(loss), grad, hessian, lowest_forget, influence_grad,
        retained, lowest_retained, step, optax.tree.sub(anchor, step.value), oracle,
    )  # fmt: skip


def describe(shared: Shared, famr: dict[float, Params]) -> dict[str, Any]:
    """Sizes, and how far doing nothing, influence and FAMR's ends by lam are from the oracle."""
    anchor, oracle = shared.problem.anchor, shared.oracle
    logits = outputs(shared.problem.model.apply)(anchor, shared.test)
    found = {
        "num_params": size(anchor),
        "num_forget": len(shared.pair.forget),
        "num_retain": len(shared.pair.retain),
        "lowest_retained": shared.lowest_retained,
        "lowest_forget": shared.lowest_forget,
        "influence_step": norm(shared.step.value),
        "influence_converged": bool(shared.step.converged),
        "test_acc": float(metrics.accuracy(logits, shared.test.labels)),
    }
    if oracle is not None:
        found["to_oracle"] = {
            "do_nothing": apart(anchor, oracle),
            "influence": apart(shared.influence, oracle),
            "famr": {lam: apart(end, oracle) for lam, end in famr.items()},
        }
    return found


def ends(matvec: Callable, like: Params, key: Array) -> tuple[float, float]:
    """Least and largest eigenvalue: dense, or by Lanczos with its residual."""
    if size(like) <= DENSE:
        values = np.linalg.eigvalsh(_dense(matvec, like))
        return float(values[0]), float(values[-1])
    return segment.curvature_range(matvec, like, tol=1e-4, key=key)


def solved(matvec: Callable, b: Params, damping: float) -> curvature.Solution:
    """(A + damping I)^-1 b: dense, or by CG where A is a Gauss-Newton matrix, else MINRES."""
    if size(b) <= DENSE:
        flat, unravel = ravel_pytree(b)
        matrix = _dense(matvec, b) + damping * np.eye(flat.size)
        value = unravel(jnp.asarray(np.linalg.solve(matrix, flat)))
        return curvature.Solution(value, 0.0, 0, True, False, 0)
    method = "minres" if isinstance(matvec, curvature.Hessian) else "cg"
    return curvature.solve(matvec, b, damping=damping, tol=1e-3, max_steps=300, method=method)


def norm(params: Params) -> float:
    """Euclidean norm over all weights."""
    return float(optax.tree.norm(params))


def apart(params: Params, other: Params) -> float:
    """Euclidean distance over all weights."""
    return norm(optax.tree.sub(params, other))


def size(params: Params) -> int:
    """Number of weights."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))


@functools.cache
def forget_loss(apply_fn: Callable) -> Callable[[Params, Batch], Array]:
    """The forget loss of each example; one object a model, as jit wants it."""
    return lambda params, batch: uniform_kl(apply_fn(params, batch.x))


@functools.cache
def outputs(apply_fn: Callable) -> Callable[[Params, Batch], Array]:
    """The logits of a batch; one object a model, as jit wants it."""
    return lambda params, batch: apply_fn(params, batch.x)


@functools.partial(jax.jit, static_argnums=0)
def loss_and_gradient(loss_fn: Callable, params: Params, batch: Batch) -> tuple[Array, Params]:
    """A mean loss and its gradient."""
    return jax.value_and_grad(lambda params: jnp.mean(loss_fn(params, batch)))(params)


@jax.jit
def gradient(objective: Callable, params: Params, anchor: Params, pair: Pair) -> Params:
    """The gradient of an objective that needs no key."""
    return jax.grad(lambda params: objective(params, Context(anchor), pair, None)[0])(params)


def _dense(matvec, like):
    return np.asarray(curvature.matrix_of(matvec, like, at_once=50).array)
