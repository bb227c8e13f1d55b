"""Models from which examples are removed, and their retraining: deterministic, under `vmap`."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array
from jax.flatten_util import ravel_pytree

from famr_jax import losses, models
from famr_jax.curvature import Hessian, Identity, solve
from famr_jax.types import Batch, Params

NEWTON_STEPS, STATIONARY = 30, 1e-9


class Subject(NamedTuple):
    """A model to remove examples from: where it starts, and its functions on a `Batch`."""

    start: Params
    convex: bool
    outputs_fn: Callable[[Params, Batch], Array]
    loss_fn: Callable[[Params, Batch], Array]


def open_subject(name: str, image_shape: tuple[int, int, int], key: Array) -> Subject:
    """A model in float64 at a random start; a linearised one is f(start) + J params."""
    kind, _, base = name.rpartition(":")
    if kind not in ("", "linearised"):
        raise ValueError(f"`models` must be NAME or linearised:NAME, got {name!r}.")
    model = models.create(base, num_classes=10, image_shape=image_shape)
    init_key, move_key = jax.random.split(key)
    flat, unravel = ravel_pytree(model.init(init_key))
    # Off the fresh weights, whose head of zeros hides the layers below from a linearisation.
    flat = flat + 0.1 * jax.random.normal(move_key, flat.shape, flat.dtype)
    start = jax.tree.map(lambda leaf: leaf.astype(float), unravel(flat))

    def outputs_fn(params, batch):
        if not kind:
            return model.apply(params, batch.x)
        return sum(jax.jvp(lambda p: model.apply(p, batch.x), (start,), (params,)))

    def loss_fn(params, batch):
        return losses.cross_entropy(outputs_fn(params, batch), batch.labels)

    start = optax.tree.zeros_like(start) if kind else start
    return Subject(start, bool(kind) or base == "logistic", outputs_fn, loss_fn)


def retrain(
    subject: Subject,
    start: Params,
    batch: Batch,
    keep: Array,
    *,
    l2: float,
    num_steps: int,
    lr: float,
) -> Params:
    """The weights of one training, on all examples of `keep` at every step.

        (1/k) sum_{i kept} l_i(params) + l2/2 ||params||^2,    k examples kept

    Convex objectives go to their minimum by Newton's method, whose solves are inexact; others take
    `num_steps` of Adam, its step falling from `lr` to zero as a cosine.

    Args:
        subject: What is trained.
        start: From where.
        batch: All examples.
        keep: Which stay, `[n]` of 0 and 1.
        l2: Ridge.
        num_steps: Of Adam.
        lr: Peak step of Adam.
    """
    weighted = lambda params, sets: sets[1] * subject.loss_fn(params, sets[0])  # noqa: E731
    sets = batch, keep * keep.size / jnp.sum(keep)

    def objective(params):
        return jnp.mean(weighted(params, sets)) + l2 / 2 * optax.tree.norm(params, squared=True)

    def newton(carry):
        params, grad, i = carry
        matrix = Hessian(weighted, params, sets) + l2 * Identity()
        step = solve(matrix, grad, tol=1e-3, max_steps=1000).value
        params = optax.tree.sub(params, step)
        return params, jax.grad(objective)(params), i + 1

    def adam(carry, _):
        params, state = carry
        updates, state = optimizer.update(jax.grad(objective)(params), state, params)
        return (optax.apply_updates(params, updates), state), None

    def going_on(carry):
        _, grad, i = carry
        return (optax.tree.norm(grad) > STATIONARY) & (i < NEWTON_STEPS)

    if subject.convex:
        carry = start, jax.grad(objective)(start), 0
        return jax.lax.while_loop(going_on, newton, carry)[0]
    optimizer = optax.adam(optax.cosine_decay_schedule(lr, num_steps))
    return jax.lax.scan(adam, (start, optimizer.init(start)), length=num_steps)[0][0]
