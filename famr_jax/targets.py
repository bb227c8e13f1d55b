"""Targets: the distributions that unlearning draws a model's outputs to.

A target is any `target(logits, labels) -> q`: logits of the trained model `[n, num_classes]` and
the labels `[n]` in, one distribution per example out, `[n, num_classes]`.
"""

import math

import jax
import jax.numpy as jnp
from jax import Array

from famr_jax.types import check_number, pytree


def kl_to(q: Array, logits: Array) -> Array:
    """Divergence of each prediction from its target.

        KL(q || p) = sum_c q_c (log q_c - log p_c),    grad_z = p - q

    Args:
        q: Targets, `[..., num_classes]`; a class of target zero adds nothing.
        logits: Unnormalised log probabilities z, `[..., num_classes]`.

    Returns:
        One value in nats per example, `[...]`, >= 0.
    """
    log_q = jnp.log(jnp.where(q > 0, q, 1))
    return jnp.sum(jnp.where(q > 0, q * (log_q - jax.nn.log_softmax(logits)), 0), axis=-1)


def uniform(logits: Array, labels: Array) -> Array:
    """The uniform distribution over all classes: FAMR's target."""
    del labels
    return jnp.full_like(logits, 1 / logits.shape[-1])


def as_trained(logits: Array, labels: Array) -> Array:
    """The trained model's own prediction: the target of distillation."""
    del labels
    return jax.nn.softmax(logits)


def reweighted(logits: Array, labels: Array) -> Array:
    """The trained prediction with the label's share given to the other classes in proportion.

        q_y = 0,    q_c = p_c / (1 - p_y)

    Source: DELETE (arXiv 2503.23751); TRW (arXiv 2506.20893) at beta 0.
    """
    label = jax.nn.one_hot(labels, logits.shape[-1], dtype=bool)
    return jax.nn.softmax(jnp.where(label, -jnp.inf, logits))


@pytree
class Tilted:
    """The reweighted target, tilted to the classes that are similar to the label.

        q_y = 0,    q_c proportional to p_c exp(beta s_yc)

    The distribution nearest to `reweighted`, in KL(q || .), among those of its mean similarity.

    Attributes:
        similarity: s, `[num_classes, num_classes]`; see `head_similarity`.
        beta: Strength of the tilt; 0 is `reweighted`, 10 is the source's.

    Source: TRW (arXiv 2506.20893), whose s has constants that are not known.
    """

    similarity: Array
    beta: float = 10.0

    def __call__(self, logits, labels):
        return reweighted(logits + self.beta * self.similarity[labels], labels)


def head_similarity(
    kernel: Array, *, temperature: float | Array = 0.1, num_components: int = 10
) -> Array:
    """How similar the classes are by the last layer: a sharp softmax of cosines, row by row.

        s_yc = softmax over c != y of cos(v_y, v_c) / temperature,    s_yy = 0

    v_c are the classes' weight vectors, centred and projected on their first principal components.

    Args:
        kernel: Weights of the last layer, `[dim, num_classes]`.
        temperature: Of the softmax, > 0.
        num_components: Of the projection, at most `num_classes - 1`.

    Source: TRW (arXiv 2506.20893) says cosine, projection and sharp softmax; dimension, temperature
        and leaving out the class itself are our inference.
    """
    check_number("temperature", temperature, above=0)
    rows = kernel.T - jnp.mean(kernel.T, axis=0)
    left, scales, _ = jnp.linalg.svd(rows, full_matrices=False)
    count = min(num_components, len(rows) - 1)
    projected = left[:, :count] * scales[:count]
    projected /= jnp.maximum(jnp.linalg.norm(projected, axis=1, keepdims=True), 1e-12)
    cosines = projected @ projected.T / temperature
    return jax.nn.softmax(jnp.where(jnp.eye(len(rows), dtype=bool), -jnp.inf, cosines))


def wrong_labels(key_data: Array, x: Array, labels: Array, num_classes: int) -> Array:
    """A random label other than its own for each image: the same image has the same at every call.

    The draw's key is the given one folded with a hash of the image's pixels, so that it depends on
    neither the batch nor its order, and images on disk have theirs too.

    Args:
        key_data: `jax.random.key_data` of a key, which a saved state may hold.
        x: Images, `[n, height, width, channels]`.
        labels: Class indices, `[n]`.
        num_classes: C.
    """
    pixels = jax.lax.bitcast_convert_type(x.astype(jnp.float32), jnp.uint32).reshape(len(x), -1)
    place = jnp.arange(math.prod(x.shape[1:]), dtype=jnp.uint32)
    # Mixed before and after the sum: the bits of images of few grey values end in zeros.
    hashes = _mix(jnp.sum(_mix(pixels ^ _mix(place + 1)), axis=1, dtype=jnp.uint32))
    keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.wrap_key_data(key_data), hashes)
    shift = jax.vmap(lambda key: jax.random.randint(key, (), 1, num_classes))(keys)
    return (labels + shift.astype(labels.dtype)) % num_classes


def _mix(bits):
    """A mixing of 32 bits in which each bit of the input moves half of the output's."""
    bits = (bits ^ (bits >> 16)) * jnp.uint32(0x7FEB352D)
    bits = (bits ^ (bits >> 15)) * jnp.uint32(0x846CA68B)
    return bits ^ (bits >> 16)
