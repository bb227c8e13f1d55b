"""Measures of a model's outputs.

All take logits and are pure. Divergences and entropies are in nats, one value per example.
"""

import contextlib
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from famr_jax.losses import at_label
from famr_jax.mesh import gather, spread
from famr_jax.types import ApplyFn, Params, Source


def predict(
    apply_fn: ApplyFn, params: Params, x: Array | Source, *, batch_size: int = 500
) -> Array:
    """Logits of a whole set, `[n, num_classes]`, in batches of bounded memory.

    Args:
        apply_fn: The model.
        params: Its weights.
        x: Images, `[n, height, width, channels]`, or a `Source`, which is read in order.
        batch_size: Images at a time.
    """
    if not isinstance(x, Source):
        return _predict(apply_fn, params, x, batch_size=batch_size)
    starts, logits = range(0, len(x), batch_size), []
    rows = (np.arange(start, min(start + batch_size, len(x))) for start in starts)
    with contextlib.closing(x.stream(rows)) as batches:
        for batch in batches:
            logits.append(_predict(apply_fn, params, batch.x, batch_size=batch_size))
            jax.block_until_ready(logits[-2:-1])
    return jnp.concatenate(logits)


@partial(jax.jit, static_argnames=("apply_fn", "batch_size"))
def _predict(apply_fn, params, x, *, batch_size):
    whole = x.shape[0] // batch_size * batch_size
    if whole == 0:
        return gather(apply_fn(params, spread(x)))
    batches = x[:whole].reshape(-1, batch_size, *x.shape[1:])
    logits = gather(jax.lax.map(lambda batch: apply_fn(params, spread(batch)), batches))
    logits = logits.reshape(whole, *logits.shape[2:])
    if whole == x.shape[0]:
        return logits
    return jnp.concatenate([logits, gather(apply_fn(params, spread(x[whole:])))])


def votes(logits: Array) -> Array:
    """The predicted class as a distribution, `[n, num_classes]`: tied maxima share one vote.

    Logits with a NaN vote for nothing, which is NaN and not 0: they are no wrong prediction. Nor
    are those of which several are inf, or all -inf, one for each class in equal parts.
    """
    top = jnp.max(logits, axis=-1, keepdims=True)
    tied = logits == top
    count = jnp.sum(tied, axis=-1, keepdims=True)
    lost = jnp.isnan(top) | (jnp.isinf(top) & (count > 1))
    return jnp.where(lost, jnp.nan, tied / count)


def hits(logits: Array, labels: Array) -> Array:
    """Whether each prediction is right, `[n]`: 1, 0, or 1/k in a tie of k classes."""
    return at_label(votes(logits), labels)


def accuracy(logits: Array, labels: Array) -> Array:
    """Share of right predictions; ties count 1/k, so that uniform outputs score 1/C."""
    return jnp.mean(hits(logits, labels))


def confidence(logits: Array, labels: Array) -> Array:
    """Probability of each example's label, p_y, `[n]`."""
    return at_label(jax.nn.softmax(logits), labels)


def entropy(logits: Array) -> Array:
    """Entropy of each prediction, -sum_c p_c log p_c, `[n]`, between 0 and log C."""
    log_p = jax.nn.log_softmax(logits)
    return -jnp.sum(_weighted(log_p, log_p), axis=-1)


def kl(logits: Array, other_logits: Array) -> Array:
    """Divergence KL(p || q) = sum_c p_c (log p_c - log q_c) of each pair of predictions, `[n]`."""
    log_p, log_q = jax.nn.log_softmax(logits), jax.nn.log_softmax(other_logits)
    return jnp.sum(_weighted(log_p, log_p - log_q), axis=-1)


def _weighted(log_p, values):
    """p times values, and 0 where p is: a class of logit -inf has no part in an expectation."""
    p = jnp.exp(log_p)
    return jnp.where(p == 0, 0, p * values)


def total_variation(logits: Array, other_logits: Array) -> Array:
    """Total variation 1/2 sum_c |p_c - q_c| of each pair of predictions, `[n]`, in [0, 1]."""
    return jnp.sum(jnp.abs(jax.nn.softmax(logits) - jax.nn.softmax(other_logits)), axis=-1) / 2
