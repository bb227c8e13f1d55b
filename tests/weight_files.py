"""Weight files as other libraries write them: directories, Google's .npz and timm's names."""

import flax.linen as nn
import flax.traverse_util as tree
import jax.numpy as jnp
import numpy as np
from conftest import drawn
from safetensors.numpy import save_file

from famr_jax import models


def create(name):
    """The model of a name for three classes of small images."""
    return models.create(name, num_classes=3, image_shape=(8, 8, 2))


def token_model():
    """A ViT with a class token, all of its weights random."""
    model = create("vit_mu/4_token")
    return model, drawn(model.init)


def written(directory, arrays, config='{"num_heads": 2}'):
    """A directory with the arrays, and the configuration as text if there is one."""
    directory.mkdir(exist_ok=True)
    contiguous = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    save_file(contiguous, directory / "model.safetensors", metadata={"format": "pt"})
    if config is not None:
        (directory / "config.json").write_text(str(config))
    return directory


class Encoder(nn.Module):
    """The blocks of vit_jax and big_vision, whose own names Linen gives."""

    positions: bool

    @nn.compact
    def __call__(self, x):
        if self.positions:
            x = x + self.param("pos_embedding", nn.initializers.zeros, (1, *x.shape[1:]))
        for i in range(2):
            x = EncoderBlock(name=f"encoderblock_{i}")(x)
        return nn.LayerNorm(name="encoder_norm")(x)


class EncoderBlock(nn.Module):
    @nn.compact
    def __call__(self, x):
        y = nn.LayerNorm()(x)
        x = x + nn.MultiHeadDotProductAttention(num_heads=2)(y, y)
        return x + MlpBlock()(nn.LayerNorm()(x))


class MlpBlock(nn.Module):
    @nn.compact
    def __call__(self, x):
        y = nn.gelu(nn.Dense(4 * x.shape[-1])(x))
        return nn.Dense(x.shape[-1])(y)


class GoogleViT(nn.Module):
    """vit_jax adds positions after the class token, big_vision before it or without one."""

    pool: str

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(32, (4, 4), (4, 4), "VALID", name="embedding")(x)
        x = x.reshape(len(x), -1, 32)
        if self.pool != "augreg":
            x = x + self.param("pos_embedding", nn.initializers.zeros, (1, *x.shape[1:]))
        if self.pool != "gap":
            token = self.param("cls", nn.initializers.zeros, (1, 1, 32))
            x = jnp.concatenate([jnp.tile(token, (len(x), 1, 1)), x], axis=1)
        x = Encoder(self.pool == "augreg", name="Transformer")(x)
        return nn.Dense(3, name="head")(x.mean(1) if self.pool == "gap" else x[:, 0])


def google_file(pool, path, *, prefix="", old=False):
    """Random weights of a Google ViT, saved as these are; the module and its parameters."""
    module = GoogleViT(pool)
    params = drawn(lambda key: module.init(key, jnp.zeros((1, 8, 8, 2)))["params"])
    flat = tree.flatten_dict(params, sep="/")
    position = "Transformer/pos_embedding"
    if position in flat:
        flat["Transformer/posembed_input/pos_embedding"] = flat.pop(position)
    if old:  # as modules were numbered before Linen, and in the files of AugReg
        renamed = {
            name.replace("LayerNorm_1/", "LayerNorm_2/")
            .replace("Attention_0/", "Attention_1/")
            .replace("MlpBlock_0/", "MlpBlock_3/"): array
            for name, array in flat.items()
        }
        assert renamed.keys() != flat.keys()
        flat = renamed
    np.savez(path, **{prefix + name: array for name, array in flat.items()})
    return module, params


def timm_arrays(params):
    """Our weights as timm names and lays them out, written out."""

    def dense(name, layer):
        weight, bias = np.asarray(layer["kernel"]).T, np.asarray(layer["bias"])
        return {f"{name}.weight": weight, f"{name}.bias": bias}

    def norm(name, layer):
        weight, bias = np.asarray(layer["scale"]), np.asarray(layer["bias"])
        return {f"{name}.weight": weight, f"{name}.bias": bias}

    kernel = np.asarray(params["patches"]["kernel"]).reshape(4, 4, 2, 32)
    arrays = {
        "pos_embed": np.asarray(params["position"])[None],
        "patch_embed.proj.weight": np.einsum("ijcd->dcij", kernel),
        "patch_embed.proj.bias": np.asarray(params["patches"]["bias"]),
        **norm("norm", params["norm"]),
        **dense("head", params["head"]),
    }
    if "class_token" in params:
        arrays["cls_token"] = np.asarray(params["class_token"])[None, None]
    for i in range(2):
        block = params[f"block_{i}"]
        arrays |= norm(f"blocks.{i}.norm1", block["norm_attention"])
        arrays |= dense(f"blocks.{i}.attn.qkv", block["qkv"])
        arrays |= dense(f"blocks.{i}.attn.proj", block["out"])
        arrays |= norm(f"blocks.{i}.norm2", block["norm_mlp"])
        arrays |= dense(f"blocks.{i}.mlp.fc1", block["up"])
        arrays |= dense(f"blocks.{i}.mlp.fc2", block["down"])
    return arrays
