"""CT: transpose the filters of the convolutions in space, then fine-tune."""

import math

import jax
import jax.numpy as jnp
import optax

from famr_jax.methods.finetune import mean_loss
from famr_jax.types import ApplyFn, Source, pytree, static
from famr_jax.unlearn import Descent, descend, subtree, with_subtree


@pytree
class Transposed:
    """The objective of `ct`, which says what its fields mean."""

    apply_fn: ApplyFn = static()
    patches: tuple[str, ...] = static(default=("patches", "kernel"))

    def start(self, params, context, forget):
        del context
        if any(leaf.ndim == 4 for leaf in jax.tree.leaves(params)):
            return jax.tree.map(lambda a: jnp.swapaxes(a, 0, 1) if a.ndim == 4 else a, params)
        shape = forget.image_shape if isinstance(forget, Source) else forget.x.shape[1:]
        kernel = subtree(params, self.patches)
        side = math.isqrt(len(kernel) // shape[-1])
        if side**2 * shape[-1] != len(kernel):
            raise ValueError(f"`patches` must be square, got {len(kernel)} rows of {shape[-1]}.")
        square = kernel.reshape(side, side, shape[-1], -1)
        return with_subtree(params, self.patches, square.swapaxes(0, 1).reshape(kernel.shape))

    def __call__(self, params, context, pair, key):
        del context, key
        retain = mean_loss(self.apply_fn, params, pair.retain)
        return retain, {"retain": retain}


def ct(
    apply_fn: ApplyFn,
    *,
    patches: tuple[str, ...] = ("patches", "kernel"),
    optimizer: optax.GradientTransformation = optax.adam(2e-3, b2=0.99),  # noqa: B008
) -> Descent:
    """Swaps height and width of every filter, which confuses the model, then fine-tunes.

        kernel[h, w] <- kernel[w, h],  once;    J(params) = mean_R l(x, y; params)

    Args:
        apply_fn: The model.
        patches: Path of the patch embedding's kernel, `[side * side * channels, dim]`, which is
            transposed where the weights have no convolution, that is no array of four axes.
        optimizer: The source takes SGD at 1e-3, momentum .9, falling by a cosine over 3 epochs. The
            default is the training's own step.

    Raises:
        ValueError: The weights have neither; or a patch that is not square.

    Source: Convolution Transpose, `kgltop5` of DeepUnlearn (arXiv 2410.01276), by its code. The
        patch embedding of a ViT is one convolution, written as a matrix.
    """
    return descend(Transposed(apply_fn, patches), optimizer, epoch_over="retain")
