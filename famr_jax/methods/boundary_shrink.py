"""Boundary shrink: give each forgotten image to the class beyond its nearest boundary."""

import jax
import jax.numpy as jnp
import optax
from jax import Array

from famr_jax.losses import cross_entropy
from famr_jax.types import ApplyFn, Batch, Params, check_number, pytree, static
from famr_jax.unlearn import Descent, descend


@pytree
class Shrunk:
    """The objective of `boundary_shrink`, which says what its fields mean."""

    apply_fn: ApplyFn = static()
    radius: float = 0.2

    def __call__(self, params, context, pair, key):
        del key
        labels = nearest_wrong(self.apply_fn, context.anchor, pair.forget, self.radius)
        logits = self.apply_fn(params, pair.forget.x)
        forget = jnp.mean(cross_entropy(logits, labels))
        return forget, {"forget": forget}


def nearest_wrong(apply_fn: ApplyFn, params: Params, batch: Batch, radius: float) -> Array:
    """The likeliest class other than the label after one signed step of ascent in the image."""

    def total(x):
        return jnp.sum(cross_entropy(apply_fn(params, x), batch.labels))

    x = jnp.clip(batch.x + radius * jnp.sign(jax.grad(total)(batch.x)), -1, 1)
    logits = apply_fn(params, x)
    own = jax.nn.one_hot(batch.labels, logits.shape[-1], dtype=bool)
    return jnp.argmax(jnp.where(own, -jnp.inf, logits), axis=-1).astype(batch.labels.dtype)


def boundary_shrink(
    apply_fn: ApplyFn,
    *,
    radius: float = 0.2,
    optimizer: optax.GradientTransformation = optax.adam(1e-4),  # noqa: B008
) -> Descent:
    """Relabels each forgotten image with the class that lies nearest, by the trained model.

        J(params) = mean_F l(x, y'),    y' = argmax_{c != y} p_c(x + e sign(grad_x l); anchor)

    Sees the forget set alone. The public codes take the argmax over all classes, so that an image
    which the step does not move across a boundary keeps its label; the paper wants a wrong one.

    Args:
        apply_fn: The model.
        radius: e, of images in [-1, 1]: twice the source's .1 of images in [0, 1].
        optimizer: The default is FAMR's; take the largest step at which Ret-Acc stays.

    Raises:
        ValueError: `radius` not positive.

    Source: Boundary Unlearning (arXiv 2303.11570), by the code of SalUn and DELETE.
    """
    check_number("radius", radius, above=0)
    return descend(Shrunk(apply_fn, radius), optimizer, epoch_over="forget")
