"""Vision Transformers from weight files, and back: AugReg and big_vision, Hugging Face, timm.

Images must be scaled as the file's were. To [-1, 1], as in this library, for AugReg, big_vision,
Google's files on Hugging Face and timm's `augreg`; but by ImageNet's mean and deviation for DeiT
and DINO.
"""

import json
import math
import re
from pathlib import Path
from typing import Any

import flax.traverse_util as tree
import jax
import jax.numpy as jnp
import numpy as np

from famr_jax.models import Model, create, layouts
from famr_jax.models.layouts import HUGGING_FACE, NPZ, TIMM
from famr_jax.models.vit import VARIANTS, Variant, ViT, label_of, name_of
from famr_jax.models.weightfile import File, read
from famr_jax.types import Params, check_count

DTYPES = ("float16", "bfloat16", "float32", "float64")
ACTIVATIONS = {"gelu": "exact", "gelu_new": "tanh", "gelu_pytorch_tanh": "tanh"}
TIMM_SIZES = {"tiny": "Ti", "small": "S", "base": "B", "large": "L"}
"""What timm calls the variants in the names of its architectures."""


def load(
    source: Path | str,
    *,
    num_classes: int | None = None,
    image_shape: tuple[int, int, int] | None = None,
    num_heads: int | None = None,
) -> tuple[Model, Params]:
    """Loads a Vision Transformer whose logits are those of the file's own library.

    Pooling, the form of the GELU and the epsilon are the file's: exact and 1e-12 for Hugging Face
    unless its `config.json` says otherwise, exact and 1e-6 for timm, tanh and 1e-6 for AugReg and
    big_vision. Half precision becomes float32; float8 and what is no real number are refused.

    Args:
        source: A `.npz` or `.safetensors` file; a directory with `model.safetensors`; or
            `hf:owner/name`, which downloads that file from Hugging Face's hub.
        num_classes: None keeps the file's head; another number than its gets a head of zeros.
        image_shape: `(height, width, channels)`; None keeps the file's, else see `resize`.
        num_heads: Attention heads, for files that do not tell; else it must be the file's.

    Raises:
        ValueError: No such file; no ViT; unknown attention heads; arrays that are missing, surplus,
            of another shape or type or not finite, all of them listed.
    """
    file = read(source)
    model, fresh = _architecture(file, num_classes, image_shape, num_heads)
    flat = _checked(file, model, fresh)
    if fresh:
        flat["head/kernel"] = np.zeros((model.module.variant.dim, model.num_classes), np.float32)
        flat["head/bias"] = np.zeros(model.num_classes, np.float32)
    params = tree.unflatten_dict({path: jnp.asarray(leaf) for path, leaf in flat.items()}, sep="/")
    return (model, params) if image_shape is None else resize(model, params, image_shape)


def save(directory: Path | str, model: Model, params: Params) -> None:
    """Writes `model.safetensors` and `config.json`, which transformers 4 and 5 load.

    Args:
        directory: Made if missing; files of these names in it are replaced.
        model: A ViT with a class token, the only pooling that transformers' ViT has.
        params: Its weights; their dtype is kept.

    Raises:
        ValueError: Another model, or weights that are not its.
    """
    import safetensors.numpy

    module = model.module
    if not isinstance(module, ViT) or module.pooling != "token":
        raise ValueError(f"`model` must be a ViT with a class token, got {model.name!r}.")
    shapes = jax.tree.map(jnp.shape, jax.eval_shape(model.init, jax.random.key(0)))
    if jax.tree.map(jnp.shape, params) != shapes:
        raise ValueError(f"`params` must have the names and shapes of {model.name!r}.")
    arrays = {}
    for path, leaf in tree.flatten_dict(params, sep="/").items():
        for name, array in layouts.to_file(path, np.asarray(leaf), HUGGING_FACE, module).items():
            inside = "" if path.startswith("head/") else "vit."
            arrays[inside + name] = np.ascontiguousarray(array)
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    text = json.dumps(_configuration(model), indent=2) + "\n"
    (directory / "config.json").write_text(text, encoding="utf-8")
    path = directory / "model.safetensors"
    safetensors.numpy.save_file(arrays, path, metadata={"format": "pt"})


def resize(model: Model, params: Params, image_shape: tuple[int, int, int]) -> tuple[Model, Params]:
    """The same ViT for images of another size: its grid of positions is resampled.

    Bicubic with antialiasing (Keys' kernel, a = -1/2), as in timm; a class token keeps its row.

    Args:
        model: A ViT.
        params: Its weights.
        image_shape: `(height, width, channels)`, the channels the model's.

    Raises:
        ValueError: No ViT, other channels, or an image that the patch does not divide.
    """
    if not isinstance(model.module, ViT):
        raise ValueError(f"`model` must be a ViT, got {model.name!r}.")
    resized = create(model.name, num_classes=model.num_classes, image_shape=image_shape)
    if resized.image_shape[2] != model.image_shape[2]:
        channels = model.image_shape[2]
        raise ValueError(f"`image_shape` must have {channels} channels, got {image_shape}.")
    sizes = [
        [side // model.module.patch for side in shape[:2]]
        for shape in (model.image_shape, resized.image_shape)
    ]
    first = 1 if model.module.pooling == "token" else 0
    token, grid = params["position"][:first], params["position"][first:]
    dim = grid.shape[-1]
    grid = jax.image.resize(grid.reshape(*sizes[0], dim), (*sizes[1], dim), "cubic")
    return resized, {**params, "position": jnp.concatenate([token, grid.reshape(-1, dim)])}


def _architecture(file: File, num_classes, image_shape, num_heads) -> tuple[Model, bool]:
    """The model for images of the file's own size, and whether its head is to be a new one."""
    if second := {"dist_token", "embeddings.distillation_token"} & set(file.arrays):
        raise file.error(f"have one class token, got {second.pop()}: take a DeiT not distilled")
    kernel = file.get("patches/kernel")
    assert kernel is not None  # or `read` had found no family
    sizes = kernel.shape if file.family is NPZ else kernel.T.shape
    if len(sizes) != 4 or sizes[0] != sizes[1]:
        raise file.error(f"hold a patch kernel of square patches, got {list(kernel.shape)}")
    patch, _, channels, dim = sizes
    block = re.compile(re.escape(file.family.block).replace(r"\#", r"(\d+)\b"))
    depth = len({match[1] for name in file.arrays if (match := block.match(name))})
    pooling, gelu, epsilon = _style(file)
    sizes = Variant(dim, depth, _heads(file, dim, depth, num_heads))
    rows, columns = _grid(file, pooling, patch, image_shape)
    bias = file.get("head/bias")
    classes = None if bias is None else bias.size
    model = create(
        name_of(label_of(sizes), patch, pooling, gelu, epsilon),
        num_classes=num_classes or classes or 2,
        image_shape=(rows * patch, columns * patch, channels),
    )
    return model, num_classes not in (None, classes)


def _heads(file: File, dim: int, depth: int, asked: int | None) -> int:
    """The number of attention heads: as the file tells, else as asked for."""
    told = _told_heads(file, dim, depth)
    if told is None and asked is None:
        rule = "tell its number of attention heads in a config.json, or be given `num_heads`"
        raise file.error(f"{rule}: any that divides its width {dim} fits its arrays, got none")
    if None not in (told, asked) and told != asked:
        raise ValueError(f"`num_heads` must be that of {file.source}, {told}, got {asked!r}.")
    heads: Any = asked if told is None else told
    check_count("num_heads", heads)
    if dim % heads:
        raise file.error(f"have heads that divide its width {dim}, got {heads}")
    return heads


def _told_heads(file: File, dim: int, depth: int) -> Any:
    """The number of heads by the arrays, the configuration or the architecture it names."""
    config = file.config
    if file.family is NPZ:
        query = file.get("block_0/qkv/bias")
        return None if query is None else len(np.atleast_1d(query))
    for settings, key in (
        (config, "num_attention_heads"),
        (config, "num_heads"),
        (config.get("model_args") or {}, "num_heads"),
    ):
        if key in settings:
            return settings[key]
    if file.family is HUGGING_FACE:
        return 12 if "model_type" in config else None  # what transformers leaves out
    named = re.match(
        r"(?:vit|deit3?)_(tiny|small|base|large)_(?:distilled_)?patch\d+_\d+(\.|$)",
        str(config.get("architecture", "")),
    )
    row = VARIANTS[TIMM_SIZES[named[1]]] if named else None
    return row.heads if row and row[:2] == (dim, depth) else None


def _style(file: File) -> tuple[str, str, float]:
    """Pooling, form of the GELU and epsilon."""
    token = file.family is HUGGING_FACE or file.get("class_token") is not None
    pooling = "token" if token else "mean"
    if file.family is NPZ:
        return pooling, "tanh", 1e-6
    if file.family is TIMM:
        said = file.config.get("global_pool", pooling)
        if said not in (pooling, {"token": "token", "mean": "avg"}[pooling]):
            raise file.error(f"pool as its arrays do, by {pooling}, got global_pool {said!r}")
        return pooling, "exact", 1e-6
    activation = file.config.get("hidden_act", "gelu")
    if activation not in ACTIVATIONS:
        raise file.error(f"have a hidden_act of {', '.join(ACTIVATIONS)}, got {activation!r}")
    epsilon = float(file.config.get("layer_norm_eps", 1e-12))
    return pooling, ACTIVATIONS[activation], epsilon


def _grid(file: File, pooling, patch, image_shape) -> tuple[int, int]:
    """Rows and columns of patches: as the configuration says, else square, else as asked for.

    Positions without a row for the class token, as big_vision's since 2022, get one of zeros.
    """
    position = file.get("position")
    if position is None or position.ndim != 3:
        raise file.error("hold position embeddings of 3 dimensions")
    name = layouts.names("position", file.family)[0]
    count, token = position.shape[1], pooling == "token"
    added_first = file.family is NPZ and "Transformer/" not in file.given[name]
    if token and added_first and math.isqrt(count) ** 2 == count:
        file.arrays[name] = np.pad(position, [(0, 0), (1, 0), (0, 0)])
    elif token:
        count -= 1
    said, square = file.config.get("image_size", 0), math.isqrt(max(count, 0)) * patch
    for sides in ([said, said] if isinstance(said, int) else said, [square] * 2, image_shape or ()):
        grid = [side // patch for side in sides[:2]]
        if math.prod(grid) == count > 0 and len(grid) == 2:
            return grid[0], grid[1]
    rule = "have a square grid of positions, or its configuration or `image_shape` the grid's sides"
    raise file.error(f"{rule}, got {count} positions")


def _checked(file: File, model: Model, fresh: bool) -> dict[str, np.ndarray]:
    """The file's arrays as ours, by path; all that is wrong with them in one error."""
    shapes: dict[str, Any] = tree.flatten_dict(
        jax.eval_shape(model.init, jax.random.key(0)), sep="/"
    )
    left, head = dict(file.arrays), re.compile(file.family.head)
    if fresh:
        shapes = {path: leaf for path, leaf in shapes.items() if not path.startswith("head/")}
        left = {name: array for name, array in left.items() if not head.match(name)}
    assert isinstance(model.module, ViT)
    kinds = "missing", "surplus", "of another shape", "of another type", "not finite"
    flat, faults = {}, {kind: [] for kind in kinds}
    for path, leaf in shapes.items():
        zeros = np.broadcast_to(np.float32(0), leaf.shape)
        wanted = layouts.to_file(path, zeros, file.family, model.module)
        found = {name: left.pop(name) for name in wanted if name in left}
        faults["missing"] += [name for name in wanted if name not in found]
        for name, array in found.items():
            if array.shape != wanted[name].shape:
                sizes = f"{list(array.shape)} for {list(wanted[name].shape)}"
                faults["of another shape"].append(f"{file.given[name]} {sizes}")
            elif array.dtype.name not in DTYPES:
                wanted_types = f"{array.dtype} for {', '.join(DTYPES)}"
                faults["of another type"].append(f"{file.given[name]} {wanted_types}")
            elif not np.isfinite(array).all():
                faults["not finite"].append(file.given[name])
        if not any(faults.values()):
            whole = layouts.from_file(list(found.values()), leaf.shape, file.family)
            flat[path] = whole.astype(np.float32) if whole.dtype.itemsize < 4 else whole
    faults["surplus"] = [file.given[name] for name in left]
    if any(faults.values()):
        listed = "; ".join(f"{kind}: {', '.join(names)}" for kind, names in faults.items() if names)
        if any(head.match(name) for name in faults["missing"] + list(left)):
            listed += " (a `num_classes` that the file has not gives a new head)"
        raise file.error(f"hold {model.name} by the names of {file.family.title}, got {listed}")
    return flat


def _configuration(model: Model) -> dict[str, Any]:
    module = model.module
    dim, depth, heads = module.variant
    height, width, channels = model.image_shape
    labels = {str(i): f"LABEL_{i}" for i in range(model.num_classes)}
    return {
        "architectures": ["ViTForImageClassification"],
        "model_type": "vit",
        "hidden_size": dim,
        "num_hidden_layers": depth,
        "num_attention_heads": heads,
        "intermediate_size": 4 * dim,
        "hidden_act": "gelu" if module.gelu == "exact" else "gelu_pytorch_tanh",
        "layer_norm_eps": module.epsilon,
        "image_size": height if height == width else [height, width],
        "patch_size": module.patch,
        "num_channels": channels,
        "id2label": labels,
        "label2id": {label: int(i) for i, label in labels.items()},
    }
