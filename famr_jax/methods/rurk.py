"""RURK: forget perturbed copies of the forget set as well."""

import jax
import optax

from famr_jax.methods.finetune import mean_loss
from famr_jax.types import ApplyFn, Batch, check_number, pytree, static
from famr_jax.unlearn import Descent, descend


@pytree
class Perturbed:
    """The objective of `rurk`, which says what its fields mean."""

    apply_fn: ApplyFn = static()
    forget_weight: float = 0.05
    radius: float = 0.06

    def __call__(self, params, context, pair, key):
        del context
        x = pair.forget.x
        moved = x + self.radius * jax.random.uniform(key, x.shape, x.dtype, -1, 1)
        retain = mean_loss(self.apply_fn, params, pair.retain)
        forget = mean_loss(self.apply_fn, params, pair.forget)
        near = mean_loss(self.apply_fn, params, Batch(moved, pair.forget.labels))
        value = retain - self.forget_weight * (forget + near) / 2
        return value, {"forget": forget, "near": near, "retain": retain}


def rurk(
    apply_fn: ApplyFn,
    *,
    forget_weight: float = 0.05,
    radius: float = 0.06,
    optimizer: optax.GradientTransformation = optax.adam(5e-4),  # noqa: B008
) -> Descent:
    """Descends the retained loss and ascends that of forgotten images and of copies beside them.

        J(params) = mean_R l(x, y) - w mean_F [l(x, y) + l(x + d, y)] / 2,    d uniform in the cube

    The source says that a model may recognise perturbed copies of what it forgot, and fine-tunes
    against that. This form is our inference from its abstract: `descent_ascent` on both kinds of
    image. J is unbounded below.

    Args:
        apply_fn: The model.
        forget_weight: w, >= 0: our choice, that of `neggradplus`.
        radius: Half the side of the cube, >= 0, of images in [-1, 1]: twice the .03 of images in
            [0, 1] at which the source finds its effect; drawn anew at every step.
        optimizer: That of `neggradplus`.

    Raises:
        ValueError: A number out of range.

    Source: RURK, The Unseen Threat (arXiv 2601.22359), by its abstract.
    """
    check_number("forget_weight", forget_weight, least=0)
    check_number("radius", radius, least=0)
    return descend(Perturbed(apply_fn, forget_weight, radius), optimizer, epoch_over="retain")
