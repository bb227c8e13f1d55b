"""MU-Mis: take from the forget set the sensitivity that training gave it."""

import jax
import jax.numpy as jnp
import optax

from famr_jax.losses import at_label
from famr_jax.types import ApplyFn, pytree, static
from famr_jax.unlearn import Descent, descend


@pytree
class Sensitivity:
    """The objective of `mu_mis`."""

    apply_fn: ApplyFn = static()

    def __call__(self, params, context, pair, key):
        del context
        x, labels = pair.forget.x, pair.forget.labels
        logits, pull = jax.vjp(lambda x: self.apply_fn(params, x), x)
        num_classes = logits.shape[-1]
        shift = jax.random.randint(key, labels.shape, 1, num_classes, labels.dtype)

        def squared(classes):
            (slopes,) = pull(jax.nn.one_hot(classes, num_classes, dtype=logits.dtype))
            return jnp.mean(jnp.sum(slopes**2, axis=range(1, slopes.ndim)))

        own, other = squared(labels), squared((labels + shift) % num_classes)
        margin = jnp.mean(at_label(logits, labels))
        return own - other, {"own": own, "other": other, "logit": margin}


def mu_mis(
    apply_fn: ApplyFn,
    *,
    optimizer: optax.GradientTransformation = optax.adam(5e-5),  # noqa: B008
) -> Descent:
    """Lowers how much the label's logit reacts to the image, and raises that of another class.

        J(params) = mean_F ||d z_y / d x||^2 - ||d z_c / d x||^2,    c uniform over the others

    Sees the forget set alone. J is unbounded below: the step and the number of epochs are all that
    stops it, and belong to what is reported. c is drawn anew at every step: our inference.

    Args:
        apply_fn: The model.
        optimizer: Small: the default is half of FAMR's step, our choice.

    Source: MU-Mis (arXiv 2402.15109), by its abstract and summaries; its code was not seen.
    """
    return descend(Sensitivity(apply_fn), optimizer, epoch_over="forget")
