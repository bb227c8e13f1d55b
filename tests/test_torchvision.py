"""ResNet-18 from files in torchvision's layout, against its network written out by the names."""

import json
import struct

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from conftest import to_float64
from jax import lax
from safetensors.numpy import save_file

from famr_jax.models import create, fold, pretrained, torchvision

WIDTHS = (64, 128, 256, 512)


def state_dict(stem=3, classes=5, channels=3):
    """Random arrays by the names and shapes of torchvision's `resnet18().state_dict()`."""
    rng, arrays = np.random.default_rng(0), {}

    def conv(name, outputs, inputs, size):
        scale = (2 / (inputs * size**2)) ** 0.5
        arrays[f"{name}.weight"] = scale * rng.normal(size=(outputs, inputs, size, size))

    def norm(name, size):
        arrays[f"{name}.weight"] = rng.uniform(0.5, 1.5, size)
        arrays[f"{name}.bias"] = 0.1 * rng.normal(size=size)
        arrays[f"{name}.running_mean"] = 0.1 * rng.normal(size=size)
        arrays[f"{name}.running_var"] = rng.uniform(0.5, 1.5, size)
        arrays[f"{name}.num_batches_tracked"] = np.zeros((), np.int64)

    conv("conv1", 64, channels, stem)
    norm("bn1", 64)
    before = 64
    for stage, width in enumerate(WIDTHS, start=1):
        for block in range(2):
            name = f"layer{stage}.{block}"
            conv(f"{name}.conv1", width, before, 3)
            norm(f"{name}.bn1", width)
            conv(f"{name}.conv2", width, width, 3)
            norm(f"{name}.bn2", width)
            if before != width:
                conv(f"{name}.downsample.0", width, before, 1)
                norm(f"{name}.downsample.1", width)
            before = width
    arrays["fc.weight"] = rng.normal(size=(classes, 512)) / 20
    arrays["fc.bias"] = rng.normal(size=classes)
    return {name: a if a.dtype == np.int64 else a.astype(np.float32) for name, a in arrays.items()}


def reference(arrays, x):
    """Torchvision's `ResNet.forward` in evaluation mode, on images `[n, channels, h, w]`."""

    def conv(name, x, stride):
        kernel = arrays[f"{name}.weight"]
        side = kernel.shape[-1] // 2
        return lax.conv_general_dilated(x, kernel, (stride, stride), [(side, side)] * 2)

    def norm(name, x):
        mean, var, gamma, beta = (
            arrays[f"{name}.{part}"][:, None, None]
            for part in ("running_mean", "running_var", "weight", "bias")
        )
        return (x - mean) / jnp.sqrt(var + 1e-5) * gamma + beta

    large = arrays["conv1.weight"].shape[-1] == 7
    x = jax.nn.relu(norm("bn1", conv("conv1", x, 2 if large else 1)))
    if large:
        window, padding = (1, 1, 3, 3), [(0, 0), (0, 0), (1, 1), (1, 1)]
        x = lax.reduce_window(x, -jnp.inf, lax.max, window, (1, 1, 2, 2), padding)
    for stage in range(1, 5):
        for block in range(2):
            name, stride = f"layer{stage}.{block}", 2 if stage > 1 and block == 0 else 1
            y = jax.nn.relu(norm(f"{name}.bn1", conv(f"{name}.conv1", x, stride)))
            y = norm(f"{name}.bn2", conv(f"{name}.conv2", y, 1))
            if f"{name}.downsample.0.weight" in arrays:
                x = norm(f"{name}.downsample.1", conv(f"{name}.downsample.0", x, stride))
            x = jax.nn.relu(x + y)
    return x.mean((2, 3)) @ arrays["fc.weight"].T + arrays["fc.bias"]


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("resnet") / "model.safetensors"
    save_file(state_dict(), path)
    return path


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    "shape", [(8, 8, 3), pytest.param((72, 80, 3), marks=pytest.mark.slow)], ids=str
)
def test_the_logits_are_those_of_the_file_in_evaluation_mode(shape, tmp_path):
    arrays = state_dict(stem=3 if shape[0] < 65 else 7)
    np.savez(tmp_path / "weights.npz", **arrays)
    model, latest = torchvision.load(tmp_path / "weights.npz", image_shape=shape)
    assert (model.name, model.num_classes) == ("resnet18_batchnorm", 5)
    arrays, latest = to_float64((arrays, latest))
    x = jax.random.normal(jax.random.key(0), (3, *shape))
    wanted = jax.jit(reference)(arrays, x.transpose(0, 3, 1, 2))
    found = jax.jit(model.apply)(fold(latest), x)
    np.testing.assert_allclose(found, wanted, rtol=1e-11, atol=1e-11)


def test_sides_are_those_of_the_stem_and_a_new_head_is_zeros(file):
    model, (weights, statistics) = torchvision.load(file, num_classes=2)
    assert model.image_shape == (32, 32, 3)
    assert not np.any(weights["head"]["kernel"])
    assert weights["head"]["kernel"].shape == (512, 2)
    arrays = state_dict()
    found = statistics["block_2"]["norm_shortcut"]["var"]
    np.testing.assert_array_equal(found, arrays["layer2.0.downsample.1.running_var"])
    like = create("resnet18_batchnorm", num_classes=2, image_shape=(32, 32, 3)).batch_norm.init
    shapes = [
        jax.tree.map(jnp.shape, tree)
        for tree in ((weights, statistics), jax.eval_shape(like, jax.random.key(0)))
    ]
    assert shapes[0] == shapes[1]


def test_all_that_is_wrong_with_a_file_is_listed(tmp_path):
    arrays = state_dict()
    del arrays["bn1.running_var"]
    arrays["layer5.0.conv1.weight"] = np.zeros(2, np.float32)
    arrays["fc.bias"] = arrays["fc.bias"] * np.nan
    arrays["layer1.0.bn1.bias"] = np.zeros(3, np.float32)
    arrays["layer1.0.bn2.bias"] = np.zeros(64, np.int64)
    save_file(arrays, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="must hold a ResNet-18 as torchvision's") as caught:
        torchvision.load(tmp_path)
    for words in (
        "bn1.running_var missing",
        "layer5.0.conv1.weight surplus",
        "fc.bias not finite",
        "layer1.0.bn1.bias of another shape, [3]",
        "layer1.0.bn2.bias of another type, int64",
    ):
        assert words in str(caught.value)
    with pytest.raises(ValueError, match=r"must hold a ViT by the names of .*got bn1\.bias"):
        pretrained.load(tmp_path)
    save_file({"head": np.zeros(2, np.float32)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="as torchvision's, got head"):
        torchvision.load(tmp_path / "other.safetensors")


@pytest.mark.parametrize("kind", ["F8_E4M3", "F8_E5M2"])
@pytest.mark.parametrize("load", [torchvision.load, pretrained.load])
def test_numbers_of_eight_bits_in_a_safetensors_file_are_refused_by_name(kind, load, tmp_path):
    """It said that NumPy has no attribute float8_e4m3fn, and that the file was not whole."""
    zeros = np.zeros(2, ml_dtypes.float8_e4m3fn).tobytes()
    entry = {"dtype": kind, "shape": [2], "data_offsets": [0, 2]}
    header = json.dumps({"conv1.weight": entry}).encode()
    path = tmp_path / "model.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header + zeros)
    rule = "must hold numbers of float16, bfloat16, float32 or float64, got conv1.weight of"
    with pytest.raises(ValueError, match=f"{rule} {kind}"):
        load(path)
