"""SSD: dampen the weights that matter more to the forget set than to the retained set."""

import jax
import jax.numpy as jnp
import optax

from famr_jax.curvature.gradients import mean_square
from famr_jax.losses import cross_entropy
from famr_jax.types import ApplyFn, check_number, pytree, static
from famr_jax.unlearn import OneShot, in_memory


@pytree
class Dampening:
    """The edit of `ssd`, which says what its fields mean."""

    apply_fn: ApplyFn = static()
    alpha: float = 10.0
    dampening: float = 1.0

    def __call__(self, params, forget, retain, key):
        del key

        def losses(params, batch):
            return cross_entropy(self.apply_fn(params, batch.x), batch.labels)

        gone, kept = (
            mean_square(losses, params, in_memory(name, data))
            for name, data in (("forget", forget), ("retain", retain))
        )
        chosen = jax.tree.map(lambda f, r: f > self.alpha * r, gone, kept)

        def dampened(leaf, chosen, f, r):
            factor = jnp.minimum(self.dampening * r / jnp.where(chosen, f, 1), 1)
            return jnp.where(chosen, leaf * factor, leaf)

        count = sum(jnp.sum(leaf) for leaf in jax.tree.leaves(chosen))
        size = sum(leaf.size for leaf in jax.tree.leaves(chosen))
        return jax.tree.map(dampened, params, chosen, gone, kept), {"dampened": count / size}


def ssd(
    apply_fn: ApplyFn,
    *,
    alpha: float = 10.0,
    dampening: float = 1.0,
    optimizer: optax.GradientTransformation | None = None,
) -> OneShot:
    """Shrinks, once, the weights whose Fisher information is larger on the forget set: no descent.

        where f_j > alpha r_j:    params_j <- min(lambda r_j / f_j, 1) params_j
        f_j = mean_F (d l / d params_j)^2,    r_j = mean_R (d l / d params_j)^2

    Args:
        apply_fn: The model.
        alpha: Selection, > 0; above max f_j / r_j every weight keeps its bits.
        dampening: lambda, >= 0.
        optimizer: Not used.

    Raises:
        ValueError: A number out of range.

    Source: Selective Synaptic Dampening (arXiv 2308.07707), alpha 10 and lambda 1, by its public
        code. Two deviations. Its r is of all training data, where f_j / r_j never exceeds n / |F|,
        so that alpha 10 leaves a class of ten alone; ours is of the retained data. It squares the
        mean gradients of batches; we square each example's.
    """
    del optimizer
    check_number("alpha", alpha, above=0)
    check_number("dampening", dampening, least=0)
    return OneShot(Dampening(apply_fn, alpha, dampening), epoch_over="retain")
