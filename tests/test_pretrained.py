"""Weight files: all families of names, heads, dtypes and sizes, errors, and saving."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from conftest import assert_same, drawn
from safetensors.numpy import save_file
from weight_files import create, google_file, timm_arrays, token_model, written

from famr_jax import models
from famr_jax.models import layouts, pretrained, weightfile


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(3).normal(size=(3, 8, 8, 2)).astype(np.float32)


@pytest.mark.parametrize(
    ("pool", "prefix", "old", "name"),
    [
        ("augreg", "", True, "vit_mu/4_token_tanh"),
        ("augreg", "", False, "vit_mu/4_token_tanh"),
        ("gap", "params/", False, "vit_mu/4"),
        ("tok", "", False, "vit_mu/4_token_tanh"),
    ],
)
def test_logits_of_googles_npz(pool, prefix, old, name, tmp_path, images):
    module, theirs = google_file(pool, tmp_path / "vit.npz", prefix=prefix, old=old)
    model, params = pretrained.load(tmp_path / "vit.npz")
    assert (model.name, model.image_shape, model.num_classes) == (name, (8, 8, 2), 3)
    both = jax.jit(
        lambda params, theirs: (model.apply(params, images), module.apply(theirs, images))
    )
    logits, wanted = both(params, {"params": theirs})
    np.testing.assert_allclose(logits, wanted, rtol=1e-4, atol=1e-5)
    if pool == "tok":
        assert not np.any(params["position"][0])


@pytest.mark.parametrize(("name", "pool"), [("vit_mu/4_token", "token"), ("vit_mu/4_exact", "avg")])
def test_arrays_of_timm(name, pool, tmp_path):
    params = drawn(create(name).init)
    config = json.dumps({"num_heads": 2, "global_pool": pool})
    loaded, same = pretrained.load(written(tmp_path / "a", timm_arrays(params), config))
    assert loaded.name == name
    assert_same(same, params)
    other = json.dumps({"global_pool": "map"})
    with pytest.raises(ValueError, match=r"pool as its arrays do, by .*, got global_pool 'map'"):
        pretrained.load(written(tmp_path / "b", timm_arrays(params), other))


@pytest.mark.parametrize("heads", [1, 2, 4, 8])
@pytest.mark.parametrize("place", ["num_heads", "num_attention_heads", "model_args", "argument"])
def test_heads_are_as_the_file_tells_or_as_asked_for(heads, place, tmp_path, images):
    params = token_model()[1]
    module = models.vit.ViT(3, 4, models.vit.Variant(32, 2, heads), "token", "exact")
    config = {"model_args": {"num_heads": heads}} if place == "model_args" else {place: heads}
    source = written(tmp_path, timm_arrays(params), json.dumps(config))
    asked = heads if place == "argument" else None
    model, same = pretrained.load(source, num_heads=asked)
    assert_same(same, params)
    assert model.module == module
    assert model is models.create(model.name, num_classes=3, image_shape=(8, 8, 2))
    wanted = module.apply({"params": params}, images)[0]
    np.testing.assert_allclose(model.apply(same, images), wanted, atol=1e-5)
    if place != "argument":
        with pytest.raises(ValueError, match=f"`num_heads` must be that of .*, {heads}, got 16"):
            pretrained.load(source, num_heads=16)


@pytest.mark.parametrize(
    ("architecture", "heads"),
    [("vit_small_patch16_224", 6), ("deit_small_patch16_224.fb_in1k", 6), ("vit_small_moco", None)],
)
def test_an_architecture_of_timm_tells_its_heads(architecture, heads):
    file = weightfile.File("x", layouts.TIMM, {}, {}, {"architecture": architecture})
    assert pretrained._told_heads(file, 384, 12) == heads
    assert pretrained._told_heads(file, 512, 12) is None


@pytest.mark.parametrize("name", ["vit_mu/4_token", "vit_32x1x8/2_token_tanh_eps1e-05"])
def test_save_and_load_give_the_same_model_and_bits(name, tmp_path):
    model = models.create(name, num_classes=4, image_shape=(8, 12, 1))
    params = drawn(model.init)
    pretrained.save(tmp_path / "new" / "here", model, params)
    loaded, same = pretrained.load(tmp_path / "new" / "here")
    assert loaded is model
    assert_same(same, params)
    assert_same(
        pretrained.load(tmp_path / "new" / "here" / "model.safetensors", image_shape=(8, 12, 1))[1],
        params,
    )


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float64])
def test_other_dtypes_become_float32(dtype, tmp_path):
    params = token_model()[1]
    rounded = jax.tree.map(lambda leaf: np.asarray(leaf).astype(dtype), params)
    _, loaded = pretrained.load(written(tmp_path, timm_arrays(rounded)))
    assert_same(loaded, jax.tree.map(lambda leaf: jnp.asarray(leaf.astype(np.float32)), rounded))


@pytest.mark.parametrize(("dtype", "share"), [(np.float16, 1e-3), (ml_dtypes.bfloat16, 8e-3)])
def test_half_precision_in_an_npz_becomes_float32(dtype, share, tmp_path):
    """Of bfloat16 NumPy writes V2, and `isfinite` knew no such type."""
    google_file("gap", tmp_path / "whole.npz")
    arrays = {name: array.astype(dtype) for name, array in np.load(tmp_path / "whole.npz").items()}
    np.savez(tmp_path / "half.npz", **arrays)
    (_, whole), (_, half) = (
        pretrained.load(tmp_path / f"{name}.npz") for name in ("whole", "half")
    )
    for mine, wanted in zip(jax.tree.leaves(half), jax.tree.leaves(whole), strict=True):
        assert mine.dtype == np.float32
        np.testing.assert_allclose(mine, wanted, rtol=share, atol=1e-6)


@pytest.mark.parametrize("dtype", [ml_dtypes.float8_e4m3fn, int, complex, bool, np.longdouble])
def test_weights_that_are_no_floats_are_refused(dtype, tmp_path):
    google_file("gap", tmp_path / "file.npz")
    arrays = dict(np.load(tmp_path / "file.npz"))
    for name in ("head/bias", "head/kernel"):
        np.savez(tmp_path / "file.npz", **arrays | {name: arrays[name].astype(dtype)})
        with pytest.raises(ValueError, match=f"of another type: {name} .* for float16, bfloat16"):
            pretrained.load(tmp_path / "file.npz")


@pytest.mark.parametrize("dtype", [np.int64, np.complex64, bool])
def test_weights_of_a_directory_that_are_no_floats_are_refused(dtype, tmp_path):
    _, params = token_model()
    arrays = timm_arrays(params)
    arrays["head.bias"] = arrays["head.bias"].astype(dtype)
    with pytest.raises(ValueError, match=r"of another type: head\.bias"):
        pretrained.load(written(tmp_path / "timm", arrays))


def test_another_number_of_classes_gets_a_head_of_zeros(tmp_path):
    params = token_model()[1]
    source = written(tmp_path, timm_arrays(params))
    same, kept = pretrained.load(source, num_classes=3)
    model, fresh = pretrained.load(source, num_classes=7)
    assert (same.num_classes, model.num_classes) == (3, 7)
    assert_same(kept, params)
    assert {key: leaf.shape for key, leaf in fresh["head"].items()} == {
        "kernel": (32, 7),
        "bias": (7,),
    }
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(fresh["head"]))
    assert_same({**fresh, "head": 0}, {**params, "head": 0})


def test_load_at_another_size_is_load_and_resize(tmp_path):
    google_file("gap", tmp_path / "vit.npz")
    loaded = pretrained.load(tmp_path / "vit.npz", image_shape=(12, 16, 2))
    wanted = pretrained.resize(*pretrained.load(tmp_path / "vit.npz"), (12, 16, 2))
    assert loaded[0] is wanted[0]
    assert_same(loaded[1], wanted[1])
    assert loaded[1]["position"].shape == (12, 32)


def test_a_grid_that_is_not_square_is_what_was_asked_for(tmp_path):
    model = models.create("vit_mu/4_token", num_classes=3, image_shape=(8, 12, 2))
    params = drawn(model.init)
    source = written(tmp_path, timm_arrays(params))
    assert_same(pretrained.load(source, image_shape=(8, 12, 2))[1], params)
    for shape in (None, (8, 8, 2)):
        with pytest.raises(ValueError, match=r"square grid of positions, .*got 6 positions"):
            pretrained.load(source, image_shape=shape)


def test_all_that_is_wrong_is_listed_at_once(tmp_path):
    arrays = timm_arrays(token_model()[1])
    del arrays["blocks.1.attn.proj.bias"], arrays["norm.weight"]
    arrays["blocks.0.ls1.gamma"] = np.ones(32, "f")
    arrays["blocks.0.mlp.fc1.weight"] = np.ones((64, 32), "f")
    arrays["norm.bias"] = np.full(32, np.nan, "f")
    with pytest.raises(ValueError, match="hold vit_mu/4_token by the names of timm") as caught:
        pretrained.load(written(tmp_path, arrays))
    for words in (
        "missing: blocks.1.attn.proj.bias, norm.weight",
        "surplus: blocks.0.ls1.gamma",
        "of another shape: blocks.0.mlp.fc1.weight [64, 32] for [128, 32]",
        "not finite: norm.bias",
    ):
        assert words in str(caught.value)


def test_a_prelogits_layer_is_surplus_unless_the_head_is_new(tmp_path):
    google_file("augreg", tmp_path / "vit.npz")
    with np.load(tmp_path / "vit.npz") as opened:
        arrays = {**opened, "pre_logits/kernel": np.eye(32), "pre_logits/bias": np.ones(32)}
    np.savez(tmp_path / "vit.npz", **arrays)
    with pytest.raises(ValueError, match="surplus: pre_logits/kernel, pre_logits/bias"):
        pretrained.load(tmp_path / "vit.npz")
    assert pretrained.load(tmp_path / "vit.npz", num_classes=5)[0].num_classes == 5


def test_load_refuses_what_is_no_vit(tmp_path):
    arrays = timm_arrays(token_model()[1])
    (tmp_path / "torn.npz").write_bytes(b"PK\x03\x04 torn")
    (tmp_path / "torn.safetensors").write_bytes(b"torn" * 9)
    save_file({"conv1.weight": np.ones(3, "f")}, tmp_path / "other.safetensors")
    np.savez(tmp_path / "empty.npz")
    twice = {"vit.embeddings.cls_token": np.ones(1), "embeddings.cls_token": np.ones(1)}
    save_file(twice, tmp_path / "twice.safetensors")
    flat = arrays | {"patch_embed.proj.weight": np.ones((32, 32), "f")}
    no_position = {name: array for name, array in arrays.items() if name != "pos_embed"}
    for source, message in [
        (tmp_path / "nowhere.npz", "`source` must be a .npz or .safetensors file, .*nowhere.npz"),
        (tmp_path, "directory with model.safetensors"),
        (Path(__file__).parent / "conftest.py", "`source` must be a .npz"),
        (tmp_path / "torn.npz", "must be whole files, got"),
        (tmp_path / "torn.safetensors", "must be whole files, got"),
        (tmp_path / "other.safetensors", "names of AugReg or big_vision, .*got conv1.weight"),
        (tmp_path / "empty.npz", "got no array"),
        (tmp_path / "twice.safetensors", "hold each array once, got .*cls_token and"),
        (written(tmp_path / "list", arrays, "[1, 2]"), "must be whole files, got"),
        (written(tmp_path / "flat", flat), "patch kernel of square patches, got"),
        (
            written(tmp_path / "two", arrays | {"dist_token": np.ones((1, 1, 32), "f")}),
            "have one class token, got dist_token: take a DeiT not distilled",
        ),
        (written(tmp_path / "none", no_position), "hold position embeddings of 3 dimensions"),
    ]:
        with pytest.raises(ValueError, match=message):
            pretrained.load(source)


def test_resize_and_save_refuse(tmp_path):
    model, params = token_model()
    other = create("mlp_8")
    mean = create("vit_mu/4")
    with pytest.raises(ValueError, match="`model` must be a ViT, got 'mlp_8'"):
        pretrained.resize(other, {}, (8, 8, 2))
    with pytest.raises(ValueError, match="`image_shape` must have 2 channels"):
        pretrained.resize(model, params, (8, 8, 3))
    with pytest.raises(ValueError, match="patch divides"):
        pretrained.resize(model, params, (9, 8, 2))
    for wrong in (other, mean):
        with pytest.raises(ValueError, match="`model` must be a ViT with a class token"):
            pretrained.save(tmp_path / "x", wrong, params)
    with pytest.raises(ValueError, match="`params` must have the names and shapes"):
        pretrained.save(tmp_path / "x", model, {**params, "position": params["position"][1:]})
    assert not (tmp_path / "x").exists()
