"""Fine-tuning: go on training, on the retained set alone."""

import jax.numpy as jnp
import optax
from jax import Array

from famr_jax.losses import cross_entropy
from famr_jax.types import ApplyFn, Batch, Params, pytree, static
from famr_jax.unlearn import Descent, descend


def mean_loss(apply_fn: ApplyFn, params: Params, batch: Batch) -> Array:
    """The mean cross-entropy of a batch."""
    return jnp.mean(cross_entropy(apply_fn(params, batch.x), batch.labels))


@pytree
class FineTuning:
    """The objective of `finetune`, J = mean_R l(x, y)."""

    apply_fn: ApplyFn = static()

    def __call__(self, params, context, pair, key):
        del context, key
        retain = mean_loss(self.apply_fn, params, pair.retain)
        return retain, {"retain": retain}


def finetune(
    apply_fn: ApplyFn,
    *,
    optimizer: optax.GradientTransformation = optax.adam(2e-3, b2=0.99),  # noqa: B008
) -> Descent:
    """Goes on training on the retained set alone, and trusts that the rest is forgotten.

        J(params) = mean_R l(x, y; params)

    The step is all that makes it forget: at a tenth of the training's own it hardly moves. The
    default is the peak rate and the moments of `train.Recipe`'s defaults.

    Args:
        apply_fn: The model.
        optimizer: The training's own step, or a little less; weight decay belongs to it.

    Source: the baseline FT of every comparison, as SalUn (arXiv 2310.12508).
    """
    return descend(FineTuning(apply_fn), optimizer, epoch_over="retain")
