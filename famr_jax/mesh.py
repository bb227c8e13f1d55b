"""Many devices: a mesh by name, minibatches spread over it, and weights split over it.

Everything runs under plain `jit`: whoever enters `jax.set_mesh(mesh.parse("data=4"))` has every
minibatch of training, unlearning, evaluation and curvature spread over the devices of the axis
"data", and gradients summed over them by XLA. Weights placed by `split` are spread over "model".

The devices may be those of several processes, `join`ed before anything is computed. All of them run
one program: each calls what the others call, in the same order, and the first alone writes files.
"""

import math
import os
import re
from typing import Any

import jax
import numpy as np
from jax.core import Tracer
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

AXES = ("data", "model")
PLACES = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
SECONDS_TO_JOIN, SECONDS_OF_SILENCE = 300, 60
"""How long processes wait for one another to start, and without a sign of life later on."""


def join() -> bool:
    """Joins the processes of one job, if the environment names them; whether there are several.

    JAX_COORDINATOR_ADDRESS is host:port of the first process, where a port must be free,
    JAX_NUM_PROCESSES their number, JAX_PROCESS_ID this one's, from 0. Where Slurm, Open MPI,
    Kubernetes or a TPU pod started them, JAX_NUM_PROCESSES suffices: JAX finds the others. To be
    called before anything is computed; processes that were joined already stay so.

    Raises:
        ValueError: A number that is none, or something that neither they nor a cluster tell.
    """
    if jax.distributed.is_initialized():
        return jax.process_count() > 1
    address, *numbers = (os.environ.get(name) or None for name in PLACES)
    for name, text in zip(PLACES[1:], numbers, strict=True):
        if text and not text.isdecimal():
            raise ValueError(f"`{name}` must be a whole number, got {text!r}.")
    if address is None and not any(numbers):
        return False
    count, index = (int(text) if text else None for text in numbers)
    if count is not None and index is not None and not index < count:
        raise ValueError(f"`{PLACES[2]}` must be below the {count} processes, got {index}.")
    jax.config.update("jax_enable_preemption_service", False)  # else SIGTERM ends nothing
    try:
        jax.distributed.initialize(
            address,
            count,
            index,
            initialization_timeout=SECONDS_TO_JOIN,
            heartbeat_timeout_seconds=SECONDS_OF_SILENCE,
        )
    except (ValueError, RuntimeError) as error:
        missing = [name for name in PLACES if not os.environ.get(name)]
        unset = f", {' and '.join(missing)} not set" if missing else ""
        raise ValueError(f"`{PLACES[0]}` must name the first process{unset}: {error}") from error
    return jax.process_count() > 1


def parse(text: str) -> Mesh:
    """The mesh that "data=4" or "data=2,model=2" names: the first devices, as many of each process.

    Raises:
        ValueError: Another form, an unknown axis or one named twice, too few devices, or a number
            of them that the processes do not divide.
    """
    parts = [re.fullmatch(r"(\w+)=([1-9]\d*)", part.strip()) for part in text.split(",")]
    names = [part[1] for part in parts if part]
    if None in parts or not set(names) <= set(AXES) or len(set(names)) < len(names):
        raise ValueError(f"`mesh` must be like data=4 or data=2,model=2, got {text!r}.")
    sizes = [int(part[2]) for part in parts if part]
    count = math.prod(sizes)
    if count > jax.device_count():
        raise ValueError(f"`mesh` needs {count} devices, got {jax.device_count()}: {text!r}.")
    processes = jax.process_count()
    if count % processes:  # a process without a device of the mesh can compute nothing
        raise ValueError(f"`mesh` must be a multiple of {processes} processes, got {text!r}.")
    devices = [
        device
        for process in range(processes)
        for device in jax.devices()
        if device.process_index == process
    ]
    return jax.make_mesh(
        sizes, names, axis_types=(AxisType.Auto,) * len(names), devices=devices[:count]
    )


def spread(batch: Any) -> Any:
    """Spreads the examples of a minibatch over the axis "data" of the mesh in use, if any."""
    return _constrain(batch, "data") if "data" in _axes() else batch


def gather(tree: Any) -> Any:
    """Gives every device of the mesh in use, if any, the whole: every process may then read it."""
    return _constrain(tree) if _axes() else tree


def fetch(tree: Any) -> Any:
    """The tree in host memory, whole, whatever devices hold it; all processes must call it.

    What the processes hold parts of, as weights that are split, can be read no other way.
    """

    def whole(leaf):
        away = isinstance(leaf, jax.Array) and not leaf.is_fully_addressable
        return multihost_utils.process_allgather(leaf, tiled=True) if away else leaf

    return jax.device_get(jax.tree.map(whole, tree))


def first(value: int) -> int:
    """What the first process says, such as an epoch that it found; all processes must call it.

    Clocks and file systems differ from host to host: what they decide is decided by one.
    """
    if jax.process_count() == 1:
        return value
    return type(value)(multihost_utils.broadcast_one_to_all(np.int32(value)))


def is_first() -> bool:
    """Whether this is the process that writes files and talks: the first, or the only one."""
    return jax.process_index() == 0


def _axes():
    return jax.sharding.get_abstract_mesh().axis_names


def _constrain(tree, *axes):
    spec = PartitionSpec(*axes)

    def placed(leaf):  # outside jit there is nothing to constrain, and an array stays where it is
        traced = isinstance(leaf, Tracer)
        return jax.lax.with_sharding_constraint(leaf, spec) if traced else leaf

    return jax.tree.map(placed, tree)


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
