"""Many devices: a mesh by name, minibatches spread over it, and weights split over it.

Everything runs under plain `jit`: whoever enters `jax.set_mesh(mesh.parse("data=4"))` has every
minibatch of training, unlearning, evaluation and curvature spread over the devices of the axis
"data", and gradients summed over them by XLA. Weights placed by `split` are spread over "model".
"""

import math
import re
from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

AXES = ("data", "model")


def parse(text: str) -> Mesh:
    """The mesh that "data=4" or "data=2,model=2" names, over the first devices of all processes.

    Raises:
        ValueError: Another form, an unknown axis or one named twice, or too few devices.
    """
    parts = [re.fullmatch(r"(\w+)=([1-9]\d*)", part.strip()) for part in text.split(",")]
    names = [part[1] for part in parts if part]
    if None in parts or not set(names) <= set(AXES) or len(set(names)) < len(names):
        raise ValueError(f"`mesh` must be like data=4 or data=2,model=2, got {text!r}.")
    sizes = [int(part[2]) for part in parts]
    count = math.prod(sizes)
    if count > jax.device_count():
        raise ValueError(f"`mesh` needs {count} devices, got {jax.device_count()}: {text!r}.")
    return jax.make_mesh(
        sizes, names, axis_types=(AxisType.Auto,) * len(names), devices=jax.devices()[:count]
    )


def spread(batch: Any) -> Any:
    """Spreads the examples of a minibatch over the axis "data" of the mesh in use, if any."""
    return _constrain(batch, "data") if "data" in _axes() else batch


def gather(tree: Any) -> Any:
    """Gives every device of the mesh in use, if any, the whole: every process may then read it."""
    return _constrain(tree) if _axes() else tree


def _axes():
    return jax.sharding.get_abstract_mesh().axis_names


def _constrain(tree, *axes):
    spec = PartitionSpec(*axes)
    return jax.tree.map(lambda leaf: jax.lax.with_sharding_constraint(leaf, spec), tree)


def split(params: Any) -> Any:
    """Places weights, or a whole training state, on the mesh in use, if any, by `layout`."""
    return jax.device_put(params, layout(params)) if _axes() else params


def layout(params: Any) -> Any:
    """Where each array of weights, or of a training state, belongs on the mesh in use.

    Matrices are split over "model" along the longer of their last two axes, which pairs each wide
    layer with the narrow one after it; what does not divide, and everything else, is replicated.
    """
    mesh = jax.sharding.get_mesh()
    size = dict(mesh.shape).get("model", 1)

    def placed(leaf):
        spec = [None] * leaf.ndim
        if leaf.ndim >= 2:
            axis = leaf.ndim - 1 if leaf.shape[-1] > leaf.shape[-2] else leaf.ndim - 2
            if size > 1 and leaf.shape[axis] % size == 0:
                spec[axis] = "model"
        return NamedSharding(mesh, PartitionSpec(*spec))

    return jax.tree.map(placed, params)
