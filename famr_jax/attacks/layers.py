"""What every layer of a model holds: its features, and what the model's own head reads in them."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from famr_jax import metrics
from famr_jax.models.smooth import at_least_float32
from famr_jax.models.vit import LayerNorm, ViT
from famr_jax.types import Params, Source


def layer_features(
    features: Callable[[Params, Array], dict[str, Array]],
    params: Params,
    x: Array | Source,
    *,
    batch_size: int = 500,
) -> dict[str, np.ndarray]:
    """Activations of every layer, each averaged over its tokens or pixels, by one program.

    Args:
        features: `features(params, x)`, each layer's activations `[n, ..., dim]` by its name.
        params: The weights.
        x: Images, `[n, height, width, channels]`, or a `Source`.
        batch_size: Images at a time.

    Returns:
        An array `[n, dim]` for each layer, in forward order.

    Raises:
        ValueError: No image.
    """
    if not len(x):
        raise ValueError("`x` must hold at least 1 image, got 0.")
    shapes = layer_shapes(features, params, x)
    joined = metrics.predict(_Pooled(features, tuple(shapes)), params, x, batch_size=batch_size)
    ends = np.cumsum([shape[-1] for shape in shapes.values()])
    parts = np.split(np.asarray(joined), ends[:-1], axis=1)
    return dict(zip(shapes, parts, strict=True))


def layer_shapes(
    features: Callable[[Params, Array], dict[str, Array]], params: Params, x: Array | Source
) -> dict[str, tuple[int, ...]]:
    """The shape of each layer's activations of one image, in forward order.

    `jax.eval_shape` alone would sort their names, as `jit` does.
    """
    order: list[str] = []

    def noted(params, x):
        found = features(params, x)
        order.extend(found)
        return found

    first = x[:1].batch().x if isinstance(x, Source) else x[:1]
    found = jax.eval_shape(noted, params, first)
    return {name: found[name].shape for name in order}


@dataclass(frozen=True)
class _Pooled:
    """All layers side by side as a function, equal to another of its kind: jit compiles it once."""

    features: Callable
    names: tuple[str, ...]

    def __call__(self, params, x):
        found = self.features(params, x)
        pooled = [found[n].mean(tuple(range(1, found[n].ndim - 1))) for n in self.names]
        return jnp.concatenate(pooled, axis=-1)


def read_out(module: ViT, params: Params, tokens: Array) -> Array:
    """Logits that a Vision Transformer's last normalisation, pooling and head read in a block.

    Args:
        module: The Vision Transformer.
        params: Its weights.
        tokens: Features of any of its blocks, `[n, tokens, dim]`; of the last one it gives the
            model's logits.

    Returns:
        Logits, `[n, num_classes]`.
    """
    norm: Any = LayerNorm(module.epsilon)  # what `apply` gives has a wider type

    def normalised(x: Array) -> Array:
        return norm.apply({"params": params["norm"]}, x)

    if module.pooling == "token":
        x = normalised(tokens[:, 0])
    else:
        x = jnp.mean(normalised(tokens), axis=1)
    head: Any = nn.Dense(module.num_classes)
    return head.apply({"params": params["head"]}, at_least_float32(x))


def logit_lens(
    model: Any, params: Params, x: Array | Source, *, batch_size: int = 500
) -> dict[str, np.ndarray]:
    """What the model would answer if its head read each block instead of the last, by one program.

        logits_i = head(pool(norm(block_i(x))))

    The last block's are the model's logits; in others the head may miss what a probe finds.

    Args:
        model: A `models.Model` of a Vision Transformer.
        params: Its weights.
        x: Images, `[n, height, width, channels]`, or a `Source`.
        batch_size: Images at a time.

    Returns:
        Logits `[n, num_classes]` for each block, in forward order.

    Raises:
        ValueError: The model is no Vision Transformer, whose blocks alone share the head's width.

    Source: nostalgebraist, "interpreting GPT: the logit lens" (2020), there of language models.
    """
    module = getattr(model, "module", None)
    if not isinstance(module, ViT):
        raise ValueError(f"`model` must be a Vision Transformer, got {type(module).__name__}.")
    shapes = layer_shapes(model.features, params, x)
    names = tuple(name for name in shapes if name.startswith("block_"))
    lens = _Lens(model.features, module, names)
    stacked = np.asarray(metrics.predict(lens, params, x, batch_size=batch_size))
    return {name: stacked[:, i] for i, name in enumerate(names)}


@dataclass(frozen=True)
class _Lens:
    """The logits of all blocks as a function, `[n, blocks, num_classes]`; compiled once."""

    features: Callable
    module: ViT
    names: tuple[str, ...]

    def __call__(self, params, x):
        found = self.features(params, x)
        logits = [read_out(self.module, params, found[name]) for name in self.names]
        return jnp.stack(logits, axis=1)
