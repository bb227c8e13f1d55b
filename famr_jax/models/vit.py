"""Vision Transformers: lean blocks that are cheap to differentiate twice.

Layout chosen for speed on CPU, with the mathematics of the textbook: tokens stay flattened to
`[batch * tokens, dim]` outside attention, queries, keys and values are one product, patches are cut
by a reshape instead of a strided convolution, heads move in front of tokens before they are split,
and GELU and normalisation have their derivatives written out (`smooth.py`).
`experiments/benchmarks/step.py` and `curvature.py` measure the result.
Attention is written out: `jax.nn.dot_product_attention` takes its softmax in float32 even for
float64 inputs, and its cuDNN kernel has no second derivative.
Of weights in bfloat16 (`precision.py`) only products and activations are narrow: softmax, mean and
variance, the residual stream and the head are in float32.
"""

import re
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from famr_jax.models.smooth import at_least_float32, gelu, standardise
from famr_jax.types import check_count, check_number


class Variant(NamedTuple):
    """Width of the residual stream, number of blocks, attention heads."""

    dim: int
    depth: int
    heads: int


VARIANTS = {
    "mu": Variant(32, 2, 2),  # for tests and demos
    "nano": Variant(64, 4, 2),  # for a CPU
    "Ti": Variant(192, 12, 3),
    "S": Variant(384, 12, 6),
    "B": Variant(768, 12, 12),
    "L": Variant(1024, 24, 16),
}
GELU = {"mean": "tanh", "token": "exact"}
"""The form of the GELU that goes with a pooling, unless the name says otherwise."""


def attention(qkv: jax.Array, heads: int) -> jax.Array:
    """Softmax attention of `[n, tokens, 3 * dim]` queries, keys and values, side by side."""
    n, tokens, dim3 = qkv.shape
    split = qkv.reshape(n, tokens, 3 * heads, dim3 // (3 * heads)).swapaxes(1, 2)
    q, k, v = jnp.split(split, 3, axis=1)
    wide = jnp.promote_types(q.dtype, jnp.float32)
    q = q * q.shape[-1] ** -0.5
    scores = jnp.einsum("nhqd,nhkd->nhqk", q, k, preferred_element_type=wide)
    out = jnp.einsum("nhqk,nhkd->nhqd", jax.nn.softmax(scores).astype(v.dtype), v)
    return out.swapaxes(1, 2).reshape(n, tokens, dim3 // 3)


class LayerNorm(nn.Module):
    """Layer normalisation over the last axis, its variance from centred values."""

    epsilon: float = 1e-6

    @nn.compact
    def __call__(self, x):
        scale = self.param("scale", nn.initializers.ones, x.shape[-1:], jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, x.shape[-1:], jnp.float32)
        return standardise(x, self.epsilon).astype(scale.dtype) * scale + bias


def dense(size: int, name: str) -> nn.Dense:
    """A dense layer whose kernel starts by Glorot and Bengio's uniform law."""
    return nn.Dense(size, kernel_init=nn.initializers.xavier_uniform(), name=name)


class Block(nn.Module):
    """Pre-norm transformer block on `[n * tokens, dim]`."""

    heads: int
    gelu: str
    epsilon: float

    @nn.compact
    def __call__(self, x, tokens):
        dim = x.shape[-1]
        qkv = dense(3 * dim, "qkv")(LayerNorm(self.epsilon, name="norm_attention")(x))
        y = attention(qkv.reshape(-1, tokens, 3 * dim), self.heads).reshape(-1, dim)
        x = x + dense(dim, "out")(y)
        y = dense(4 * dim, "up")(LayerNorm(self.epsilon, name="norm_mlp")(x))
        y = gelu(y) if self.gelu == "tanh" else nn.gelu(y, approximate=False)
        return x + dense(dim, "down")(y)


class ViT(nn.Module):
    """Vision Transformer with learned positions (arXiv 2010.11929, mean pooling: 2205.01580).

    Attributes:
        num_classes: Width of the logits.
        patch: Side of a patch, in pixels.
        variant: Sizes.
        pooling: The mean of all tokens, or a class token that comes first in `position`.
        gelu: Its tanh approximation, or exact.
        epsilon: What the layer normalisations add to the variance.
    """

    num_classes: int
    patch: int
    variant: Variant
    pooling: Literal["mean", "token"] = "mean"
    gelu: Literal["tanh", "exact"] = "tanh"
    epsilon: float = 1e-6

    @nn.compact
    def __call__(self, x):
        """Logits `[n, num_classes]` and the named activations of images `[n, h, w, c]`."""
        dim, depth, heads = self.variant
        n, height, width, channels = x.shape
        rows, columns, p = height // self.patch, width // self.patch, self.patch
        tokens = rows * columns
        features = {}

        x = x.reshape(n, rows, p, columns, p, channels).swapaxes(2, 3)
        x = dense(dim, "patches")(x.reshape(n * tokens, -1))
        x, deviation = x.reshape(n, tokens, dim), dim**-0.5
        if self.pooling == "token":
            token = self.param("class_token", nn.initializers.zeros, (dim,), jnp.float32)
            x = jnp.concatenate([jnp.broadcast_to(token, (n, 1, dim)), x], axis=1)
            tokens, deviation = tokens + 1, 0.02
        position = self.param(
            "position", nn.initializers.normal(deviation), (tokens, dim), jnp.float32
        )
        x = at_least_float32(x + position).reshape(n * tokens, dim)
        for i in range(depth):
            x = Block(heads, self.gelu, self.epsilon, name=f"block_{i}")(x, tokens)
            features[f"block_{i}"] = x.reshape(n, tokens, dim)
        norm = LayerNorm(self.epsilon, name="norm")
        if self.pooling == "token":
            x = norm(x.reshape(n, tokens, dim)[:, 0])
        else:
            x = jnp.mean(norm(x).reshape(n, tokens, dim), axis=1)
        features["pre_logits"] = x
        head = nn.Dense(self.num_classes, kernel_init=nn.initializers.zeros, name="head")
        return head(at_least_float32(x)), features


def variant(name: str) -> Variant | None:
    """The sizes of a name of `VARIANTS`, or of a width, a depth and heads as `64x4x2`; or None.

    Without a number of heads, as `64x4`, they are 32 wide.

    Raises:
        ValueError: A width that its heads do not divide, or a size of 0.
    """
    match = re.fullmatch(r"(\d+)x(\d+)(?:x(\d+))?", name)
    if match is None:
        return VARIANTS.get(name)
    dim, depth = int(match[1]), int(match[2])
    check_count("depth", depth)
    if match[3] is None:
        if dim < 32 or dim % 32:
            raise ValueError(f"`model` needs a width that 32 divides, got {dim}.")
        return Variant(dim, depth, dim // 32)
    heads = int(match[3])
    check_count("heads", heads)
    if not dim or dim % heads:
        raise ValueError(f"`model` needs heads that divide its width, got {heads} for {dim}.")
    return Variant(dim, depth, heads)


def label_of(sizes: Variant) -> str:
    """The name that `variant` turns back into these sizes, the shortest there is."""
    for name, row in VARIANTS.items():
        if row == sizes:
            return name
    heads = "" if sizes.heads * 32 == sizes.dim else f"x{sizes.heads}"
    return f"{sizes.dim}x{sizes.depth}{heads}"


def name_of(variant: str, patch: int, pooling: str, gelu: str, epsilon: float) -> str:
    """The name that `module` turns back into these fields, such as `vit_S/16_token`."""
    token = "_token" if pooling == "token" else ""
    form = "" if gelu == GELU[pooling] else f"_{gelu}"
    return f"vit_{variant}/{patch}{token}{form}" + ("" if epsilon == 1e-6 else f"_eps{epsilon!r}")


def module(name: str, num_classes: int) -> ViT | None:
    """The module of a name `vit_V/P`, with `_token`, `_tanh` or `_exact`, `_epsE` behind; or None.

    Raises:
        ValueError: An epsilon that is not above 0, or a width or depth that `variant` refuses.
    """
    match = re.fullmatch(
        r"vit_(\w+)/(\d+)(?:_(token))?(?:_(tanh|exact))?(?:_eps(\d+(?:\.\d+)?(?:e-\d+)?))?",
        name,
    )
    if match is None or (sizes := variant(match[1])) is None:
        return None
    pooling: Any = match[3] or "mean"  # one of the words of the pattern, as is `gelu`
    epsilon = float(match[5] or 1e-6)
    check_number("epsilon", epsilon, above=0)
    gelu: Any = match[4] or GELU[pooling]
    return ViT(num_classes, int(match[2]), sizes, pooling, gelu, epsilon)
