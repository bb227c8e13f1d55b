"""Computing in bfloat16 with weights, gradients and optimizer in float32."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from famr_jax.types import ApplyFn, Params


@dataclass(frozen=True)
class _ComputingIn:
    """A function that equals another of the same model and dtype: jit compares it."""

    apply_fn: ApplyFn
    dtype: jnp.dtype

    def __call__(self, params: Params, x: Array) -> Array:
        narrow = jax.tree.map(lambda leaf: leaf.astype(self.dtype), params)
        logits = self.apply_fn(narrow, x.astype(self.dtype))
        return logits.astype(jax.tree.leaves(params)[0].dtype)


def computing_in(apply_fn: ApplyFn, dtype: DTypeLike) -> ApplyFn:
    """The same model, computed in another dtype than that of its weights.

    Weights and images are cast on the way in and logits back on the way out, so that logits, loss,
    gradients and optimizer have the dtype of the weights. Within a ViT softmax, normalisation,
    residual stream and head stay in float32; a bfloat16 number has 8 bits of precision.

    Args:
        apply_fn: The model.
        dtype: Such as "bfloat16".

    Raises:
        ValueError: `dtype` is not one of floating point.
    """
    try:
        floating = jnp.issubdtype(dtype, jnp.floating)
    except TypeError:
        floating = False
    if not floating:
        raise ValueError(f"`dtype` must be one of floating point, got {dtype!r}.")
    return _ComputingIn(apply_fn, jnp.dtype(dtype))
