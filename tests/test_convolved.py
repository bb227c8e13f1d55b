"""Convolutions as products of patches: those of `lax.conv_general_dilated`, and derivatives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from famr_jax import models
from famr_jax.models.resnet import convolved

NAMES = ("NHWC", "HWIO", "NHWC")
CASES = {
    "3x3": ((5, 6), (3, 3), (1, 1)),
    "3x3, every second": ((5, 6), (3, 3), (2, 2)),
    "1x1": ((4, 5), (1, 1), (1, 1)),
    "1x1, every second": ((4, 5), (1, 1), (2, 2)),
    "7x7 stem": ((9, 8), (7, 7), (2, 2)),
    "one pixel": ((1, 1), (3, 3), (1, 1)),
    "higher than wide": ((6, 5), (3, 1), (1, 2)),
}


@pytest.mark.parametrize("case", CASES)
def test_it_and_its_derivatives_are_laxs(case, x64):
    sides, kernel_sides, strides = CASES[case]
    draw = np.random.default_rng(0).normal
    x, kernel = draw(size=(2, *sides, 3)), draw(size=(*kernel_sides, 3, 4))
    padding = tuple((side // 2, side // 2) for side in kernel_sides)

    def theirs(x, kernel):
        return jax.lax.conv_general_dilated(x, kernel, strides, padding, dimension_numbers=NAMES)

    def ours(x, kernel):
        return convolved(x, kernel, strides, padding, dimension_numbers=NAMES)

    def twice(function):
        """Value, gradients and a Hessian-vector product of a function of the outputs."""

        def loss(x, kernel):
            return jnp.sum(jnp.sin(function(x, kernel)))

        grad = jax.grad(loss, argnums=(0, 1))
        return function(x, kernel), jax.jvp(grad, (x, kernel), (x**2, kernel**2))

    expected, found = twice(theirs), twice(ours)
    for one, other in zip(jax.tree.leaves(expected), jax.tree.leaves(found), strict=True):
        np.testing.assert_allclose(other, one, rtol=1e-10, atol=1e-10)


def test_a_cpu_is_given_products_and_others_convolutions(monkeypatch):
    model = models.create("resnet18_batchnorm_8", num_classes=3, image_shape=(8, 8, 3))
    like = jax.eval_shape(model.init, jax.random.key(0)), jax.ShapeDtypeStruct((2, 8, 8, 3), float)

    def told():
        return str(jax.make_jaxpr(model.module.apply)({"params": like[0]}, like[1]))

    monkeypatch.setattr(jax, "default_backend", lambda: "cpu")
    assert "conv_general_dilated" not in told()
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert "dot_general" in told()
    assert told().count("conv_general_dilated") == 20
