"""Models: the contract of `apply_fn`, the ViT against plain NumPy, second derivatives."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import noisy, to_float64

from famr_jax import models
from famr_jax.models.vit import VARIANTS

NAMES = ("logistic", "mlp_8", "mlp_6x5", "vit_mu/4")
SHAPE = (8, 8, 2)


def create(name, num_classes=3, image_shape=SHAPE):
    return models.create(name, num_classes=num_classes, image_shape=image_shape)


@pytest.fixture(scope="module")
def images():
    return jax.random.normal(jax.random.key(5), (4, *SHAPE))


@pytest.fixture(scope="module")
def drawn():
    """Each model's weights, drawn once, with a head that is not zero."""
    return {name: noisy(jax.jit(create(name).init)(jax.random.key(1))) for name in NAMES}


def layer_norm(x, weights):
    mean, var = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
    return (x - mean) / np.sqrt(var + 1e-6) * weights["scale"] + weights["bias"]


def dense(x, weights):
    return x @ weights["kernel"] + weights["bias"]


def gelu(x):
    return x / 2 * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def plain_vit(weights, image, patch, depth, heads):
    """One image through a pre-norm ViT with mean pooling, as its papers write it; in loops."""
    height, width, _ = image.shape
    patches = [
        image[i : i + patch, j : j + patch].ravel()
        for i in range(0, height, patch)
        for j in range(0, width, patch)
    ]
    x = dense(np.array(patches), weights["patches"]) + weights["position"]
    for block in (weights[f"block_{i}"] for i in range(depth)):
        qkv = dense(layer_norm(x, block["norm_attention"]), block["qkv"])
        outputs = []
        for q, k, v in zip(*(np.split(part, heads, 1) for part in np.split(qkv, 3, 1)), strict=True):
            scores = np.exp(q @ k.T / math.sqrt(q.shape[1]))
            outputs.append(scores / scores.sum(1, keepdims=True) @ v)
        x = x + dense(np.concatenate(outputs, 1), block["out"])
        y = gelu(dense(layer_norm(x, block["norm_mlp"]), block["up"]))
        x = x + dense(y, block["down"])
    return dense(layer_norm(x, weights["norm"]).mean(0), weights["head"])


def test_vit_is_the_textbook_vit(drawn, images, x64):
    params, x = to_float64((drawn["vit_mu/4"], images))
    logits = jax.jit(create("vit_mu/4").apply)(params, x)
    weights = jax.tree.map(np.asarray, params)
    wanted = [plain_vit(weights, image, 4, VARIANTS["mu"].depth, 2) for image in np.asarray(x)]
    np.testing.assert_allclose(logits, wanted, rtol=1e-10, atol=1e-10)


def test_mlp_is_the_textbook_mlp(drawn, images, x64):
    params, x = to_float64((drawn["mlp_6x5"], images))
    weights, y = jax.tree.map(np.asarray, params), np.asarray(x).reshape(4, -1)
    y = np.tanh(dense(np.tanh(dense(y, weights["layer_0"])), weights["layer_1"]))
    logits = create("mlp_6x5").apply(params, x)
    np.testing.assert_allclose(logits, dense(y, weights["head"]), rtol=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_row_i_depends_on_row_i_alone(name, drawn, images):
    apply_fn = jax.jit(create(name).apply)
    spoilt = jnp.full_like(images, jnp.nan).at[2].set(images[2])
    logits = np.asarray(apply_fn(drawn[name], spoilt))
    assert np.isnan(logits).any(axis=1).tolist() == [True, True, False, True]
    np.testing.assert_array_equal(logits[2], apply_fn(drawn[name], images)[2])


@pytest.mark.parametrize("name", NAMES)
def test_logits_have_the_dtype_of_the_params(name, drawn, images, x64):
    assert {leaf.dtype for leaf in jax.tree.leaves(drawn[name])} == {jnp.dtype(jnp.float32)}
    apply_fn, double = create(name).apply, to_float64(drawn[name])
    shape = lambda params, x: jax.eval_shape(apply_fn, params, x)  # noqa: E731
    for x in (images, to_float64(images)):
        assert shape(drawn[name], x) == jax.ShapeDtypeStruct((4, 3), jnp.float32)
        assert shape(double, x) == jax.ShapeDtypeStruct((4, 3), jnp.float64)


@pytest.mark.parametrize("name", NAMES)
def test_a_fresh_model_predicts_uniformly_and_differs_by_key(name, images):
    model = create(name)
    init = jax.jit(model.init)
    first, other = init(jax.random.key(0)), init(jax.random.key(1))
    assert not np.any(model.apply(first, images))
    same = [np.array_equal(a, b) for a, b in zip(*map(jax.tree.leaves, (first, other)), strict=True)]
    assert all(same) if name == "logistic" else not all(same)


@pytest.mark.parametrize(
    ("name", "shapes"),
    [
        ("logistic", {"pre_logits": (4, 128)}),
        ("mlp_6x5", {"block_0": (4, 6), "block_1": (4, 5), "pre_logits": (4, 5)}),
        ("vit_mu/4", {"block_0": (4, 4, 32), "block_1": (4, 4, 32), "pre_logits": (4, 32)}),
    ],
)
def test_features_in_forward_order_and_the_head_on_the_last(name, shapes, drawn, images):
    model = create(name)
    features = model.features(drawn[name], images)
    assert [(key, value.shape) for key, value in features.items()] == list(shapes.items())
    head = drawn[name]
    for key in model.head:
        head = head[key]
    logits = features["pre_logits"] @ head["kernel"] + head["bias"]
    np.testing.assert_allclose(model.apply(drawn[name], images), logits, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", [f"vit_{variant}/4" for variant in VARIANTS])
def test_every_variant_has_the_width_depth_and_heads_of_its_row(name):
    model = create(name, num_classes=10, image_shape=(8, 12, 3))
    params = jax.eval_shape(model.init, jax.random.key(0))
    dim, depth, heads = VARIANTS[name.removeprefix("vit_").removesuffix("/4")]
    assert dim % heads == 0
    size = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))
    norm, attention, mlp = 2 * dim, 4 * dim * (dim + 1), 8 * dim * dim + 5 * dim
    wanted = (4 * 4 * 3 + 1) * dim + 6 * dim + depth * (2 * norm + attention + mlp) + norm
    assert size == wanted + 10 * (dim + 1)
    x = jax.ShapeDtypeStruct((2, 8, 12, 3), jnp.float32)
    assert jax.eval_shape(model.apply, params, x).shape == (2, 10)


@pytest.mark.parametrize(
    ("variant", "row"),
    [("Ti", (192, 12, 3)), ("S", (384, 12, 6)), ("B", (768, 12, 12)), ("L", (1024, 24, 16))],
)
def test_variants_of_the_papers(variant, row):
    assert VARIANTS[variant] == row


@pytest.mark.parametrize("name", ["mlp_6x5", "vit_mu/4"])
def test_the_hessian_is_symmetric_and_agrees_with_differences(name, drawn, images, x64):
    params, x = to_float64((drawn[name], images))
    model = create(name)

    def loss(params):
        return jnp.mean(jax.nn.logsumexp(model.apply(params, x), axis=-1))

    # One compilation for all products and gradients.
    grad_and_product = jax.jit(lambda params, v: jax.jvp(jax.grad(loss), (params,), (v,)))
    u, v = noisy(params, seed=1), noisy(params, seed=2)
    u, v = jax.tree.map(jnp.subtract, (u, v), (params, params))
    dot = lambda a, b: sum(np.vdot(i, j) for i, j in zip(*map(jax.tree.leaves, (a, b)), strict=True))  # noqa: E731
    hu, hv = grad_and_product(params, u)[1], grad_and_product(params, v)[1]
    assert dot(hv, hv) > 0
    np.testing.assert_allclose(dot(u, hv), dot(v, hu), rtol=1e-10)
    step = 1e-5
    shifted = [jax.tree.map(lambda p, d, s=s: p + s * d, params, v) for s in (step, -step)]
    up, down = (grad_and_product(point, v)[0] for point in shifted)
    slope = jax.tree.map(lambda a, b: (a - b) / (2 * step), up, down)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), slope, hv)


def test_the_same_arguments_give_the_same_object():
    assert create("vit_mu/4") is create("vit_mu/4")
    assert create("vit_mu/4") is not create("vit_mu/2")
    assert create("mlp_8") is not create("mlp_8", num_classes=4)


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("resnet", {}, "`model` must be vit_V/PATCH with V one of mu, .*got 'resnet'"),
        ("vit_XL/4", {}, "got 'vit_XL/4'"),
        ("vit_mu", {}, "got 'vit_mu'"),
        ("vit_mu/4 ", {}, "got 'vit_mu/4 '"),
        ("mlp_", {}, "got 'mlp_'"),
        ("mlp_8x", {}, "got 'mlp_8x'"),
        ("mlp_8x0", {}, "`hidden size` must be an integer >= 1, got 0"),
        ("vit_mu/3", {}, r"needs an image whose sides its patch divides, got \(8, 8, 2\)"),
        ("vit_mu/4", {"image_shape": (8, 6, 1)}, r"patch divides, got \(8, 6, 1\)"),
        ("vit_mu/0", {}, "patch divides"),
        ("logistic", {"num_classes": 1}, "`num_classes` must be >= 2, got 1"),
        ("logistic", {"image_shape": (8, 8)}, r"`image_shape` must be \(height, width, channels\)"),
        ("logistic", {"image_shape": (8, 0, 1)}, r"`image_shape` must be"),
    ],
)
def test_create_refuses(name, changes, message):
    with pytest.raises(ValueError, match=message):
        create(name, **changes)
