"""ResNet-18 with batch normalisation from weight files in torchvision's layout, as are timm's.

Its images must be scaled as the file's were: by ImageNet's mean and deviation for torchvision's
own, which `dataclasses.replace(model, view=...)` makes of the library's [-1, 1].
"""

import re
from pathlib import Path
from typing import Any

import flax.traverse_util as tree
import jax
import jax.numpy as jnp
import numpy as np

from famr_jax.models import Model, create
from famr_jax.models.batchnorm import Latest
from famr_jax.models.layouts import inputs_first
from famr_jax.models.weightfile import arrays_of

NAMES = {
    "conv": "conv1",
    "norm": "bn1",
    "head": "fc",
    "conv_1": "conv1",
    "norm_1": "bn1",
    "conv_2": "conv2",
    "norm_2": "bn2",
    "conv_shortcut": "downsample.0",
    "norm_shortcut": "downsample.1",
    "kernel": "weight",
    "scale": "weight",
    "bias": "bias",
    "mean": "running_mean",
    "var": "running_var",
}
"""What torchvision calls our layers and arrays; its stages are of two of our blocks each."""


def load(
    source: Path | str,
    *,
    num_classes: int | None = None,
    image_shape: tuple[int, int, int] | None = None,
) -> tuple[Model, Latest]:
    """Loads `resnet18_batchnorm`, its weights and its running statistics.

    `model.batch_norm.fold(latest)` are the params of `model.apply`, whose logits are those of
    PyTorch in evaluation mode; `train.run(model, ..., start=latest)` trains on from the file.

    Args:
        source: A `.safetensors` or `.npz` file of the state dict, a directory, or `hf:owner/name`.
        num_classes: None keeps the file's head; another number than its gets a head of zeros.
        image_shape: `(height, width, channels)`; None for sides of 224, or of 32 where the first
            convolution is 3x3, as for CIFAR.

    Raises:
        ValueError: No such file; arrays that are missing, surplus, of another shape or type or not
            finite, all of them listed.
    """
    arrays, _ = arrays_of(source)
    left = {name: a for name, a in arrays.items() if not name.endswith("num_batches_tracked")}
    stem, bias = left.get("conv1.weight"), left.get("fc.bias")
    if stem is None or stem.ndim != 4:
        got = ", ".join(sorted(arrays)[:5]) or "no array"
        raise ValueError(f"`source` {source} must hold a ResNet-18 as torchvision's, got {got}.")
    side = 224 if stem.shape[2] == 7 else 32
    classes = None if bias is None else bias.size
    model = create(
        "resnet18_batchnorm",
        num_classes=num_classes or classes or 2,
        image_shape=image_shape or (side, side, stem.shape[1]),
    )
    fresh = num_classes not in (None, classes)
    if fresh:
        left = {name: a for name, a in left.items() if not name.startswith("fc.")}
    norm = model.batch_norm
    assert norm is not None
    like = jax.eval_shape(norm.init, jax.random.key(0))
    faults, parts = [], []
    for part in like:
        flat: dict[str, Any] = {}
        shapes: dict[str, Any] = tree.flatten_dict(part, sep="/")
        for path, leaf in shapes.items():
            if fresh and path.startswith("head/"):
                flat[path] = jnp.zeros(leaf.shape)
                continue
            found = left.pop(name := name_of(path), None)
            if found is None:
                faults.append(f"{name} missing")
            elif (turned := inputs_first(found)).shape != leaf.shape:
                faults.append(f"{name} of another shape, {list(found.shape)}")
            elif not jnp.issubdtype(found.dtype, jnp.floating):
                faults.append(f"{name} of another type, {found.dtype}")
            elif not np.isfinite(found).all():
                faults.append(f"{name} not finite")
            else:
                flat[path] = jnp.asarray(turned, np.float32)
        parts.append(flat)
    faults += [f"{name} surplus" for name in left]
    if faults:
        listed = "; ".join(faults)
        raise ValueError(f"`source` {source} must hold a ResNet-18 as torchvision's, got {listed}.")
    weights, statistics = (tree.unflatten_dict(flat, sep="/") for flat in parts)
    return model, (weights, statistics)


def name_of(path: str) -> str:
    """What torchvision calls one of our arrays, such as `block_3/norm_1/mean`."""
    *above, module, leaf = path.split("/")
    name = f"{NAMES[module]}.{NAMES[leaf]}"
    if above and (block := re.fullmatch(r"block_(\d)", above[0])):
        stage, second = divmod(int(block[1]), 2)
        name = f"layer{stage + 1}.{second}.{name}"
    return name
