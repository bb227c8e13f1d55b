"""Models: the contract of `apply_fn`, plain NumPy and PyTorch references, the Hessian."""

import itertools
import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import drawn, to_float64
from jax.flatten_util import ravel_pytree
from scipy.special import erf

from experiments.benchmarks.convolution import hwio, torch_resnet18, torch_weights
from famr_jax import models
from famr_jax.models import vit
from famr_jax.models.vit import VARIANTS

NAMES = ("logistic", "mlp_8", "mlp_6x5", "vit_mu/4", "vit_mu/4_token", "resnet18")
SHAPE = (8, 8, 2)
RESNET_BLOCKS = {f"block_{i}": (4, (64, 16, 4, 1)[i // 2], 64 << (i // 2)) for i in range(8)}
KEY = jax.random.key(0)


def create(name, num_classes=3, image_shape=SHAPE):
    return models.create(name, num_classes=num_classes, image_shape=image_shape)


@pytest.fixture(scope="module")
def images():
    return jnp.asarray(np.random.default_rng(5).normal(size=(4, *SHAPE)), jnp.float32)


@pytest.fixture(scope="module")
def weights():
    """Random weights of each model, its head not zero."""
    return {name: drawn(create(name).init) for name in NAMES}


def layer_norm(x, weights, epsilon):
    mean, var = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
    return (x - mean) / np.sqrt(var + epsilon) * weights["scale"] + weights["bias"]


def dense(x, weights):
    return x @ weights["kernel"] + weights["bias"]


def gelu(x, form):
    if form == "exact":
        return x / 2 * (1 + erf(x / math.sqrt(2)))
    return x / 2 * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def plain_vit(weights, image, patch, depth, heads, form, epsilon):
    """One image through a pre-norm ViT, as its papers write it; in loops."""
    height, width, _ = image.shape
    patches = [
        image[i : i + patch, j : j + patch].ravel()
        for i in range(0, height, patch)
        for j in range(0, width, patch)
    ]
    x = dense(np.array(patches), weights["patches"])
    if "class_token" in weights:
        x = np.stack([weights["class_token"], *x])
    x = x + weights["position"]
    for block in (weights[f"block_{i}"] for i in range(depth)):
        qkv = dense(layer_norm(x, block["norm_attention"], epsilon), block["qkv"])
        outputs, parts = [], [np.split(part, heads, 1) for part in np.split(qkv, 3, 1)]
        for q, k, v in zip(*parts, strict=True):
            scores = np.exp(q @ k.T / math.sqrt(q.shape[1]))
            outputs.append(scores / scores.sum(1, keepdims=True) @ v)
        x = x + dense(np.concatenate(outputs, 1), block["out"])
        y = gelu(dense(layer_norm(x, block["norm_mlp"], epsilon), block["up"]), form)
        x = x + dense(y, block["down"])
    x = layer_norm(x, weights["norm"], epsilon)
    return dense(x[0] if "class_token" in weights else x.mean(0), weights["head"])


@pytest.mark.parametrize(
    ("name", "form", "epsilon"),
    [
        ("vit_mu/4", "tanh", 1e-6),
        ("vit_mu/4_token", "exact", 1e-6),
        ("vit_mu/4_token_tanh_eps0.5", "tanh", 0.5),
    ],
)
def test_vit_is_the_textbook_vit(name, form, epsilon, images, x64):
    model = create(name)
    params, x = to_float64((drawn(model.init), images))
    logits = jax.jit(model.apply)(params, x)
    plain, depth = jax.tree.map(np.asarray, params), VARIANTS["mu"].depth
    wanted = [plain_vit(plain, image, 4, depth, 2, form, epsilon) for image in np.asarray(x)]
    np.testing.assert_allclose(logits, wanted, rtol=1e-10, atol=1e-10)


def test_a_name_and_the_fields_of_its_vit_give_each_other():
    for pooling, gelu_form, epsilon in itertools.product(
        ("mean", "token"), ("tanh", "exact"), (1e-6, 1e-12, 1e-5, 0.25)
    ):
        name = vit.name_of("S", 16, pooling, gelu_form, epsilon)
        wanted = vit.ViT(5, 16, VARIANTS["S"], pooling, gelu_form, epsilon)
        assert vit.module(name, 5) == wanted
    assert vit.name_of("S", 16, "mean", "tanh", 1e-6) == "vit_S/16"
    assert vit.name_of("S", 16, "token", "exact", 1e-6) == "vit_S/16_token"
    assert vit.name_of("Ti", 2, "token", "exact", 1e-12) == "vit_Ti/2_token_eps1e-12"


def test_mlp_is_the_textbook_mlp(weights, images, x64):
    params, x = to_float64((weights["mlp_6x5"], images))
    plain, y = jax.tree.map(np.asarray, params), np.asarray(x).reshape(4, -1)
    y = np.tanh(dense(np.tanh(dense(y, plain["layer_0"])), plain["layer_1"]))
    logits = jax.jit(create("mlp_6x5").apply)(params, x)
    np.testing.assert_allclose(logits, dense(y, plain["head"]), rtol=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_row_i_depends_on_row_i_alone(name, weights, images):
    apply_fn = jax.jit(create(name).apply)
    spoilt = jnp.full_like(images, jnp.nan).at[2].set(images[2])
    logits = np.asarray(apply_fn(weights[name], spoilt))
    assert np.isnan(logits).any(axis=1).tolist() == [True, True, False, True]
    np.testing.assert_array_equal(logits[2], apply_fn(weights[name], images)[2])


@pytest.mark.parametrize("name", NAMES)
def test_logits_have_the_dtype_of_the_params(name, weights, images, x64):
    assert {leaf.dtype for leaf in jax.tree.leaves(weights[name])} == {jnp.dtype(jnp.float32)}
    apply_fn, double = create(name).apply, to_float64(weights[name])
    for x in (images, to_float64(images)):
        for params, dtype in ((weights[name], jnp.float32), (double, jnp.float64)):
            found = jax.eval_shape(apply_fn, params, x)
            assert found == jax.ShapeDtypeStruct((4, 3), dtype)


@pytest.mark.parametrize("name", ["mlp_6x5", "vit_mu/4"])
def test_fresh_weights_differ_by_key_and_predict_uniformly(name):
    init = jax.jit(create(name).init)
    first, other = init(jax.random.key(0)), init(jax.random.key(1))
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(first["head"]))
    pairs = zip(*map(jax.tree.leaves, (first, other)), strict=True)
    assert not all(np.array_equal(*pair) for pair in pairs)


@pytest.mark.parametrize(
    ("name", "shapes"),
    [
        ("logistic", {"pre_logits": (4, 128)}),
        ("mlp_6x5", {"block_0": (4, 6), "block_1": (4, 5), "pre_logits": (4, 5)}),
        ("vit_mu/4", {"block_0": (4, 4, 32), "block_1": (4, 4, 32), "pre_logits": (4, 32)}),
        ("vit_mu/4_token", {"block_0": (4, 5, 32), "block_1": (4, 5, 32), "pre_logits": (4, 32)}),
        ("resnet18", {**RESNET_BLOCKS, "pre_logits": (4, 512)}),
    ],
)
def test_features_in_forward_order_and_the_head_on_the_last(name, shapes, weights, images):
    model = create(name)
    order = []

    @jax.jit
    def both(params, x):
        features = model.features(params, x)
        order.extend(features)  # here, because jit gives dictionaries back sorted by name
        return features, model.apply(params, x)

    features, logits = both(weights[name], images)
    assert order == list(shapes)
    assert {key: value.shape for key, value in features.items()} == shapes
    head = weights[name]
    for key in model.head:
        head = head[key]
    np.testing.assert_allclose(
        logits, dense(np.asarray(features["pre_logits"]), head), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("token", ["", "_token"])
@pytest.mark.parametrize("name", [f"vit_{variant}/4" for variant in VARIANTS])
def test_every_variant_has_the_width_depth_and_heads_of_its_row(name, token):
    model = create(name + token, num_classes=10, image_shape=(8, 12, 3))
    params = jax.eval_shape(model.init, jax.random.key(0))
    dim, depth, heads = VARIANTS[name.removeprefix("vit_").removesuffix("/4")]
    assert dim % heads == 0
    size = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))
    norm, attention, mlp = 2 * dim, 4 * dim * (dim + 1), 8 * dim * dim + 5 * dim
    wanted = (4 * 4 * 3 + 1) * dim + 6 * dim + depth * (2 * norm + attention + mlp) + norm
    assert size == wanted + 10 * (dim + 1) + (2 * dim if token else 0)


@pytest.mark.parametrize(
    ("variant", "row"),
    [("Ti", (192, 12, 3)), ("S", (384, 12, 6)), ("B", (768, 12, 12)), ("L", (1024, 24, 16))],
)
def test_variants_of_the_papers(variant, row):
    assert VARIANTS[variant] == row


def test_a_width_and_a_depth_name_a_vit_too():
    assert create("vit_64x4/2").module == create("vit_nano/2").module
    assert vit.module("vit_96x3/4_token_exact", 5).variant == (96, 3, 3)
    assert vit.module("vit_384x12x12/16", 5).variant == (384, 12, 12)
    assert vit.module("vit_64/4", 5) is None
    assert vit.module("vit_x/4", 5) is None
    for name, message in (
        ("vit_16x2/4", "`model` needs a width that 32 divides, got 16"),
        ("vit_0x2/4", "32 divides, got 0"),
        ("vit_32x2x3/4", "heads that divide its width, got 3 for 32"),
        ("vit_0x2x3/4", "heads that divide its width, got 3 for 0"),
        ("vit_32x2x0/4", "`heads` must be an integer >= 1, got 0"),
        ("vit_32x0/4", "`depth` must be an integer >= 1, got 0"),
    ):
        with pytest.raises(ValueError, match=message):
            create(name)


@pytest.mark.parametrize(
    ("side", "num_classes", "size"),
    [(32, 10, 11_173_962), (64, 10, 11_173_962), (224, 1000, 11_689_512)],
)
def test_resnet18_has_the_size_of_the_literature(side, num_classes, size):
    """11.17M with the stem of CIFAR, 11.69M for ImageNet, as with batch normalisation."""
    model = create("resnet18", num_classes=num_classes, image_shape=(side, side, 3))
    params = jax.eval_shape(model.init, jax.random.key(0))
    assert sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params)) == size
    x = jax.ShapeDtypeStruct((2, side, side, 3), jnp.float32)
    last = jax.eval_shape(model.features, params, x)["block_7"]
    assert last.shape == (2, (side // (32 if side > 64 else 8)) ** 2, 512)


def test_a_narrow_resnet18_has_a_quarter_of_the_channels_and_trains_by_batches():
    model = create("resnet18_batchnorm_16", num_classes=10, image_shape=(16, 16, 3))
    params = jax.eval_shape(model.init, jax.random.key(0))
    kernels = [leaf.shape[-1] for leaf in jax.tree.leaves(params) if leaf.ndim == 4]
    assert set(kernels) == {16, 32, 64, 128}
    assert model.batch_norm is not None
    size = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))
    assert 11_173_962 / 17 < size < 11_173_962 / 15
    group = create("resnet18_32", num_classes=10, image_shape=(16, 16, 3))
    assert jax.eval_shape(group.init, jax.random.key(0))["head"]["kernel"].shape == (256, 10)
    with pytest.raises(ValueError, match="`width` must be a multiple of the 32 groups, got 16"):
        create("resnet18_16", num_classes=10, image_shape=(16, 16, 3))


@pytest.mark.slow
@pytest.mark.parametrize("side", [16, 70])
def test_resnet18_and_its_gradient_agree_with_pytorch(side):
    torch = pytest.importorskip("torch")
    model = create("resnet18", image_shape=(side, side, 3))
    params = jax.tree.map(lambda a, noise: a + 0.1 * noise, model.init(KEY), drawn(model.init))
    x = np.random.default_rng(0).normal(size=(2, side, side, 3)).astype(np.float32)
    weights = torch_weights(torch, params)
    logits = torch_resnet18(torch, weights, torch.tensor(x).permute(0, 3, 1, 2))
    logits.logsumexp(-1).mean().backward()

    def loss(params):
        logits = model.apply(params, x)
        return jnp.mean(jax.nn.logsumexp(logits, axis=-1)), logits

    (_, mine), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    np.testing.assert_allclose(mine, logits.detach(), rtol=1e-5, atol=1e-5)
    for leaf, weight in zip(jax.tree.leaves(gradients), jax.tree.leaves(weights), strict=True):
        assert np.abs(leaf - hwio(weight.grad.numpy())).max() < 1e-4 * np.abs(leaf).max()


@pytest.mark.parametrize("name", ["mlp_6x5", "vit_mu/4"])
def test_the_hessian_is_symmetric_and_agrees_with_differences(name, weights, images, x64):
    params, x = to_float64((weights[name], images))
    model = create(name)

    def loss(params):
        return jnp.mean(jax.nn.logsumexp(model.apply(params, x), axis=-1))

    @partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})  # halves compilation
    def grad_and_product(point, direction):
        point, direction = unravel(point), unravel(direction)
        out = jax.jvp(jax.grad(loss), (point,), (direction,))
        return [ravel_pytree(tree)[0] for tree in out]

    flat, unravel = ravel_pytree(params)
    u, v = np.random.default_rng(0).normal(size=(2, flat.size))
    hu, hv = grad_and_product(flat, u)[1], grad_and_product(flat, v)[1]
    assert np.linalg.norm(hv) > 1e-3
    np.testing.assert_allclose(u @ hv, v @ hu, rtol=1e-9)
    step = 1e-6
    up, down = (grad_and_product(flat + s * v, v)[0] for s in (step, -step))
    np.testing.assert_allclose((up - down) / (2 * step), hv, rtol=1e-4, atol=1e-6 * abs(hv).max())


@pytest.mark.parametrize(
    ("key", "message"),
    [
        (jax.random.PRNGKey(0), "`key` must come from jax.random.key, got an array of uint32"),
        (0, "`key` must come from jax.random.key, got 0"),
        (jax.random.split(jax.random.key(0)), r"`key` must be one key, got \[2\]"),
    ],
)
@pytest.mark.parametrize("name", ["mlp_8", "vit_mu/2", "resnet18"])
def test_fresh_weights_need_one_key(name, key, message):
    model = models.create(name, num_classes=3, image_shape=(4, 4, 1))
    with pytest.raises(ValueError, match=message):
        model.init(key)


def test_images_of_another_size_are_resized():
    model = models.create("logistic", num_classes=4, image_shape=(1, 4, 1))
    params = {"head": {"kernel": jnp.eye(4), "bias": jnp.zeros(4)}}
    row = jnp.array([[0.0, 1.0]]).reshape(1, 1, 2, 1)
    # Bilinear between the centres of the pixels, constant beyond the outer ones.
    np.testing.assert_allclose(model.apply(params, row), [[0, 0.25, 0.75, 1]], atol=1e-6)
    np.testing.assert_allclose(model.features(params, row[:, :, :1])["pre_logits"], 0)


@pytest.mark.parametrize("shape", [(2, 8, 8, 3), (2, 128), (2, 4, 4)])
def test_images_of_other_channels_are_refused(shape):
    model = create("mlp_8")
    with pytest.raises(ValueError, match=r"`x` must have the shape \[n, height, width, 2\], got"):
        jax.eval_shape(lambda params: model.apply(params, jnp.zeros(shape)), drawn(model.init))


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
        ("vit_mu/4_tokens", {}, "got 'vit_mu/4_tokens'"),
        ("vit_mu/4_tanh_token", {}, "got 'vit_mu/4_tanh_token'"),
        ("vit_mu/4_eps", {}, "got 'vit_mu/4_eps'"),
        ("vit_mu/4_eps0", {}, "`epsilon` must be finite and > 0, got 0.0"),
        ("resnet34", {}, "got 'resnet34'"),
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
