"""Supervised training as jitted epochs, for one model or for many seeds in one program."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array

from famr_jax.losses import cross_entropy
from famr_jax.types import ApplyFn, Batch, Params, check_count, check_number, pytree, static


class TrainState(NamedTuple):
    """Weights and optimizer state: all that the next step needs."""

    params: Params
    opt_state: Any


@pytree
class Supervised:
    """A learner that descends mean cross-entropy with any optax optimizer.

    Attributes:
        apply_fn: The model.
        optimizer: An optax transformation; weight decay belongs to it.
        augment: `augment(key, x) -> x` on a batch of images, inside the jitted step; None for none.
        label_smoothing: Share of the target spread over all classes.
    """

    apply_fn: ApplyFn = static()
    optimizer: optax.GradientTransformation = static()
    augment: Callable[[Array, Array], Array] | None = static(None)
    label_smoothing: float = 0.0

    def init(self, params: Params) -> TrainState:
        return TrainState(params, self.optimizer.init(params))

    def step(self, state: TrainState, batch: Batch, key: Array):
        x = batch.x if self.augment is None else self.augment(key, batch.x)

        def objective(params):
            logits = self.apply_fn(params, x)
            loss = cross_entropy(logits, batch.labels, label_smoothing=self.label_smoothing)
            return jnp.mean(loss), jnp.mean(jnp.argmax(logits, -1) == batch.labels)

        (loss, accuracy), grads = jax.value_and_grad(objective, has_aux=True)(state.params)
        updates, opt_state = self.optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        return TrainState(params, opt_state), {"loss": loss, "accuracy": accuracy}


def recipe(
    *, num_steps: int, lr: float = 2e-3, weight_decay: float = 0.05, warmup: float = 0.1
) -> optax.GradientTransformation:
    """AdamW with warm-up, cosine decay to zero and clipped gradients: what a small ViT needs.

    Args:
        num_steps: Length of the schedule, in steps.
        lr: Peak learning rate.
        weight_decay: Decoupled weight decay; only matrices decay, not biases and norms.
        warmup: Share of the steps that warm up.

    Raises:
        ValueError: A value out of range.
    """
    check_count("num_steps", num_steps)
    check_number("lr", lr, above=0)
    check_number("weight_decay", weight_decay, least=0)
    if not 0 <= warmup < 1:
        raise ValueError(f"`warmup` must be in [0, 1), got {warmup!r}.")
    warmup_steps = max(1, round(warmup * num_steps))
    end = max(num_steps, warmup_steps + 1)
    schedule = optax.warmup_cosine_decay_schedule(0.0, lr, warmup_steps, end)
    matrices = lambda params: jax.tree.map(lambda leaf: leaf.ndim > 1, params)  # noqa: E731
    adamw = optax.adamw(schedule, b2=0.99, weight_decay=weight_decay, mask=matrices)
    return optax.chain(optax.clip_by_global_norm(1.0), adamw)
