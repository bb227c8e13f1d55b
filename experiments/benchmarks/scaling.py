"""What does a device compute and communicate when devices, and images with them, become more?

    python -m experiments.benchmarks.scaling

Compiles the training step (once whole, once in micro-batches), the unlearning step and a
Hessian-vector product for meshes of 1 to 8 devices, at the same number of images for each row of
the axis "data", from shapes alone: nothing runs, and no device is needed but a CPU. FLOPs are those
of XLA's analysis of one device's program; bytes those of the results of its collectives on one
device, a loop's as often as it turns. A ring moves 2 (n - 1) / n of an all-reduce's bytes through
each of n devices. No time is measured, and no efficiency follows from these numbers alone.

24 minutes on a very busy machine; nothing of it depends on the load. Expect:

    vit_nano/4, 32 images of 32, 0.855 MB of weights
    data x model                 1         2         4         8     2 x 2     4 x 2
    train GFLOP              2.954     2.954     2.954     2.954     1.481     1.481
    train MB                 0.000     0.855     0.855     0.855    36.452    36.452
    train in 4 parts MB      0.000     3.421     3.421     3.421    37.759    33.565
    unlearn GFLOP            2.955     2.955     2.955     2.955     1.482     1.482
    unlearn MB               0.000     0.855     0.855     0.855    36.451    36.451
    HVP GFLOP                7.975     7.976     7.976     7.976     4.005     4.005
    HVP MB                   0.000     1.667     1.667     1.667    81.196    81.196

So over "data" a step sums one gradient, the bytes of the weights, whatever the number of devices;
in micro-batches it does so in each of them; a product sums nearly two. Over "model" XLA moves about
40 times as much as over "data" here, in narrow layers' activations: split over "model" only what
does not fit.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from experiments.benchmarks.collectives import traffic
from experiments.benchmarks.ranges import Some
from experiments.benchmarks.timing import write
from famr_jax import curvature, losses, mesh, models, train
from famr_jax.cli.flags import AtLeast, Count, check
from famr_jax.cli.run import main
from famr_jax.methods import famr
from famr_jax.store import console
from famr_jax.types import Batch, Pair

DEVICES = 8
MICRO_BATCHES = 4
TRAIN, PARTS, UNLEARN, HVP = PROGRAMS = (
    "train",
    f"train in {MICRO_BATCHES} parts",
    "unlearn",
    "HVP",
)
# The code that LLVM makes of the partitioned program is of no interest here.
QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}


@dataclass(frozen=True)
class Flags:
    """Settings of the benchmark."""

    model: str = "vit_nano/4"
    """As `models.create` names it."""
    image_size: Count = 32
    """Height and width of an image."""
    num_classes: Annotated[int, AtLeast(2)] = 100
    """Width of the logits."""
    batch_size: Count = 32
    """Images for each row of the axis "data"; a multiple of 4."""
    meshes: Annotated[tuple[str, ...], Some()] = (
        "data=1",
        "data=2",
        "data=4",
        "data=8",
        "data=2,model=2",
        "data=4,model=2",
    )
    """The first is what the ratios are to."""
    out: Path = Path("experiments/results/benchmark-scaling.json")
    """The JSON to write."""


SMALL = Flags(
    model="mlp_8",
    image_size=8,
    num_classes=3,
    batch_size=4,
    meshes=("data=1", "data=2", "data=4", "data=2,model=2"),
)


def run(flags: Flags) -> None:
    """Compiles every program for every mesh and writes the JSON."""
    started = time.perf_counter()
    check(flags)
    if flags.batch_size % MICRO_BATCHES:
        raise ValueError(
            f"`batch_size` must be a multiple of {MICRO_BATCHES}, got {flags.batch_size}."
        )
    grids = {name: mesh.parse(name) for name in flags.meshes}
    for name, grid in grids.items():
        if "data" not in grid.axis_names:
            raise ValueError(f"`meshes` must have the axis data, got {name!r}.")
    shape = (flags.image_size, flags.image_size, 3)
    model = models.create(flags.model, num_classes=flags.num_classes, image_shape=shape)
    shapes, found = jax.eval_shape(model.init, jax.random.key(0)), {}
    for name, grid in grids.items():
        with jax.set_mesh(grid):
            found[name] = measure(model, flags.batch_size)
        console.print(name, f"{time.perf_counter() - started:.0f} s", highlight=False)
    alone = found[flags.meshes[0]]
    results = {
        "num_params": sum(leaf.size for leaf in jax.tree.leaves(shapes)),
        "programs": {
            program: {name: ratios(each[program], alone[program]) for name, each in found.items()}
            for program in PROGRAMS
        },
    }
    content = write(
        "scaling",
        flags,
        results,
        seconds={"run": 0.0, "compile": time.perf_counter() - started},
        environment={},
        versions={},
        path=flags.out,
    )
    print("\n".join(headline(content)))


def measure(model: models.Model, batch_size: int) -> dict[str, dict[str, Any]]:
    """FLOPs and collectives of one device, by program, on the mesh in use."""
    found = {}
    for name, (function, args, result_like) in programs(model, batch_size).items():
        layouts = jax.tree.map(lambda leaf: leaf.sharding, result_like)
        out = layouts if name == HVP else (layouts, None)
        compiled = jax.jit(function, out_shardings=out).lower(*args).compile(QUICK)
        hlo = compiled.as_text()
        found[name] = {
            # XLA counts the body of a loop once.
            "flops": None if name == PARTS else compiled.cost_analysis()["flops"],
            "collectives": {kind: each._asdict() for kind, each in traffic(hlo).items()},
        }
    return found


def programs(model: models.Model, batch_size: int) -> dict[str, tuple[Callable, tuple, Any]]:
    """Each program with abstract arguments on the mesh in use, and what its result is placed as."""
    grid = jax.sharding.get_mesh()
    rows = batch_size * dict(grid.shape)["data"]

    def placed(tree, layouts):
        def place(leaf, at):
            return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=at)

        return jax.tree.map(place, tree, layouts)

    def shapes(function):
        tree = jax.eval_shape(function)
        return placed(tree, mesh.layout(tree))

    init = partial(model.init, jax.random.key(0))
    spread = NamedSharding(grid, PartitionSpec("data"))
    x = jax.ShapeDtypeStruct((rows, *model.image_shape), jnp.float32, sharding=spread)
    batch = Batch(x, jax.ShapeDtypeStruct((rows,), jnp.int32, sharding=spread))
    key = jax.eval_shape(lambda: jax.random.key(0))
    params, optimizer = shapes(init), train.adamw(num_steps=1000)
    whole = train.Supervised(model.apply, optimizer)
    parts = train.Supervised(model.apply, optimizer, accumulate=MICRO_BATCHES)
    unlearner = famr(model.apply)
    state = shapes(lambda: whole.init(init()))
    unlearning = shapes(lambda: unlearner.init(init(), None, None, None))

    def step(learner, state, sets, key):
        return learner.step(state, mesh.spread(sets), key)

    def forget_loss(params, batch):
        return losses.uniform_kl(model.apply(params, batch.x))

    def product(params, batch, v):
        return curvature.Hessian(forget_loss, params, batch)(v)

    return {
        TRAIN: (step, (whole, state, batch, key), state),
        PARTS: (step, (parts, state, batch, key), state),
        UNLEARN: (step, (unlearner, unlearning, Pair(batch, None), key), unlearning),
        HVP: (product, (params, batch, params), params),
    }


def ratios(found: Mapping[str, Any], alone: Mapping[str, Any]) -> dict[str, Any]:
    """A program's numbers with its bytes summed, and its FLOPs relative to those of one device."""
    bytes_ = sum(each["bytes"] for each in found["collectives"].values())
    if found["flops"] is None:
        return {"collectives": found["collectives"], "bytes": bytes_}
    return {**found, "bytes": bytes_, "flops_ratio": found["flops"] / alone["flops"]}


def headline(content: Mapping[str, Any]) -> list[str]:
    """FLOPs and bytes of one device: a line for each program, a column for each mesh."""
    results, flags = content["results"], content["config"]["flags"]
    size = f"{4 * results['num_params'] / 1e6:.3f} MB of weights"
    names = flags["meshes"]
    lines = [f"{flags['model']}, {flags['batch_size']} images of {flags['image_size']}, {size}"]
    columns = (name.replace("data=", "").replace(",model=", " x ") for name in names)
    lines.append(f"{'data x model':<20}" + "".join(f"{column:>10}" for column in columns))
    for program, found in results["programs"].items():
        for unit, value, scale in (("GFLOP", "flops", 1e9), ("MB", "bytes", 1e6)):
            if value in found[names[0]]:
                cells = "".join(f"{found[name][value] / scale:>10.3f}" for name in names)
                lines.append(f"{program + ' ' + unit:<20}{cells}")
    return [line.rstrip() for line in lines]


if __name__ == "__main__":
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", DEVICES)
    main(Flags, run, description=__doc__)
