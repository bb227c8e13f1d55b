"""Small problems in float64, and operators and derivatives as dense matrices."""

import jax
import jax.numpy as jnp
import numpy as np
import scipy.stats
from jax.flatten_util import ravel_pytree

from famr_jax import curvature, losses, models
from famr_jax.models.vit import Variant, ViT
from famr_jax.types import Batch, pytree

KEY = jax.random.key(0)
OPERATORS = {
    "hessian": lambda loss, outputs, of_outputs, *rest: curvature.Hessian(loss, *rest),
    "gauss_newton": lambda loss, outputs, of_outputs, *rest: curvature.GaussNewton(
        outputs, of_outputs, *rest
    ),
    "fisher": lambda loss, outputs, of_outputs, *rest: curvature.EmpiricalFisher(loss, *rest),
}
"""What builds each operator of a mean loss, by name."""


@pytree
class Dense:
    """A matrix on vectors of one leaf."""

    matrix: object

    def __call__(self, v):
        return {"a": self.matrix @ v["a"]}


def symmetric(eigenvalues, seed=0):
    size = len(eigenvalues)
    q = scipy.stats.ortho_group.rvs(size, random_state=seed)
    matrix = q @ np.diag(eigenvalues) @ q.T
    return jnp.asarray((matrix + matrix.T) / 2)


def small_model(name):
    shape = {"num_classes": 3, "image_shape": (4, 4, 1)}
    if name == "vit":  # with LayerNorm and attention, in 1,000 parameters
        return models.Model("vit", **shape, module=ViT(3, 2, Variant(8, 1, 2)))
    return models.create(name, **shape)


def problem(name, n=13):
    """A small net in float64 at generic weights, its data, and its per-example losses."""
    model = small_model(name)
    keys = jax.random.split(KEY, 3)
    params = jax.tree.map(lambda a: a.astype(jnp.float64), model.init(keys[0]))
    flat, unravel = ravel_pytree(params)
    params = unravel(flat + 0.3 * jax.random.normal(keys[1], flat.shape))
    x = jax.random.normal(keys[2], (n, 4, 4, 1), jnp.float64)
    batch = Batch(x, jnp.arange(n) % 3)

    def loss_fn(params, batch):
        return losses.cross_entropy(model.apply(params, batch.x), batch.labels, label_smoothing=0.1)

    def outputs_fn(params, batch):
        return model.apply(params, batch.x)

    def output_loss(outputs, batch):
        return losses.cross_entropy(outputs, batch.labels, label_smoothing=0.1)

    return params, batch, loss_fn, outputs_fn, output_loss


def columns(function, like):
    """The matrix of a linear function of pytrees like `like`, whatever it returns."""
    flat, unravel = ravel_pytree(like)

    def one(v):
        return ravel_pytree(function(unravel(v)))[0]

    return np.asarray(jax.jit(jax.vmap(one, out_axes=1))(jnp.eye(flat.size)))


def jacobian(function, params):
    flat, unravel = ravel_pytree(params)
    return np.asarray(jax.jit(jax.jacrev(lambda flat: function(unravel(flat))))(flat))


def hessian(function, params):
    """Reverse over reverse, another order than the library's."""
    flat, unravel = ravel_pytree(params)
    gradient = jax.jacrev(lambda flat: function(unravel(flat)))
    return np.asarray(jax.jit(jax.jacrev(gradient))(flat))
