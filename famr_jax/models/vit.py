"""Vision Transformers: lean blocks that are cheap to differentiate twice.

Layout chosen for speed on CPU, with the mathematics of the textbook: tokens stay flattened to
`[batch * tokens, dim]` outside attention, queries, keys and values are one product, patches are cut
by a reshape instead of a strided convolution, heads move in front of tokens before they are split,
and layer normalisation is written out. `experiments/benchmarks/step.py` measures the result.
Attention is written out: `jax.nn.dot_product_attention` takes its softmax in float32 even for
float64 inputs, and its cuDNN kernel has no second derivative.
"""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp


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


def attention(qkv: jax.Array, heads: int) -> jax.Array:
    """Softmax attention of `[n, tokens, 3 * dim]` queries, keys and values, side by side."""
    n, tokens, dim3 = qkv.shape
    split = qkv.reshape(n, tokens, 3 * heads, dim3 // (3 * heads)).swapaxes(1, 2)
    q, k, v = jnp.split(split, 3, axis=1)
    scores = jnp.einsum("nhqd,nhkd->nhqk", q * q.shape[-1] ** -0.5, k)
    out = jnp.einsum("nhqk,nhkd->nhqd", jax.nn.softmax(scores), v)
    return out.swapaxes(1, 2).reshape(n, tokens, dim3 // 3)


class LayerNorm(nn.Module):
    """Layer normalisation over the last axis, its variance from centred values, epsilon 1e-6."""

    @nn.compact
    def __call__(self, x):
        scale = self.param("scale", nn.initializers.ones, x.shape[-1:], jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, x.shape[-1:], jnp.float32)
        x = x - jnp.mean(x, axis=-1, keepdims=True)
        variance = jnp.mean(x * x, axis=-1, keepdims=True)
        return x * jax.lax.rsqrt(variance + 1e-6) * scale + bias


class Block(nn.Module):
    """Pre-norm transformer block on `[n * tokens, dim]`."""

    heads: int

    @nn.compact
    def __call__(self, x, tokens):
        dim = x.shape[-1]
        dense = lambda size, name: nn.Dense(size, kernel_init=XAVIER, name=name)  # noqa: E731

        qkv = dense(3 * dim, "qkv")(LayerNorm(name="norm_attention")(x))
        y = attention(qkv.reshape(-1, tokens, 3 * dim), self.heads).reshape(-1, dim)
        x = x + dense(dim, "out")(y)
        y = nn.gelu(dense(4 * dim, "up")(LayerNorm(name="norm_mlp")(x)))
        return x + dense(dim, "down")(y)


XAVIER = nn.initializers.xavier_uniform()


class ViT(nn.Module):
    """Vision Transformer with learned positions and mean pooling (arXiv 2010.11929, 2205.01580)."""

    num_classes: int
    patch: int
    variant: Variant

    @nn.compact
    def __call__(self, x):
        """Logits `[n, num_classes]` and the named activations of images `[n, h, w, c]`."""
        dim, depth, heads = self.variant
        n, height, width, channels = x.shape
        rows, columns, p = height // self.patch, width // self.patch, self.patch
        tokens = rows * columns
        features = {}

        x = x.reshape(n, rows, p, columns, p, channels).swapaxes(2, 3)
        x = nn.Dense(dim, kernel_init=XAVIER, name="patches")(x.reshape(n * tokens, -1))
        position = self.param(
            "position", nn.initializers.normal(dim**-0.5), (tokens, dim), jnp.float32
        )
        x = (x.reshape(n, tokens, dim) + position).reshape(n * tokens, dim)
        for i in range(depth):
            x = Block(heads, name=f"block_{i}")(x, tokens)
            features[f"block_{i}"] = x.reshape(n, tokens, dim)
        x = LayerNorm(name="norm")(x)
        x = features["pre_logits"] = jnp.mean(x.reshape(n, tokens, dim), axis=1)
        head = nn.Dense(self.num_classes, kernel_init=nn.initializers.zeros, name="head")
        return head(x), features
