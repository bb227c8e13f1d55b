"""What families of weight files call the arrays of a ViT, and in which shapes they hold them."""

import re
from typing import NamedTuple

import numpy as np

from famr_jax.models.vit import ViT


class Family(NamedTuple):
    """One family of files.

    Attributes:
        title: Its name in words.
        column: Its column of `NAMES`.
        block: The prefix of block #.
        head: A pattern of the names that a new head replaces.
        aliases: Patterns of the names of another generation, and what replaces them.
    """

    title: str
    column: int
    block: str
    head: str
    aliases: tuple[tuple[str, str], ...] = ()


NPZ = Family(
    "AugReg or big_vision",
    0,
    "Transformer/encoderblock_#",
    r"(head|pre_logits)/",
    (
        (r"^params/", ""),
        (r"^Transformer/(posembed_input/)?pos_embedding$", "pos_embedding"),
        (r"/LayerNorm_2/", "/LayerNorm_1/"),
        (r"/MultiHeadDotProductAttention_1/", "/MultiHeadDotProductAttention_0/"),
        (r"/MlpBlock_3/", "/MlpBlock_0/"),
    ),
)
HUGGING_FACE = Family(
    "Hugging Face",
    1,
    "encoder.layer.#",
    r"(classifier|pooler)\.",
    (
        (r"^vit\.", ""),
        (r"^layers\.", "encoder.layer."),
        (r"\.q_proj\.", ".attention.query."),
        (r"\.k_proj\.", ".attention.key."),
        (r"\.v_proj\.", ".attention.value."),
        (r"\.o_proj\.", ".output.dense."),
        (r"\.mlp\.fc1\.", ".intermediate.dense."),
        (r"\.mlp\.fc2\.", ".output.dense."),
    ),
)
TIMM = Family("timm", 2, "blocks.#", r"head\.")
FAMILIES = (NPZ, HUGGING_FACE, TIMM)

# `~` is the prefix of the block; `?` is query, key and value in turn.
NAMES = {
    "class_token": ("cls", "embeddings.cls_token", "cls_token"),
    "position": ("pos_embedding", "embeddings.position_embeddings", "pos_embed"),
    "patches": ("embedding", "embeddings.patch_embeddings.projection", "patch_embed.proj"),
    "~/norm_attention": ("~/LayerNorm_0", "~.layernorm_before", "~.norm1"),
    "~/qkv": ("~/MultiHeadDotProductAttention_0/?", "~.attention.attention.?", "~.attn.qkv"),
    "~/out": ("~/MultiHeadDotProductAttention_0/out", "~.attention.output.dense", "~.attn.proj"),
    "~/norm_mlp": ("~/LayerNorm_1", "~.layernorm_after", "~.norm2"),
    "~/up": ("~/MlpBlock_0/Dense_0", "~.intermediate.dense", "~.mlp.fc1"),
    "~/down": ("~/MlpBlock_0/Dense_1", "~.output.dense", "~.mlp.fc2"),
    "norm": ("Transformer/encoder_norm", "layernorm", "norm"),
    "head": ("head", "classifier", "head"),
}


def names(path: str, family: Family) -> list[str]:
    """What a family calls one of our arrays: three names where queries, keys, values are apart."""
    module, _, leaf = path.rpartition("/")
    name = NAMES[re.sub(r"^block_\d+", "~", module) or leaf][family.column]
    if block := re.match(r"block_(\d+)", path):
        name = name.replace("~", family.block.replace("#", block[1]))
    if module:
        torch = ".bias" if leaf == "bias" else ".weight"
        name += f"/{leaf}" if family is NPZ else torch
    return (
        [name.replace("?", part) for part in ("query", "key", "value")] if "?" in name else [name]
    )


def to_file(path: str, array: np.ndarray, family: Family, module: ViT) -> dict[str, np.ndarray]:
    """One of our arrays by the names and in the shapes of a family."""
    parts = names(path, family)
    arrays = np.split(array, len(parts), axis=-1)
    return {
        name: _to_shape(path, part, family, module)
        for name, part in zip(parts, arrays, strict=True)
    }


def from_file(arrays: list[np.ndarray], like: tuple[int, ...], family: Family) -> np.ndarray:
    """The inverse of `to_file`: our array, of shape `like`, of the arrays that make it up."""
    turned = [array if family is NPZ else inputs_first(array) for array in arrays]
    shape = (*like[:-1], like[-1] // len(arrays))
    return np.concatenate([array.reshape(shape) for array in turned], axis=-1)


def _to_shape(path, array, family, module):
    dim, _, heads = module.variant
    if path in ("class_token", "position"):
        return array.reshape(1, -1, dim)
    if path == "patches/kernel":
        array = array.reshape(module.patch, module.patch, -1, dim)
        return array if family is NPZ else array.transpose(3, 2, 0, 1)
    if family is not NPZ:
        return array.T
    if "/qkv/" in path:
        return array.reshape(*array.shape[:-1], heads, dim // heads)
    return array.reshape(heads, -1, dim) if path.endswith("/out/kernel") else array


def inputs_first(array: np.ndarray) -> np.ndarray:
    """A kernel of PyTorch, `[out, in]` or `[out, in, row, column]`, in our order of axes."""
    if array.ndim == 4:
        return array.transpose(2, 3, 1, 0)
    return array.T if array.ndim == 2 else array
