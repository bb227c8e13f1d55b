"""l1-sparse: fine-tuning with a penalty that makes weights small."""

import jax
import jax.numpy as jnp
import optax

from famr_jax.methods.finetune import mean_loss
from famr_jax.types import ApplyFn, check_count, check_number, pytree, static
from famr_jax.unlearn import Descent, descend


@pytree
class Sparse:
    """The objective of `l1_sparse`, which says what its fields mean."""

    apply_fn: ApplyFn = static()
    penalty: float = 5e-4
    decay_steps: int | None = None

    def __call__(self, params, context, pair, key):
        del key
        penalty = self.penalty
        if self.decay_steps is not None:
            penalty *= jnp.maximum(1 - context.step / self.decay_steps, 0)
        retain = mean_loss(self.apply_fn, params, pair.retain)
        size = sum(jnp.sum(jnp.abs(leaf)) for leaf in jax.tree.leaves(params))
        return retain + penalty * size, {"retain": retain, "l1": size}


def l1_sparse(
    apply_fn: ApplyFn,
    *,
    penalty: float = 5e-4,
    decay_steps: int | None = None,
    optimizer: optax.GradientTransformation = optax.adam(2e-3, b2=0.99),  # noqa: B008
) -> Descent:
    """Fine-tunes on the retained set while an l1 penalty shrinks the weights.

        J(params) = mean_R l(x, y; params) + gamma_t ||params||_1

    Args:
        apply_fn: The model.
        penalty: gamma, >= 0; 0 is fine-tuning. The value is our choice for networks of this size:
            the penalty is a sum over all weights, so that a wider network wants a smaller one.
        decay_steps: Steps over which gamma falls linearly to 0; None for a constant one. The public
            code lets it fall epoch by epoch over the whole run.
        optimizer: The training's own step, as in `finetune`.

    Raises:
        ValueError: `penalty` negative or not finite; `decay_steps` below one.

    Source: Model Sparsity Can Simplify Machine Unlearning (arXiv 2304.04934), and its public code.
    """
    check_number("penalty", penalty, least=0)
    if decay_steps is not None:
        check_count("decay_steps", decay_steps)
    return descend(Sparse(apply_fn, penalty, decay_steps), optimizer, epoch_over="retain")
