"""Losses: one value per example from logits, or one scalar from params. They never average."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array

from famr_jax.types import Params, check_labels


def at_label(values: Array, labels: Array) -> Array:
    """The entry of each row at its label, `[...]` of `[..., num_classes]`.

    Inside jit, where nothing can be refused, a label that is no class gives NaN, and so does every
    gradient: the indexing of arrays takes -1 for the last entry, and gives none of the others any.

    Raises:
        ValueError: Another shape of labels; outside jit, a label that is no class.
    """
    num_classes = values.shape[-1]
    check_labels(labels, num_classes)
    labels = jnp.asarray(labels)
    if labels.shape != values.shape[:-1]:
        rule = f"must be a class for each row, {list(values.shape[:-1])}"
        raise ValueError(f"`labels` {rule}, got {list(labels.shape)}.")
    known = (labels >= 0) & (labels < num_classes)
    picked = jnp.take_along_axis(values, labels[..., None], axis=-1, mode="clip")[..., 0]
    return picked * jnp.where(known, 1, jnp.nan).astype(values.dtype)


def cross_entropy(logits: Array, labels: Array, *, label_smoothing: float = 0.0) -> Array:
    """Cross-entropy of each prediction with its label.

        l(x, y) = -sum_c q_c log p_c,    q = (1 - s) onehot(y) + s / C

    Args:
        logits: Unnormalised log probabilities, `[..., num_classes]`.
        labels: Class indices, `[...]`.
        label_smoothing: s, the share of the target spread evenly over all classes.

    Returns:
        One value in nats per example, `[...]`.
    """
    log_p = jax.nn.log_softmax(logits)
    picked = at_label(log_p, labels)
    if isinstance(label_smoothing, (int, float)) and label_smoothing == 0:
        return -picked  # the mean, times 0, is NaN where another class has the logit -inf
    return -(1 - label_smoothing) * picked - label_smoothing * jnp.mean(log_p, axis=-1)


def uniform_kl(logits: Array) -> Array:
    """FAMR's forget loss: divergence of each prediction from the uniform distribution.

        KL(u || p) = logsumexp(z) - mean(z) - log C,    grad_z = p - u

    Its Hessian in the logits is that of cross-entropy, diag(p) - p p^T; it is zero exactly where
    the entropy of p is log C. The other direction, KL(p || u), has an indefinite Hessian.

    Args:
        logits: Unnormalised log probabilities z, `[..., num_classes]`.

    Returns:
        One value in nats per example, `[...]`, >= 0.

    Source: FAMR (arXiv 2506.14515), section 2.2.1.
    """
    # Not `logsumexp(z) - mean(z)`: large equal logits would lose all digits of the difference.
    return -jnp.mean(jax.nn.log_softmax(logits), axis=-1) - math.log(logits.shape[-1])


def l2_anchor(params: Params, anchor: Params) -> Array:
    """Half the squared distance to the anchor, 1/2 ||params - anchor||^2, over all weights.

    Source: FAMR (arXiv 2506.14515), section 2.2; the factor `lam` belongs to the objective.
    """
    return optax.tree.norm(optax.tree.sub(params, anchor), squared=True) / 2


def gram(features: Array) -> Array:
    """Gram matrix of each example's activations: which channels are active together, anywhere.

        G = F^T F / (tokens * channels),    F the example's [tokens, channels]

    Symmetric and positive semidefinite; no order of the tokens changes it.

    Args:
        features: Activations `[n, ..., channels]`; all positions between are the tokens, none of
            them is one token.

    Returns:
        One matrix per example, `[n, channels, channels]`.

    Source: the style matrix of Gatys et al. (arXiv 1508.06576); FAMR (arXiv 2506.14515) matches
        such matrices and does not say how they are scaled.
    """
    channels = features.shape[-1]
    flat = features.reshape(features.shape[0], -1, channels)
    return jnp.einsum("ntc,ntd->ncd", flat, flat) / (flat.shape[1] * channels)


def gram_distance(features: dict[str, Array], reference: dict[str, Array]) -> Array:
    """Distance of each example's style from a reference, over the layers that the reference names.

        d(x) = sum_l ||G_l(x) - G_l^ref||_F^2 / ||G_l^ref||_F^2

    Each layer counts relative to its reference: activations grow from block to block.

    Args:
        features: Activations by name, each `[n, ..., channels]`.
        reference: Gram matrices by name, each `[channels, channels]` and not zero.

    Returns:
        One value per example, `[n]`, >= 0; 0 exactly where every Gram matrix is its reference.

    Source: FAMR (arXiv 2506.14515), style forgetting, whose weights of the layers are not known.
    """
    found: Any = sum(
        jnp.sum((gram(features[name]) - wanted) ** 2, axis=(1, 2)) / jnp.sum(wanted**2)
        for name, wanted in reference.items()
    )
    return found
