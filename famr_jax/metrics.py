"""Measures of a model's outputs, and the statistics of a comparison with retrained models.

All take logits and are pure. Divergences and entropies are in nats, one value per example.
"""

import contextlib
from collections.abc import Sequence
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import scipy.stats
from jax import Array

from famr_jax.mesh import spread
from famr_jax.types import ApplyFn, Params, Source

ORACLES_FOR_A_VERDICT = 8
"""With fewer oracles the prediction interval is too wide and too uncertain to judge by."""

Verdict = Literal["inside band", "outside band", "not resolved", "too few oracles"]


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
        return apply_fn(params, spread(x))
    batches = x[:whole].reshape(-1, batch_size, *x.shape[1:])
    logits = jax.lax.map(lambda batch: apply_fn(params, spread(batch)), batches)
    logits = logits.reshape(whole, *logits.shape[2:])
    if whole == x.shape[0]:
        return logits
    return jnp.concatenate([logits, apply_fn(params, spread(x[whole:]))])


def votes(logits: Array) -> Array:
    """The predicted class as a distribution, `[n, num_classes]`: tied maxima share one vote."""
    tied = logits == jnp.max(logits, axis=-1, keepdims=True)
    return tied / jnp.sum(tied, axis=-1, keepdims=True)


def hits(logits: Array, labels: Array) -> Array:
    """Whether each prediction is right, `[n]`: 1, 0, or 1/k in a tie of k classes."""
    return jnp.take_along_axis(votes(logits), labels[:, None], axis=-1)[:, 0]


def accuracy(logits: Array, labels: Array) -> Array:
    """Share of right predictions; ties count 1/k, so that uniform outputs score 1/C."""
    return jnp.mean(hits(logits, labels))


def confidence(logits: Array, labels: Array) -> Array:
    """Probability of each example's label, p_y, `[n]`."""
    return jnp.take_along_axis(jax.nn.softmax(logits), labels[:, None], axis=-1)[:, 0]


def entropy(logits: Array) -> Array:
    """Entropy of each prediction, -sum_c p_c log p_c, `[n]`, between 0 and log C."""
    log_p = jax.nn.log_softmax(logits)
    return -jnp.sum(jnp.exp(log_p) * log_p, axis=-1)


def kl(logits: Array, other_logits: Array) -> Array:
    """Divergence KL(p || q) = sum_c p_c (log p_c - log q_c) of each pair of predictions, `[n]`."""
    log_p, log_q = jax.nn.log_softmax(logits), jax.nn.log_softmax(other_logits)
    return jnp.sum(jnp.exp(log_p) * (log_p - log_q), axis=-1)


def total_variation(logits: Array, other_logits: Array) -> Array:
    """Total variation 1/2 sum_c |p_c - q_c| of each pair of predictions, `[n]`, in [0, 1]."""
    return jnp.sum(jnp.abs(jax.nn.softmax(logits) - jax.nn.softmax(other_logits)), axis=-1) / 2


def prediction_interval(values: Sequence[float], *, level: float = 0.95) -> tuple[float, float]:
    """Where one more value of the same normal population falls with probability `level`.

        mean +- t(n - 1, (1 + level) / 2) s sqrt(1 + 1/n)

    Raises:
        ValueError: Fewer than two values.
    """
    values = np.asarray(values, np.float64)
    if values.size < 2:
        raise ValueError(f"`values` must hold at least 2 oracles, got {values.size}.")
    quantile = scipy.stats.t.ppf((1 + level) / 2, values.size - 1)
    half = quantile * values.std(ddof=1) * np.sqrt(1 + 1 / values.size)
    return float(values.mean() - half), float(values.mean() + half)


def gap(value: float, oracles: Sequence[float]) -> float:
    """Distance of a value to the oracles' mean."""
    return float(abs(value - np.mean(oracles)))


def null_gap(oracles: Sequence[float]) -> float | None:
    """Mean gap of each oracle to the others: what a perfect unlearner would score. None for one."""
    if len(oracles) < 2:
        return None
    others = [np.delete(np.asarray(oracles), i) for i in range(len(oracles))]
    return float(np.mean([gap(value, rest) for value, rest in zip(oracles, others, strict=True)]))


def verdict(
    value: float, original: float, oracles: Sequence[float], *, resolution: float = 0.0
) -> Verdict:
    """Whether a value is one that another oracle could have had.

    "not resolved" if doing nothing lies in the band too: then the metric cannot tell the original
    model from the oracle, nor the unlearned one. No verdict below `ORACLES_FOR_A_VERDICT` oracles.

    Args:
        value: Of the unlearned model.
        original: Of the original.
        oracles: Of each oracle.
        resolution: Smallest difference the metric can show, 1/N for an accuracy; the band is that
            much wider on both sides, since oracles that all agree have a band of no width.

    Raises:
        ValueError: A value that is not finite.
    """
    if not np.all(np.isfinite([value, original, *oracles])):
        raise ValueError(f"`value` and oracles must be finite, got {value}, {original}, {oracles}.")
    if len(oracles) < ORACLES_FOR_A_VERDICT:
        return "too few oracles"
    low, high = prediction_interval(oracles)
    low, high = low - resolution, high + resolution
    if not low <= value <= high:
        return "outside band"
    return "not resolved" if low <= original <= high else "inside band"
