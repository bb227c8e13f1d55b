"""Weight files: parity of logits and gradients, all families of names, errors, and the way back."""

import json
import sys
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from conftest import assert_same, drawn, to_float64
from safetensors.numpy import load_file, save_file
from weight_files import create, google_file, timm_arrays, token_model, written

from famr_jax import models
from famr_jax.cli.opening import _start
from famr_jax.models import layouts, pretrained, weightfile

FROZEN = Path(__file__).parent / "data" / "vit.npz"


@pytest.fixture(scope="module")
def frozen():
    """What tests/frozen_vit.py wrote: weights, gradients and logits of transformers' ViT."""
    with np.load(FROZEN) as opened:
        return dict(opened)


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(3).normal(size=(3, 8, 8, 2)).astype(np.float32)


def part(frozen, kind):
    cut = f"{kind}/"
    return {
        name.removeprefix(cut): array.astype(np.float32)
        for name, array in frozen.items()
        if name.startswith(cut)
    }


def loss_and_logits(model):
    def loss(params, x, labels):
        logits = model.apply(params, x)
        picked = jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], axis=-1)
        return -jnp.mean(picked), logits

    return jax.jit(jax.grad(loss, has_aux=True))


def assert_close(tree_, other, tolerance):
    """Each leaf to a tolerance relative to the largest entry of the other's."""
    assert jax.tree.structure(tree_) == jax.tree.structure(other)
    for leaf, same in zip(jax.tree.leaves(tree_), jax.tree.leaves(other), strict=True):
        assert np.abs(np.asarray(leaf) - same).max() <= tolerance * np.abs(same).max()


@pytest.fixture(scope="module")
def hugging_face(frozen, tmp_path_factory):
    """The frozen ViT as transformers 4 and 5 name it: `directory(kind, newest)`."""
    newest = json.loads(str(frozen["newest"]))

    def directory(kind, new):
        arrays = part(frozen, kind)
        if new:
            arrays = {newest[name]: array for name, array in arrays.items()}
        return written(tmp_path_factory.mktemp(kind), arrays, frozen["config"])

    return directory


def test_transformers_logits_and_gradients(hugging_face, frozen):
    model, params = pretrained.load(hugging_face("weights", True))
    assert model.name == "vit_mu/4_token_eps1e-12"
    assert model is models.create(model.name, num_classes=3, image_shape=(8, 12, 2))
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype(jnp.float32)}
    older, same = pretrained.load(hugging_face("weights", False))
    assert older is model
    assert_same(same, params)
    _, gradients = pretrained.load(hugging_face("gradients", True))
    mine, logits = loss_and_logits(model)(params, frozen["x"], frozen["labels"])
    np.testing.assert_allclose(logits, frozen["logits"], atol=1e-5)
    assert_close(mine, gradients, 1e-5)


def test_transformers_logits_and_gradients_in_float64(hugging_face, frozen, x64):
    model, params = pretrained.load(hugging_face("weights", False))
    _, gradients = pretrained.load(hugging_face("gradients", False))
    params, x = to_float64((params, frozen["x"]))
    mine, logits = loss_and_logits(model)(params, x, frozen["labels"])
    assert logits.dtype == np.float64
    np.testing.assert_allclose(logits, frozen["logits"], rtol=1e-12)
    assert_close(mine, jax.tree.map(np.asarray, gradients), 2e-7)  # which float32 stores


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


def test_heads_that_nobody_tells_are_asked_for(hugging_face, tmp_path):
    bare = written(tmp_path / "timm", timm_arrays(token_model()[1]), None)
    theirs = hugging_face("weights", False)
    (theirs / "config.json").unlink()
    for source in (bare, theirs):
        with pytest.raises(ValueError, match=r"number of attention heads .* `num_heads`"):
            pretrained.load(source, image_shape=(8, 12, 2))
    with pytest.raises(ValueError, match="have heads that divide its width 32, got 3"):
        pretrained.load(bare, num_heads=3)
    _start(str(bare), create("vit_32x2x4/4_token"))
    with pytest.raises(ValueError, match="`model` must have the width 32 and the 2 blocks of"):
        _start(str(bare), create("vit_32x4/4_token"))


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


def test_save_writes_the_names_that_transformers_writes(hugging_face, tmp_path):
    source = hugging_face("weights", True)
    pretrained.save(tmp_path, *pretrained.load(source))
    theirs = load_file(hugging_face("weights", False) / "model.safetensors")
    assert_same(load_file(tmp_path / "model.safetensors"), theirs)
    mine, config = (json.loads((at / "config.json").read_text()) for at in (tmp_path, source))
    assert mine == {name: config[name] for name in mine}


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


def test_a_file_without_a_head_needs_a_number_of_classes(frozen, tmp_path):
    arrays = {
        name.removeprefix("vit."): array
        for name, array in part(frozen, "weights").items()
        if not name.startswith("classifier.")
    }
    pooler = {"pooler.dense.weight": np.eye(32, dtype="f"), "pooler.dense.bias": np.ones(32, "f")}
    source = written(tmp_path, arrays | pooler, frozen["config"])
    model, params = pretrained.load(source, num_classes=5)
    assert model.num_classes == 5
    assert not np.any(params["head"]["kernel"])
    message = r"missing: classifier.bias, classifier.weight; surplus: pooler.*`num_classes`"
    with pytest.raises(ValueError, match=message):
        pretrained.load(source)


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


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_act": "relu"}, "hidden_act of gelu, .*got 'relu'"),
        ({"num_attention_heads": 5}, "have heads that divide its width 32, got 5"),
        ({"num_attention_heads": "2"}, "`num_heads` must be an integer >= 1, got '2'"),
        ({"layer_norm_eps": 0}, "`epsilon` must be finite and > 0"),
    ],
)
def test_configurations_that_no_variant_has(change, message, frozen, tmp_path):
    config = json.dumps(json.loads(str(frozen["config"])) | change)
    with pytest.raises(ValueError, match=message):
        pretrained.load(written(tmp_path, part(frozen, "weights"), config))


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
        (FROZEN.parent.parent / "conftest.py", "`source` must be a .npz"),
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


def test_the_hub_is_asked_only_for_hf(hugging_face, frozen, tmp_path, monkeypatch):
    class NoEntry(OSError):
        pass

    asked, files = [], hugging_face("weights", True)

    def download(repository, name):
        asked.append((repository, name))
        if not (files / name).exists():
            raise NoEntry(f"no {name} in {repository}")
        return str(files / name)

    errors = types.SimpleNamespace(RemoteEntryNotFoundError=NoEntry)
    hub = types.SimpleNamespace(hf_hub_download=download, errors=errors)
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    pretrained.load(files)
    assert asked == []
    model, _ = pretrained.load("hf:owner/name")
    assert asked == [("owner/name", "model.safetensors"), ("owner/name", "config.json")]
    (files / "config.json").unlink()
    assert pretrained.load("hf:owner/name", image_shape=(8, 12, 2), num_heads=2)[0] is model
    (files / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"`source` hf:owner/name must be a repository .*got: no"):
        pretrained.load("hf:owner/name")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ValueError, match="needs the package huggingface_hub"):
        pretrained.load("hf:owner/name")


def transformers_vit(variant, patch, side):
    """A ViT of transformers with random weights, larger than its own so that all of them count."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    dim, depth, heads = variant
    config = transformers.ViTConfig(
        hidden_size=dim,
        num_hidden_layers=depth,
        num_attention_heads=heads,
        intermediate_size=4 * dim,
        image_size=side,
        patch_size=patch,
        num_labels=10,
    )
    torch.manual_seed(0)
    theirs = transformers.ViTForImageClassification(config).eval()
    with torch.no_grad():
        for weight in theirs.parameters():
            weight.add_(0.02 * torch.randn_like(weight))
    return torch, theirs


@pytest.mark.slow
@pytest.mark.parametrize(("name", "patch", "side"), [("Ti", 4, 32), ("S", 16, 64)])
def test_parity_with_transformers_and_back(name, patch, side, tmp_path):
    torch, theirs = transformers_vit(models.vit.VARIANTS[name], patch, side)
    theirs.save_pretrained(tmp_path / "weights")
    x, labels = torch.randn(4, 3, side, side), torch.tensor([0, 3, 6, 9])
    logits = theirs(x).logits
    torch.nn.functional.cross_entropy(logits, labels).backward()
    model, params = pretrained.load(tmp_path / "weights")
    assert model.name == f"vit_{name}/{patch}_token_eps1e-12"
    pretrained.save(tmp_path / "back", model, params)
    again = type(theirs).from_pretrained(tmp_path / "back").eval()
    with torch.no_grad():
        assert torch.equal(again(x).logits, logits)
        for weight in theirs.parameters():
            weight.copy_(weight.grad)
    theirs.save_pretrained(tmp_path / "gradients")
    _, gradients = pretrained.load(tmp_path / "gradients")
    images = jnp.asarray(x.permute(0, 2, 3, 1).numpy())
    mine, same = loss_and_logits(model)(params, images, jnp.asarray(labels.numpy()))
    np.testing.assert_allclose(same, logits.detach(), atol=1e-5)
    assert_close(mine, gradients, 1e-5)
