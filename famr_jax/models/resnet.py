"""ResNet-18 with group or batch normalisation, for comparison with the literature on unlearning."""

from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from famr_jax.models.batchnorm import EPSILON

WIDTH = 64
"""Channels of the first of four stages; each further one has twice as many."""
GROUPS = 32
Norm = Literal["group", "batch", "affine"]
HE = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


class Block(nn.Module):
    """Two 3x3 convolutions and a shortcut, a projection where the shape changes."""

    channels: int
    stride: int
    norm: Norm

    @nn.compact
    def __call__(self, x):
        y = nn.relu(norm(self.norm, "norm_1")(conv(self.channels, 3, self.stride, "conv_1")(x)))
        y = norm(self.norm, "norm_2")(conv(self.channels, 3, 1, "conv_2")(y))
        if x.shape != y.shape:
            x = norm(self.norm, "norm_shortcut")(
                conv(self.channels, 1, self.stride, "conv_shortcut")(x)
            )
        return nn.relu(x + y)


class ResNet18(nn.Module):
    """ResNet-18 (arXiv 1512.03385), by default with 32 groups (1803.08494) for batch statistics.

    Its batch normalisation is the original's, with momentum 0.9; folded, it is "affine". Images of
    up to 64 pixels enter through one 3x3 convolution, as in the literature on CIFAR; larger ones
    through 7x7 with stride 2 and max pooling.
    """

    num_classes: int
    norm: Norm = "group"
    width: int = WIDTH

    @nn.compact
    def __call__(self, x):
        """Logits `[n, num_classes]` and the named activations of images `[n, h, w, c]`."""
        features = {}
        large = max(x.shape[1:3]) > 64
        stem = conv(self.width, *((7, 2) if large else (3, 1)), "conv")
        x = nn.relu(norm(self.norm, "norm")(stem(x)))
        if large:
            sides: Any = ((1, 1), (1, 1))  # Flax takes them, and says only `str`
            x = nn.max_pool(x, (3, 3), strides=(2, 2), padding=sides)
        for i in range(8):
            stage, second = divmod(i, 2)
            stride = 2 if stage and not second else 1
            x = Block(self.width * 2**stage, stride, self.norm, name=f"block_{i}")(x)
            features[f"block_{i}"] = x.reshape(x.shape[0], -1, x.shape[-1])
        x = features["pre_logits"] = jnp.mean(x, axis=(1, 2))
        head = nn.Dense(self.num_classes, kernel_init=nn.initializers.zeros, name="head")
        return head(x), features


def conv(channels: int, size: int, stride: int, name: str) -> nn.Conv:
    """A convolution without bias; padded on both sides, where SAME would pad one with stride 2."""
    side = (size // 2, size // 2)
    return nn.Conv(
        channels,
        (size, size),
        stride,
        (side, side),
        use_bias=False,
        kernel_init=HE,
        conv_general_dilated=convolved,
        name=name,
    )


def convolved(
    x: Array, kernel: Array, strides: tuple[int, int], padding: Any, **others: Any
) -> Array:
    """`lax.conv_general_dilated` of images `[n, h, w, c]`; on a CPU a product of all patches.

    In a loop, as the steps of an epoch or of a solver are, XLA's CPU compiler has nothing but plain
    loops for a convolution's derivatives (jax-ml/jax, issue 12868): a gradient step took 8 to 15
    times as long (`experiments/benchmarks/convolution.py`, which has the price outside of loops
    too). Patches of an h x w kernel take h w times the memory of its images, or that by the
    product of the strides. JAX's default backend decides.

    Args:
        x: Images.
        kernel: `[height, width, c, channels]`.
        strides: Of rows and of columns.
        padding: What is put before and behind, of rows and of columns.
        others: Those of `conv_general_dilated` that Flax gives; on a CPU as good as left out, since
            `conv` asks for no dilation and no groups.
    """
    if jax.default_backend() != "cpu":
        return jax.lax.conv_general_dilated(x, kernel, strides, padding, **others)
    height, width, _, channels = kernel.shape
    x = jnp.pad(x, ((0, 0), *padding, (0, 0)))
    rows = jnp.concatenate(_shifted(x, height, strides[0], axis=1), axis=-1)
    patches = jnp.concatenate(_shifted(rows, width, strides[1], axis=2), axis=-1)
    product = patches.reshape(-1, patches.shape[-1]) @ kernel.swapaxes(0, 1).reshape(-1, channels)
    return product.reshape(*patches.shape[:-1], channels)


def _shifted(x, size, stride, axis):
    """What each place of a kernel of that size sees along an axis."""
    last = x.shape[axis] - size
    return [jax.lax.slice_in_dim(x, start, start + last + 1, stride, axis) for start in range(size)]


def norm(kind: Norm, name: str) -> nn.Module:
    """A normalisation with the epsilon of PyTorch; the fast variance would cancel digits."""
    if kind == "affine":
        return Affine(name=name)
    if kind == "group":
        return nn.GroupNorm(GROUPS, epsilon=EPSILON, use_fast_variance=False, name=name)
    return nn.BatchNorm(
        use_running_average=False,
        momentum=0.9,
        epsilon=EPSILON,
        use_fast_variance=False,
        name=name,
    )


class Affine(nn.Module):
    """What batch normalisation is once its statistics are folded into it."""

    @nn.compact
    def __call__(self, x):
        scale = self.param("scale", nn.initializers.ones, x.shape[-1:], jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, x.shape[-1:], jnp.float32)
        return x * scale + bias
