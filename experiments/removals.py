"""Models from which examples are removed, and their retraining: deterministic, under `vmap`."""

from collections.abc import Callable
from functools import cache, partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array
from jax.flatten_util import ravel_pytree

from famr_jax import losses, models
from famr_jax.curvature import GaussNewton, Hessian, Identity, solve
from famr_jax.influence import remove
from famr_jax.minimise import repeat
from famr_jax.types import Batch, Params

NEWTON_STEPS, STATIONARY = 50, 1e-9
HALVINGS = 12
LINEARISED = "linearised:"


class Subject(NamedTuple):
    """A model to remove examples from; the same object for every start, which jit relies on.

    Attributes:
        convex: Whether its objective is, so that it has one minimum.
        outputs_fn: `(params, batch) -> [n, num_classes]`.
        loss_fn: `(params, batch) -> [n]`.
        begin: `key -> (start, prepare)`: weights in float64, and what the images become.
    """

    convex: bool
    outputs_fn: Callable[[Params, Batch], Array]
    loss_fn: Callable[[Params, Batch], Array]
    begin: Callable[[Array], tuple[Params, Callable[[Array], Array]]]

    def curvature(self, params: Params, data: Batch) -> GaussNewton:
        """The Gauss-Newton matrix, which is the Hessian where the outputs are linear."""
        return GaussNewton(self.outputs_fn, _output_loss, params, data)


def _output_loss(outputs, batch):
    return losses.cross_entropy(outputs, batch.labels)


@cache
def open_subject(name: str, image_shape: tuple[int, int, int]) -> Subject:
    """logistic, mlp_SIZE, vit_V/PATCH; or linearised:NAME, f(start) + J (params - start).

    A linearised model is a linear one of other images: the outputs at the start and their
    Jacobian, `[n, num_classes, 1 + P]`.
    """
    base = models.create(name.removeprefix(LINEARISED), num_classes=10, image_shape=image_shape)
    linearised = name.startswith(LINEARISED)

    def outputs_fn(params, batch):
        return (
            batch.x[..., 0] + batch.x[..., 1:] @ params
            if linearised
            else base.apply(params, batch.x)
        )

    def loss_fn(params, batch):
        return _output_loss(outputs_fn(params, batch), batch)

    def begin(key):
        init_key, move_key = jax.random.split(key)
        flat, unravel = ravel_pytree(base.init(init_key))
        # Off the fresh weights, whose head of zeros hides the layers below from a linearisation.
        flat = flat + 0.1 * jax.random.normal(move_key, flat.shape, flat.dtype)
        flat, unravel = ravel_pytree(jax.tree.map(lambda leaf: leaf.astype(float), unravel(flat)))
        if not linearised:
            return unravel(flat), lambda x: x
        outputs = jax.jit(lambda flat, x: base.apply(unravel(flat), x))
        rows = jax.jit(jax.jacrev(outputs))
        return jnp.zeros_like(flat), lambda x: jnp.concatenate(
            [outputs(flat, x)[..., None], rows(flat, x)], axis=-1
        )

    return Subject(linearised or name == "logistic", outputs_fn, loss_fn, begin)


class Recipe(NamedTuple):
    """How a model is trained: ridge; steps and peak step of Adam where it is not convex."""

    l2: float
    num_steps: int
    lr: float


@partial(jax.jit, static_argnames=("subject", "recipe"))
def retrain(
    subject: Subject, start: Params, batch: Batch, keep: Array, recipe: Recipe
) -> tuple[Params, Array]:
    """One training, on all the examples it keeps at every step: weights, and the gradient's norm.

        (1/k) sum_{i kept} l_i(params) + l2/2 ||params||^2,    k examples kept

    A convex objective goes to its minimum by Newton's method, each step halved until the gradient
    is smallest; another takes Adam, its step falling to zero as a cosine.

    Args:
        subject: What is trained.
        start: From where.
        batch: All examples.
        keep: Which stay, `[n]` of 0 and 1.
        recipe: How.
    """
    weighted = lambda params, sets: sets[1] * subject.loss_fn(params, sets[0])  # noqa: E731
    sets = batch, keep * keep.size / jnp.sum(keep)

    @jax.grad
    def gradient(params):
        ridge = recipe.l2 / 2 * optax.tree.norm(params, squared=True)
        return jnp.mean(weighted(params, sets)) + ridge

    def newton(params, grad):
        matrix = Hessian(weighted, params, sets) + recipe.l2 * Identity()
        step = solve(matrix, grad, tol=1e-3, max_steps=1000).value
        moved = lambda size: optax.tree.add_scale(params, -size, step)  # noqa: E731
        sizes = 0.5 ** jnp.arange(HALVINGS)
        norms = jax.lax.map(lambda size: optax.tree.norm(gradient(moved(size))), sizes)
        return moved(sizes[jnp.argmin(norms)])

    def adam(carry, _):
        params, state = carry
        updates, state = optimizer.update(gradient(params), state, params)
        return (optax.apply_updates(params, updates), state), None

    if subject.convex:
        params, grad, _ = repeat(gradient, newton, start, target=STATIONARY, max_steps=NEWTON_STEPS)
        return params, optax.tree.norm(grad)
    optimizer = optax.adam(optax.cosine_decay_schedule(recipe.lr, recipe.num_steps))
    carry = (start, optimizer.init(start))
    params = jax.lax.scan(adam, carry, length=recipe.num_steps)[0][0]
    return params, optax.tree.norm(gradient(params))


@partial(jax.jit, static_argnames=("subject", "recipe", "at_once"))
def retrained_losses(subject, start, batch, queries, keeps, recipe, *, at_once):
    """The queries' losses after each of many retrainings, `at_once` of them in one `vmap`.

    And the norm of the gradient that each leaves.
    """

    def one(keep):
        params, left = retrain(subject, start, batch, keep, recipe)
        return subject.loss_fn(params, queries), left

    return jax.lax.map(one, keeps, batch_size=at_once)


@partial(jax.jit, static_argnames=("subject", "num_gone"))
def newton_losses(subject, params, batch, queries, orders, *, num_gone, l2, key):
    """The queries' losses after one Newton step for each removal, and whether it was solved.

    Args:
        subject: The model.
        params: The trained weights.
        batch: All examples.
        queries: What is asked.
        orders: Row numbers of all examples, `[removals, n]`, those that go first.
        num_gone: How many go.
        l2: Ridge.
        key: PRNG key of the removals.
    """
    curvature = partial(subject.curvature, params)

    def one(order):
        gone, left = batch[order[:num_gone]], batch[order[num_gone:]]
        found = remove(
            subject.loss_fn,
            params,
            gone,
            left,
            l2=l2,
            normaliser="n-m",
            curvature=curvature,
            tol=1e-4,
            key=key,
        )
        return subject.loss_fn(found.params, queries), found.solution.converged

    return jax.lax.map(one, orders)
