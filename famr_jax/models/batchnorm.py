"""Batch normalisation: trained by the statistics of batches, folded for all that comes after.

Weights and running statistics are two trees in training. Folded, each layer is affine, so that
unlearning, anchors and curvature see weights alone: as leaves of the weights, statistics would be
shrunk by weight decay and have no gradient. A deviation from the field's code, which unlearns in
training mode: here unlearning is in evaluation mode, and statistics are those of the training.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array

from famr_jax.types import Params

EPSILON = 1e-5
"""What Flax and PyTorch add to the variance unless they are told otherwise."""

Latest = tuple[Params, Any]
"""Weights and running statistics, as training moves them."""


class BatchNorm(NamedTuple):
    """How a model with batch normalisation trains: the attribute `batch_norm` of such a model.

    Its `apply(params, x)` takes folded params and has affine layers. An average over batches is
    not one over micro-batches: with `accumulate`, each is normalised by itself, one after another.

    Attributes:
        init: `init(key) -> (weights, statistics)`, fresh.
        train_fn: `train_fn(weights, statistics, x) -> (logits, statistics)`, normalised by the
            batch; the new statistics are the running ones moved towards the batch's.
        fold: `fold((weights, statistics)) -> params`.
    """

    init: Callable[[Array], Latest]
    train_fn: Callable[[Params, Any, Array], tuple[Array, Any]]
    fold: Callable[[Latest], Params]


def fold(latest: Latest, *, epsilon: float = EPSILON) -> Params:
    """The weights whose normalisations are affine, by the running statistics.

        scale = gamma / sqrt(var + epsilon),    bias = beta - mean scale

    Args:
        latest: Weights and statistics, nested dicts: where these hold `mean` and `var`, those hold
            `scale` and `bias`, as in Flax's Linen, and in NNX by `nnx.to_pure_dict`.
        epsilon: What the layers add to the variance.

    Raises:
        ValueError: Statistics of a layer that the weights have not.
    """
    weights, statistics = latest
    if set(statistics) == {"mean", "var"}:
        if not {"scale", "bias"} <= set(weights):
            raise ValueError(f"`weights` must hold scale and bias, got {', '.join(weights)}.")
        scale = weights["scale"] / jnp.sqrt(statistics["var"] + epsilon)
        return {**weights, "scale": scale, "bias": weights["bias"] - statistics["mean"] * scale}
    for name, part in statistics.items():
        if name not in weights:
            raise ValueError(f"`weights` must have the layers of `statistics`, got no {name!r}.")
        weights = {**weights, name: fold((weights[name], part), epsilon=epsilon)}
    return weights


def neutral(statistics: Any, *, epsilon: float = EPSILON) -> Any:
    """The statistics with which a layer in evaluation mode is affine: mean 0, var 1 - epsilon.

    With them a module of one's own in evaluation mode is the `apply` of folded params.
    """
    if set(statistics) == {"mean", "var"}:
        mean, var = (jnp.zeros_like(statistics[name]) for name in ("mean", "var"))
        return {"mean": mean, "var": var + (1 - epsilon)}
    return {name: neutral(part, epsilon=epsilon) for name, part in statistics.items()}
