"""Image classifiers behind one contract: `create(name, ...)` gives init, apply and features."""

import functools
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
from jax import Array

from famr_jax.models import vit
from famr_jax.models.batchnorm import BatchNorm as BatchNorm
from famr_jax.models.batchnorm import fold as fold
from famr_jax.models.batchnorm import neutral as neutral
from famr_jax.models.checking import check as check
from famr_jax.models.mlp import MLP
from famr_jax.models.precision import computing_in as computing_in
from famr_jax.models.resnet import GROUPS, WIDTH, ResNet18
from famr_jax.types import Params, check_count, check_kept, check_key


@dataclass(frozen=True, eq=False)
class Model:
    """A named architecture at one input shape. Pure functions; the weights live outside.

    Attributes:
        name: What `create` was asked for.
        num_classes: Width of the logits.
        image_shape: `(height, width, channels)`.
        module: The Linen module, whose call gives `(logits, features)`.
        head: Path of the last layer in the parameters.
        view: `view(x) -> x`, what is done to images first, such as a crop; None for nothing.
        trained: The module that trains by batch statistics, where `module` has them folded; its
            call gives what that of `module` gives.
    """

    name: str
    num_classes: int
    image_shape: tuple[int, int, int]
    module: nn.Module
    head: tuple[str, ...] = ("head",)
    view: Callable[[Array], Array] | None = None
    trained: nn.Module | None = None

    def init(self, key: Array) -> Params:
        """Fresh weights: a nested dict of float32 arrays.

        Raises:
            ValueError: Not one key of `jax.random.key`.
        """
        check_key(key)
        if self.trained is not None:
            return fold(self._init_trained(key))
        return self.module.init(key, jax.numpy.zeros((1, *self.image_shape)))["params"]

    @property
    def batch_norm(self) -> BatchNorm | None:
        """How it trains by batch statistics, which its params have folded; None without them."""
        if self.trained is None:
            return None
        return BatchNorm(self._init_trained, self._train, fold)

    def apply(self, params: Params, x: Array) -> Array:
        """Logits, `[n, num_classes]`, of images `[n, height, width, channels]`: an `ApplyFn`.

        Images whose sides are not those of `image_shape` are resized to it: bilinear, antialiased.

        Raises:
            ValueError: Other channels than the model's; weights in float64 without x64.
        """
        return self._call(params, x)[0]

    def features(self, params: Params, x: Array) -> dict[str, Array]:
        """Activations by name: `block_0`, ..., `pre_logits`; in forward order, unless jit sorts."""
        return self._call(params, x)[1]

    def _call(self, params, x) -> Any:
        return self.module.apply({"params": params}, self._seen(params, x))

    def _init_trained(self, key):
        assert self.trained is not None
        found = self.trained.init(key, jax.numpy.zeros((1, *self.image_shape)))
        return found["params"], found["batch_stats"]

    def _train(self, weights, statistics, x):
        assert self.trained is not None
        variables = {"params": weights, "batch_stats": statistics}
        x = self._seen(weights, x)
        (logits, _), moved = self.trained.apply(variables, x, mutable=["batch_stats"])
        return logits, moved["batch_stats"]

    def _seen(self, params, x):
        """The images as the module takes them."""
        check_kept("params", params)
        x = x if self.view is None else self.view(x)
        x = x.astype(jax.tree.leaves(params)[0].dtype)
        if x.shape[1:] != self.image_shape:
            if x.ndim != 4 or x.shape[3] != self.image_shape[2]:
                wanted = f"[n, height, width, {self.image_shape[2]}]"
                raise ValueError(f"`x` must have the shape {wanted}, got {list(x.shape)}.")
            x = jax.image.resize(x, (len(x), *self.image_shape), "linear")
        return x


def create(name: str, *, num_classes: int, image_shape: tuple[int, int, int]) -> Model:
    """Builds an architecture by name; the same arguments give the same object, which jit relies on.

    Args:
        name: `vit_V/P` for Vision Transformer variant V (mu, nano, Ti, S, B, L; 64x4x8 for width
            64, depth 4 and 8 heads; or 64x4 with heads of 32) with patches of P pixels, mean
            pooling and the fast GELU by tanh; `vit_V/P_token` for a class token and the exact GELU;
            behind either `_tanh` or `_exact`, and `_eps1e-12` for another epsilon of the layer
            normalisations than 1e-6.
            `resnet18` with group normalisation; `resnet18_batchnorm` with that of batches, which
            its params have folded (see `BatchNorm`); either with _16 behind for 16 channels in
            place of 64; `mlp_64x32` with hidden layers of 64 and 32; `logistic` regression.
        num_classes: Width of the logits, at least 2.
        image_shape: `(height, width, channels)`.

    Raises:
        ValueError: Unknown name, a size out of range, or an image that the patch does not divide.
    """
    check_count("num_classes", num_classes)
    if num_classes < 2:
        raise ValueError(f"`num_classes` must be >= 2, got {num_classes}.")
    if len(image_shape) != 3:
        got = tuple(image_shape)
        raise ValueError(f"`image_shape` must be (height, width, channels), got {got}.")
    for size in image_shape:
        check_count("image_shape", size)
    height, width, channels = image_shape
    return _create(name, num_classes, (height, width, channels))


@functools.cache
def _create(name: str, num_classes: int, image_shape: tuple[int, int, int]) -> Model:
    if name == "logistic":
        return Model(name, num_classes, image_shape, MLP(num_classes, ()))
    if match := re.fullmatch(r"mlp_(\d+(?:x\d+)*)", name):
        hidden = tuple(int(size) for size in match[1].split("x"))
        for size in hidden:
            check_count("hidden size", size)
        return Model(name, num_classes, image_shape, MLP(num_classes, hidden))
    if match := re.fullmatch(r"resnet18(_batchnorm)?(?:_(\d+))?", name):
        width = int(match[2] or WIDTH)
        check_count("width", width)
        if match[1]:
            folded, trained = (ResNet18(num_classes, norm, width) for norm in ("affine", "batch"))
            return Model(name, num_classes, image_shape, folded, trained=trained)
        if width % GROUPS:
            raise ValueError(f"`width` must be a multiple of the {GROUPS} groups, got {width}.")
        return Model(name, num_classes, image_shape, ResNet18(num_classes, width=width))
    if module := vit.module(name, num_classes):
        if module.patch < 1 or math.gcd(*image_shape[:2]) % module.patch:
            raise ValueError(
                f"`model` {name!r} needs an image whose sides its patch divides, got {image_shape}."
            )
        return Model(name, num_classes, image_shape, module)
    raise ValueError(
        f"`model` must be vit_V/PATCH with V one of {', '.join(vit.VARIANTS)} or WIDTHxDEPTH or "
        "WIDTHxDEPTHxHEADS, also with _token, _tanh, _exact or _eps1e-12 behind; resnet18 or "
        "resnet18_batchnorm, also with _WIDTH behind; mlp_SIZExSIZE...; or logistic, "
        f"got {name!r}."
    )
