"""Supervised training as jitted epochs, for one model or for many seeds in one program."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array

from famr_jax.losses import cross_entropy
from famr_jax.mesh import spread
from famr_jax.types import ApplyFn, Batch, Params, check_count, check_number, pytree, static


class TrainState(NamedTuple):
    """Weights and optimizer state: all that the next step needs.

    Attributes:
        params: The weights that training gives.
        opt_state: The optimizer's.
        latest: The weights that the optimizer moves, where `params` are an average of them.
    """

    params: Params
    opt_state: Any
    latest: Params | None = None


@pytree
class Supervised:
    """A learner that descends mean cross-entropy with any optax optimizer.

    A step in micro-batches is that of the whole batch up to rounding: images are augmented before
    they are split, so that each has the same draw, and the gradients' mean is exact.

    Attributes:
        apply_fn: The model.
        optimizer: An optax transformation; weight decay belongs to it.
        augment: `augment(key, x) -> x` on a batch of images, inside the jitted step; None for none.
        label_smoothing: Share of the target spread over all classes.
        accumulate: Micro-batches a step, which bound the memory; they must divide the batch.
        ema: Decay a of the average that is trained for, e <- a e + (1 - a) params after each step
            from the first weights on; None for the last weights.
    """

    apply_fn: ApplyFn = static()
    optimizer: optax.GradientTransformation = static()
    augment: Callable[[Array, Array], Array] | None = static(None)
    label_smoothing: float = 0.0
    accumulate: int = static(1)
    ema: float | None = None

    def init(self, params: Params) -> TrainState:
        opt_state = self.optimizer.init(params)
        if self.ema is None:
            return TrainState(params, opt_state)
        check_number("ema", self.ema, least=0)
        check_number("1 - ema", 1 - self.ema, above=0)
        return TrainState(params, opt_state, jax.tree.map(jnp.copy, params))

    def step(self, state: TrainState, batch: Batch, key: Array):
        x = batch.x if self.augment is None else self.augment(key, batch.x)
        params = state.params if self.ema is None else state.latest
        (loss, accuracy), grads = self._gradient(params, Batch(x, batch.labels))
        updates, opt_state = self.optimizer.update(grads, state.opt_state, params)
        params, info = optax.apply_updates(params, updates), {"loss": loss, "accuracy": accuracy}
        if self.ema is None:
            return TrainState(params, opt_state), info
        average = optax.incremental_update(params, state.params, 1 - self.ema)
        return TrainState(average, opt_state, params), info

    def _gradient(self, params, batch):
        def objective(params, batch):
            logits = self.apply_fn(params, batch.x)
            loss = cross_entropy(logits, batch.labels, label_smoothing=self.label_smoothing)
            return jnp.mean(loss), jnp.mean(jnp.argmax(logits, -1) == batch.labels)

        gradient = jax.value_and_grad(objective, has_aux=True)
        parts = self.accumulate
        check_count("accumulate", parts)
        if parts == 1:
            return gradient(params, batch)
        if len(batch) % parts:
            raise ValueError(f"`accumulate` must divide the {len(batch)} examples, got {parts}.")
        # Every `parts`-th example: each device then has its share of each micro-batch already.
        split = jax.tree.map(lambda a: a.reshape(-1, parts, *a.shape[1:]).swapaxes(0, 1), batch)

        def body(total, part):
            return jax.tree.map(jnp.add, total, gradient(params, spread(part))), None

        like = jax.eval_shape(gradient, params, jax.tree.map(lambda a: a[0], split))
        zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), like)
        total, _ = jax.lax.scan(body, zeros, split)
        return jax.tree.map(lambda leaf: leaf / parts, total)


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
