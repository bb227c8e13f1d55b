"""FAMR for styles: Gram matrices drawn to a neutral reference, weights held near the trained."""

from collections.abc import Callable, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import optax
from jax import Array

from famr_jax.losses import gram, gram_distance, l2_anchor
from famr_jax.types import Params, check_count, check_number, pytree, static
from famr_jax.unlearn import Descent, descend

FeaturesFn = Callable[[Params, Array], dict[str, Array]]


@pytree
class AnchoredStyle:
    """The objective of `famr_style`, which says what its fields mean."""

    features_fn: FeaturesFn = static()
    reference: dict[str, Array]
    lam: float = 0.1

    def __call__(self, params, context, pair, key):
        del key
        features = self.features_fn(params, pair.forget.x)
        forget = jnp.mean(gram_distance(features, self.reference))
        distance = l2_anchor(params, context.anchor)
        return forget + self.lam * distance, {"forget": forget, "anchor": distance}


def famr_style(
    features_fn: FeaturesFn,
    reference: dict[str, Array],
    *,
    lam: float = 0.1,
    optimizer: optax.GradientTransformation = optax.adam(1e-4),  # noqa: B008
) -> Descent:
    """Forgets a style: draws the Gram matrices of the forget set to a neutral reference.

        J(params) = mean_{x in T} sum_l ||G_l(x) - G_l^ref||_F^2 / ||G_l^ref||_F^2
                    + (lam/2) ||params - anchor||^2

    Sees the styled images alone, and of others only their mean Gram matrices, if any.

    Args:
        features_fn: The model's activations by name, as `Model.features`.
        reference: G_l^ref by name of the layer, `[channels, channels]`; from `mean_gram` at the
            trained weights, of retained images or of noise.
        lam: Strength of the anchor, >= 0.
        optimizer: Any optax transformation.

    Raises:
        ValueError: `reference` names no layer; `lam` negative or not finite.

    Source: FAMR (arXiv 2506.14515), style forgetting; scale and reference are our choice.
    """
    if not reference:
        raise ValueError("`reference` must name at least 1 layer, got none.")
    check_number("lam", lam, least=0)
    return descend(AnchoredStyle(features_fn, reference, lam), optimizer, epoch_over="forget")


def mean_gram(
    features_fn: FeaturesFn,
    params: Params,
    x: Array,
    *,
    layers: Sequence[str],
    batch_size: int = 500,
) -> dict[str, Array]:
    """The mean Gram matrix of images at the named layers, `[channels, channels]` each.

    Args:
        features_fn: The model's activations by name.
        params: The weights, as a rule the trained ones.
        x: Images, `[n, height, width, channels]`: retained ones, or noise.
        layers: Names of activations, as `block_0`.
        batch_size: Images at a time.

    Raises:
        ValueError: No image; a layer that the model has not; `batch_size` below one.
    """
    check_count("batch_size", batch_size)
    if not len(x):
        raise ValueError("`x` must hold at least 1 image, got 0.")
    names = jax.eval_shape(features_fn, params, x[:1])
    for name in layers:
        if name not in names:
            raise ValueError(f"`layers` must be among {', '.join(names)}, got {name!r}.")
    parts = [
        _sum_of_grams(features_fn, params, x[i : i + batch_size], tuple(layers))
        for i in range(0, len(x), batch_size)
    ]
    return jax.tree.map(lambda *sums: sum(sums) / len(x), *parts)


@partial(jax.jit, static_argnames=("features_fn", "layers"))
def _sum_of_grams(features_fn, params, x, layers):
    features = features_fn(params, x)
    return {name: jnp.sum(gram(features[name]), axis=0) for name in layers}
