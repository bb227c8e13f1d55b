"""AMUN: train on adversarial neighbours of the forget set, under the labels that fooled it."""

import jax
import jax.numpy as jnp
import optax
from jax import Array

from famr_jax.losses import cross_entropy
from famr_jax.methods.finetune import mean_loss
from famr_jax.types import ApplyFn, Batch, Params, check_count, check_number, pytree, static
from famr_jax.unlearn import Descent, descend, in_memory

BALLS = 12
"""Radii that the search doubles through."""


@pytree
class Adversarial:
    """The objective of `amun`, which says what its fields mean."""

    apply_fn: ApplyFn = static()
    attack_steps: int = static(default=10)
    with_forget: bool = static(default=True)
    with_retain: bool = static(default=True)
    radius: float = 0.02

    def prepare(self, params, forget, retain, key):
        del key
        near = neighbours(
            self.apply_fn,
            params,
            in_memory("forget", forget),
            radius=self.radius,
            num_steps=self.attack_steps,
        )
        return {"near": near, "retain": jnp.asarray(len(retain) if self.with_retain else 0)}

    def __call__(self, params, context, pair, key):
        near, count = context.prepared["near"], len(pair.forget)
        rows = jax.random.choice(key, len(near), (count,), replace=False)
        terms = {"near": mean_loss(self.apply_fn, params, near[rows])}
        weights = {"near": len(near)}
        if self.with_forget:
            terms["forget"] = mean_loss(self.apply_fn, params, pair.forget)
            weights["forget"] = len(near)
        if self.with_retain:
            terms["retain"] = mean_loss(self.apply_fn, params, pair.retain)
            weights["retain"] = context.prepared["retain"]
        total = sum(weights[name] * terms[name] for name in terms)
        return total / sum(weights.values()), terms


def neighbours(
    apply_fn: ApplyFn, params: Params, batch: Batch, *, radius: float | Array, num_steps: int
) -> Batch:
    """The nearest image that a model mistakes for another class, for each image, and that class.

    Projected gradient ascent in balls of radius r, 2r, 4r, ..., each from where the last ended, by
    steps of a tenth of the ball's, until the class changes or `BALLS` were searched.

    Args:
        apply_fn: The model.
        params: Its weights.
        batch: Images in [-1, 1] and their labels.
        radius: r, of the first ball, in the l2 norm of an image.
        num_steps: Steps in each ball.

    Returns:
        As many images, with the likeliest class other than the label.
    """

    def attacked(example):
        clean, label = example.x, example.labels

        def loss(x):
            logits = apply_fn(params, x[None])[0]
            return cross_entropy(logits, label), logits

        def body(carry):
            i, x, _ = carry
            (_, logits), slope = jax.value_and_grad(loss, has_aux=True)(x)
            right = jnp.argmax(logits) == label
            ball = radius * 2.0 ** (i // num_steps)
            moved = x + ball / 10 * slope / (jnp.linalg.norm(slope) + 1e-12) - clean
            moved *= jnp.minimum(1, ball / (jnp.linalg.norm(moved) + 1e-12))
            return i + 1, jnp.where(right, jnp.clip(clean + moved, -1, 1), x), right

        def going_on(carry):
            i, _, right = carry
            return right & (i < BALLS * num_steps)

        _, x, _ = jax.lax.while_loop(going_on, body, (0, clean, jnp.asarray(True)))
        others = jnp.where(jnp.arange(len(loss(x)[1])) == label, -jnp.inf, loss(x)[1])
        return Batch(x, jnp.argmax(others).astype(label.dtype))

    return jax.lax.map(attacked, batch, batch_size=64)


def amun(
    apply_fn: ApplyFn,
    *,
    radius: float = 0.02,
    attack_steps: int = 10,
    with_forget: bool = True,
    with_retain: bool = True,
    optimizer: optax.GradientTransformation = optax.adam(2e-3, b2=0.99),  # noqa: B008
) -> Descent:
    """Fine-tunes on the nearest adversarial example of each forgotten image, with its wrong label.

        J(params) = mean over A, F and R together of l(x, y),    A = {(x', argmax_{c != y} p(x'))}

    A is prepared once. F keeps its labels: the wrong ones beside it lower the confidence there.

    Args:
        apply_fn: The model.
        radius: First radius of the search; see `neighbours`.
        attack_steps: Steps a radius, as in the source's code.
        with_forget: Whether F is in the mean; without it the source's AdvOnly.
        with_retain: Whether R is, over which an epoch passes then.
        optimizer: The training's own step; the source takes SGD, momentum .9, .05, 10 epochs.

    Raises:
        ValueError: A number out of range.

    Source: AMUN (arXiv 2503.00917) and its public code, for images in [0, 1]; ours are in [-1, 1].
        A step draws from A without regard to epochs: our simplification.
    """
    check_number("radius", radius, above=0)
    check_count("attack_steps", attack_steps)
    objective = Adversarial(apply_fn, attack_steps, with_forget, with_retain, radius)
    return descend(objective, optimizer, epoch_over="retain" if with_retain else "forget")
