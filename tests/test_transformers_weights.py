"""Weights of transformers: logits and gradients, names, heads, the hub, and the way back."""

import json
import sys
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import assert_same, to_float64
from safetensors.numpy import load_file
from weight_files import create, timm_arrays, token_model, written

from famr_jax import models
from famr_jax.cli.opening import _start
from famr_jax.models import pretrained

FROZEN = Path(__file__).parent / "data" / "vit.npz"


@pytest.fixture(scope="module")
def frozen():
    """What tests/frozen_vit.py wrote: weights, gradients and logits of transformers' ViT."""
    with np.load(FROZEN) as opened:
        return dict(opened)


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


def test_save_writes_the_names_that_transformers_writes(hugging_face, tmp_path):
    source = hugging_face("weights", True)
    pretrained.save(tmp_path, *pretrained.load(source))
    theirs = load_file(hugging_face("weights", False) / "model.safetensors")
    assert_same(load_file(tmp_path / "model.safetensors"), theirs)
    mine, config = (json.loads((at / "config.json").read_text()) for at in (tmp_path, source))
    assert mine == {name: config[name] for name in mine}


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
