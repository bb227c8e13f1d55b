"""What anyone's model must keep to, refused in one sentence with the cure before it is used."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax.errors import TraceContextError
from jax import Array
from jax.core import Tracer

from famr_jax import mesh
from famr_jax.types import ApplyFn, Params, Source

ROWS = 8
"""Images that are looked at."""
LARGEST = 10.0
"""Of pixels: 1 in [-1, 1], below 3 where they are standardised, up to 255 in bytes."""
SHIFT, PLACE = 1e-6, 1e-3
"""Relative shift of logits by another image of the batch, and by the place in it."""


def check(apply_fn: ApplyFn, params: Params, x: Array | Source) -> None:
    """Raises a `ValueError`, which says the cure, unless a model keeps the contract of `ApplyFn`.

    The logits of an image a must be the same in (a, b) and in (a, c), to 1e-6 of the largest, and
    in (b, a), to 1e-3. One program, compiled once for each `apply_fn` and shape. Weights that are
    traced or have only shapes are checked by their types and the shape of the logits.

    Args:
        apply_fn: The model.
        params: Its weights.
        x: Images, `[n, height, width, channels]`, or a `Source`; the first few are looked at.

    Raises:
        ValueError: A leaf of `params` that is not in floating point; images that are, or once
            were, bytes; outputs that are not `[n, num_classes]`; logits that depend on other
            images, as in batch normalisation, or on the place among them, as in dropout.
    """
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        dtype = getattr(leaf, "dtype", np.result_type(type(leaf)))
        if not jnp.issubdtype(dtype, jnp.floating):
            name = jax.tree_util.keystr(path, simple=True, separator="/") or "its only leaf"
            raise ValueError(
                f"`params` must be weights in floating point, got {dtype} at {name}: take counters "
                "and keys out, `graphdef, params, rest = nnx.split(model, nnx.Param, ...)`."
            )
    rows = _few(x, read=all(map(_is_concrete, jax.tree.leaves(params))))
    if not hasattr(rows, "dtype"):
        raise ValueError(f"`x` must be an array of images, got {type(rows).__name__}.")
    scale = "`x / 127.5 - 1` scales bytes, as `batch()` of a split does"
    if not jnp.issubdtype(rows.dtype, jnp.floating):
        raise ValueError(f"`x` must be images scaled to [-1, 1], got {rows.dtype}: {scale}.")
    _check_logits(apply_fn, params, rows)
    # Under a trace, as of a caller whose shapes are asked for, the rows are traced, too.
    if not (all(map(_is_concrete, jax.tree.leaves((params, rows)))) and len(rows)):
        return
    rows = mesh.fetch(rows)
    finite = np.abs(rows[np.isfinite(rows)])  # what is not is no matter of its scale
    if (largest := float(np.max(finite, initial=0))) > LARGEST:
        raise ValueError(f"`x` must be images scaled to [-1, 1], got {largest:g}: {scale}.")
    _check_rows(apply_fn, params, rows[0])


def _few(x, *, read):
    if not isinstance(x, Source):
        return x[:ROWS]
    shape = (min(ROWS, len(x)), *x.image_shape)
    return x[:ROWS].batch().x if read else jax.ShapeDtypeStruct(shape, np.float32)


def _is_concrete(leaf):
    return isinstance(leaf, (jax.Array, np.ndarray)) and not isinstance(leaf, Tracer)


def _check_logits(apply_fn, params, x):
    pair = jax.ShapeDtypeStruct((2, *x.shape[1:]), x.dtype)
    try:
        found = _logits.eval_shape(apply_fn, params, pair)
    except TraceContextError as error:  # of NNX, whose layers write down what they see
        raise ValueError(
            "`apply_fn` must be pure, but a layer of it changes its own state, as batch "
            f"normalisation and dropout do unless `model.eval()` was called: {error}"
        ) from error
    if isinstance(found, jax.ShapeDtypeStruct):
        if found.ndim == 2 and len(found) == 2 and jnp.issubdtype(found.dtype, jnp.floating):
            return
        got = f"{found.dtype}{list(found.shape)}"
    else:
        got = type(found).__name__
    rule = "must give logits alone, floating point of shape [2, num_classes] for 2 images"
    raise ValueError(f"`apply_fn` {rule}, got {got}.")


def _check_rows(apply_fn, params, image):
    other, another = image / 2, (1 - image) / 2
    pairs = [np.stack(pair) for pair in ((image, other), (image, another), (other, image))]
    found = [_logits(apply_fn, params, pair) for pair in pairs]
    if isinstance(
        found[0], Tracer
    ):  # of images on disk, too, where a caller's shapes are asked for
        return
    one, two, turned = map(mesh.fetch, found)
    if not one.any():  # a head that starts at zero hides all that is before it
        params = jax.tree.map(_waves_for_zeros, params)
        one, two, turned = (mesh.fetch(_logits(apply_fn, params, pair)) for pair in pairs)
    if not (np.isfinite(one).all() and (size := np.max(np.abs(one[0]))) > 0):
        return
    shift, place = (float(np.max(np.abs(one[0] - row)) / size) for row in (two[0], turned[1]))
    epsilon = max(float(jnp.finfo(leaf.dtype).eps) for leaf in (one, *jax.tree.leaves(params)))
    if shift > max(SHIFT, 8 * epsilon):
        raise ValueError(
            "`apply_fn` must give an image logits that depend on it alone, but another image in "
            f"the batch moves them by {shift:.2g} of the largest: batch normalisation must use its "
            "running statistics, as after `model.eval()`, or be trained as `models.BatchNorm` says."
        )
    if place > max(PLACE, 32 * epsilon):
        raise ValueError(
            "`apply_fn` must give an image the same logits at every place of a batch, but they "
            f"move by {place:.2g} of the largest: switch dropout off, as by `model.eval()`."
        )


def _waves_for_zeros(leaf):
    if not getattr(leaf, "is_fully_addressable", True) or np.any(leaf):
        return leaf
    return np.asarray(0.1 * np.cos(np.arange(leaf.size)).reshape(leaf.shape), leaf.dtype)


@partial(jax.jit, static_argnames="apply_fn")
def _logits(apply_fn, params, x):
    return mesh.gather(apply_fn(params, x))
