"""Our ViT beside the same architecture from Linen's parts: gradients, products and their FLOPs."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from experiments.benchmarks.timing import ready
from famr_jax import losses, models
from famr_jax.types import Batch, Params


def perturbed(params: Params, key: Array) -> Params:
    """Weights moved off their start, where the head is zero and hides every gradient below it."""
    leaves, structure = jax.tree.flatten(params)
    keys = jax.random.split(key, len(leaves))
    moved = [x + 0.05 * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys, strict=True)]
    return jax.tree.unflatten(structure, moved)


class LinenViT(nn.Module):
    """The same architecture from Linen's parts, tokens on their own axis."""

    like: models.Model

    @nn.compact
    def __call__(self, x):
        dim, depth, heads = self.like.module.variant
        patch, n = self.like.module.patch, x.shape[0]
        x = nn.Conv(dim, (patch, patch), (patch, patch))(x).reshape(n, -1, dim)
        x = x + self.param("position", nn.initializers.normal(dim**-0.5), x.shape[1:])
        for _ in range(depth):
            x = x + nn.MultiHeadDotProductAttention(heads)(nn.LayerNorm()(x))
            x = x + nn.Dense(dim)(nn.gelu(nn.Dense(4 * dim)(nn.LayerNorm()(x))))
        return nn.Dense(self.like.num_classes)(nn.LayerNorm()(x).mean(1))


def curvature_products(model: models.Model, params: Params, batch: Batch, key: Array):
    """A gradient and an HVP (`jvp` of `grad`) of our blocks and of Linen's, and their FLOPs."""
    linen = LinenViT(model)
    init_key, move_key, tangent_key = jax.random.split(key, 3)
    linen_params = perturbed(linen.init(init_key, batch.x[:1])["params"], move_key)
    applies = {
        "lean": (model.apply, params),
        "linen": (lambda params, x: linen.apply({"params": params}, x), linen_params),
    }
    timed, flops = {}, {}
    for name, (apply_fn, point) in applies.items():

        def gradient(params, batch, apply_fn=apply_fn):
            def scalar(params):
                return jnp.mean(losses.cross_entropy(apply_fn(params, batch.x), batch.labels))

            return jax.grad(scalar)(params)

        def hvp(params, tangent, batch, gradient=gradient):
            return jax.jvp(lambda p: gradient(p, batch), (params,), (tangent,))[1]

        tangent = perturbed(jax.tree.map(jnp.zeros_like, point), tangent_key)
        for kind, function, args in (
            ("gradient", gradient, (point, batch)),
            ("HVP", hvp, (point, tangent, batch)),
        ):
            compiled = jax.jit(function).lower(*args).compile()
            flops[f"{name} {kind}"] = compiled.cost_analysis()["flops"]
            timed[f"{name} {kind}"] = partial(ready, partial(compiled, *args))
            timed[f"{name} {kind}"]()
    for name in applies:
        flops[f"{name} HVP / gradient"] = flops[f"{name} HVP"] / flops[f"{name} gradient"]
    return timed, flops
