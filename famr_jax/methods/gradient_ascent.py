"""Gradient ascent: raise the training loss on the forget set."""

import jax.numpy as jnp
import optax

from famr_jax.losses import cross_entropy
from famr_jax.types import ApplyFn, pytree, static
from famr_jax.unlearn import Descent, descend


@pytree
class Ascent:
    """The objective of gradient ascent, J = -mean_F l(x, y); it has no lower bound."""

    apply_fn: ApplyFn = static()

    def __call__(self, params, context, pair, key):
        del context, key
        logits = self.apply_fn(params, pair.forget.x)
        forget = jnp.mean(cross_entropy(logits, pair.forget.labels))
        return -forget, {"forget": forget}


def gradient_ascent(
    apply_fn: ApplyFn,
    *,
    optimizer: optax.GradientTransformation = optax.sgd(1e-4),  # noqa: B008
) -> Descent:
    """Ascends the cross-entropy of the forget set, which nothing holds back.

        J(params) = -mean_{(x, y) in F} l(x, y; params)

    J is unbounded below, so the number of epochs and the step are all that stops it: both belong
    to what is reported.

    Args:
        apply_fn: The model.
        optimizer: The paper's steps are 1e-5 to 5e-2 of SGD. There is little between a step that
            does nothing and one that breaks the model; the default is on the safe side.

    Source: the baseline GA of Ascent Fails to Forget (arXiv 2509.26427).
    """
    return descend(Ascent(apply_fn), optimizer, epoch_over="forget")
