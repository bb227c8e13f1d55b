"""Fisher noise: drown in noise what the retained set does not need."""

import jax
import jax.numpy as jnp
import optax

from famr_jax.curvature.gradients import mean_square
from famr_jax.losses import cross_entropy
from famr_jax.types import ApplyFn, check_number, pytree, static
from famr_jax.unlearn import OneShot, in_memory


@pytree
class Scrubbing:
    """The edit of `fisher_noise`, which says what its fields mean."""

    apply_fn: ApplyFn = static()
    alpha: float = 1e-7
    most: float = 1e-3

    def __call__(self, params, forget, retain, key):
        del forget

        def losses(params, batch):
            return cross_entropy(self.apply_fn(params, batch.x), batch.labels)

        fisher = mean_square(losses, params, in_memory("retain", retain))
        leaves, structure = jax.tree.flatten(params)
        keys = jax.tree.unflatten(structure, jax.random.split(key, len(leaves)))

        def noise(key, leaf, f):
            deviation = jnp.minimum(jnp.sqrt(self.alpha / (f + 1e-16)), self.most)
            return deviation * jax.random.normal(key, leaf.shape, leaf.dtype)

        added = jax.tree.map(noise, keys, params, fisher)
        return optax.tree.add(params, added), {"noise": optax.tree.norm(added)}


def fisher_noise(
    apply_fn: ApplyFn,
    *,
    alpha: float = 1e-7,
    most: float = 1e-3,
    optimizer: optax.GradientTransformation | None = None,
) -> OneShot:
    """Adds Gaussian noise once, the more the less a weight matters to the retained set: no descent.

        params_j <- params_j + min(sqrt(alpha / r_j), most) n_j,    n_j ~ N(0, 1)
        r_j = mean_R (d l / d params_j)^2

    It forgets by destroying: on a saturated net most r_j are nearly 0, so that `most` is the
    deviation of nearly all weights and the knob that matters.

    Args:
        apply_fn: The model.
        alpha: Scale of the noise, > 0: our choice; the source takes it case by case.
        most: Largest deviation, > 0; the public code's is 1e-3, and ten times that in the last
            layer of ten classes.
        optimizer: Not used.

    Raises:
        ValueError: A number out of range.

    Source: Eternal Sunshine of the Spotless Net (arXiv 1911.04933), as in SalUn's public code.
    """
    del optimizer
    check_number("alpha", alpha, above=0)
    check_number("most", most, above=0)
    return OneShot(Scrubbing(apply_fn, alpha, most), epoch_over="retain")
