"""Models from which examples are removed, and their retraining: deterministic, under `vmap`."""

from collections.abc import Callable, Mapping
from functools import cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from jax.flatten_util import ravel_pytree

from famr_jax import losses, models
from famr_jax.curvature import GaussNewton, Hessian, Identity, eigenvalues, solve
from famr_jax.influence import influence, remove
from famr_jax.minimise import repeat
from famr_jax.types import Batch, Params

NEWTON_STEPS, HALVINGS = 50, 12
NEAR = 1e-7
"""How near a convex model comes to its minimum, at most ||gradient|| / l2 away from it."""
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
    """Opens logistic, mlp_SIZE, vit_V/PATCH; or linearised:NAME, f(start) + J (params - start).

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

        @jax.jit
        def outputs(flat, x):
            return base.apply(unravel(flat), x)

        rows = jax.jit(jax.jacrev(outputs))

        def prepare(x):
            return jnp.concatenate([outputs(flat, x)[..., None], rows(flat, x)], axis=-1)

        return jnp.zeros_like(flat), prepare

    return Subject(linearised or name == "logistic", outputs_fn, loss_fn, begin)


class Recipe(NamedTuple):
    """How a model that is not convex is trained: steps and peak step of Adam."""

    num_steps: int
    lr: float


@partial(jax.jit, static_argnames=("subject", "recipe"))
def retrain(
    subject: Subject, start: Params, batch: Batch, keep: Array, recipe: Recipe, *, l2: float
) -> tuple[Params, Array]:
    """Trains once, on all the examples it keeps at every step: weights, and the gradient's norm.

        (1/k) sum_{i kept} l_i(params) + l2/2 ||params||^2,    k examples kept

    A convex objective goes to its minimum by Newton's method, each step halved until the gradient
    is smallest; another takes Adam, its step falling to zero as a cosine.

    Args:
        subject: What is trained.
        start: From where.
        batch: All examples.
        keep: Which stay, `[n]` of 0 and 1.
        recipe: How, unless convex.
        l2: Ridge.
    """
    sets = batch, keep * keep.size / jnp.sum(keep)

    def weighted(params, sets):
        return sets[1] * subject.loss_fn(params, sets[0])

    @jax.grad
    def gradient(params):
        ridge = l2 / 2 * optax.tree.norm(params, squared=True)
        return jnp.mean(weighted(params, sets)) + ridge

    def newton(params, grad):
        matrix = Hessian(weighted, params, sets) + l2 * Identity()
        step = solve(matrix, grad, tol=1e-3, max_steps=1000).value

        def moved(size):
            return optax.tree.add_scale(params, -size, step)

        sizes = 0.5 ** jnp.arange(HALVINGS)
        norms = jax.lax.map(lambda size: optax.tree.norm(gradient(moved(size))), sizes)
        return moved(sizes[jnp.argmin(norms)])

    def adam(carry, _):
        params, state = carry
        updates, state = optimizer.update(gradient(params), state, params)
        return (optax.apply_updates(params, updates), state), None

    if subject.convex:
        params, grad, _ = repeat(gradient, newton, start, target=NEAR * l2, max_steps=NEWTON_STEPS)
        return params, optax.tree.norm(grad)
    optimizer = optax.adam(optax.cosine_decay_schedule(recipe.lr, recipe.num_steps))
    carry = (start, optimizer.init(start))
    params = jax.lax.scan(adam, carry, length=recipe.num_steps)[0][0]
    return params, optax.tree.norm(gradient(params))


@partial(jax.jit, static_argnames=("subject", "recipe", "at_once"))
def retrained_losses(subject, start, batch, queries, keeps, recipe, *, l2, at_once):
    """The queries' losses after each of many retrainings, and the gradient's norm that each leaves.

    So many as `at_once` says run in one `vmap`.
    """

    def one(keep):
        params, left = retrain(subject, start, batch, keep, recipe, l2=l2)
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


def changes(
    subject: Subject,
    train: Batch,
    queries: Batch,
    masks: Mapping[str, Array],
    recipe: Recipe,
    *,
    l2: float,
    at_once: int,
    key: Array,
) -> tuple[dict[str, np.ndarray], np.ndarray, dict[str, Any]]:
    """Compares true with predicted changes of the queries' losses, for every removal of one start.

    Args:
        subject: The model.
        train: The training set.
        queries: What is asked.
        masks: What each removal takes, `[removals, n]`, by kind; of one size within a kind.
        recipe: How models are trained.
        l2: Ridge of their objective.
        at_once: Retrainings in one `vmap`.
        key: PRNG key.

    Returns:
        Changes `[removals, queries]` by name; the original's losses, `[queries]`; numbers about the
        original and the solves.
    """
    start_key, lanczos_key = jax.random.split(key)
    start, prepare = subject.begin(start_key)
    train, queries = (Batch(prepare(batch.x), batch.labels) for batch in (train, queries))
    loss_fn, groups = subject.loss_fn, jnp.concatenate([*masks.values()])
    original, gradient_norm = retrain(subject, start, train, jnp.ones(len(train)), recipe, l2=l2)
    before = loss_fn(original, queries)

    def without(start):
        keeps = 1.0 - groups
        return retrained_losses(
            subject, start, train, queries, keeps, recipe, l2=l2, at_once=at_once
        )

    # One minimum is reached soonest from the other.
    truth, left = without(original if subject.convex else start)
    found = {"truth": truth}
    if not subject.convex:
        found["continued"], _ = without(original)
    steps = [
        newton_losses(
            subject,
            original,
            train,
            queries,
            jnp.argsort(~gone, axis=1, stable=True),
            num_gone=int(gone[0].sum()),
            l2=l2,
            key=lanczos_key,
        )
        for gone in masks.values()
    ]
    found["newton"], newton_solved = map(jnp.concatenate, zip(*steps, strict=True))
    found = {name: values - before for name, values in found.items()}
    answer = influence(
        loss_fn,
        original,
        train,
        queries,
        groups=groups,
        l2=l2,
        normaliser="n-m",
        curvature=partial(subject.curvature, original),
        key=lanczos_key,
    )
    found["first order"] = answer.values

    hessian = Hessian(loss_fn, original, train) + l2 * Identity()
    least = eigenvalues(hessian, original, k=1, which="smallest", key=lanczos_key)
    status = {
        "train_loss": jnp.mean(loss_fn(original, train)),
        "gradient_norm": gradient_norm,
        "gradient_norm_retrained": jnp.max(left),
        "solved": answer.why,
        "converged": jnp.all(answer.solution.converged) & jnp.all(newton_solved),
        "lambda_min_of_hessian": least.values[0],
        "num_params": sum(leaf.size for leaf in jax.tree.leaves(original)),
    }
    changed = {name: np.asarray(values) for name, values in found.items()}
    return changed, np.asarray(before), status
