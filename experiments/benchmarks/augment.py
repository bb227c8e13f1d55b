"""What does each augmentation cost an image, one image after another or all of a batch at once?

    OMP_NUM_THREADS=1 python -m experiments.benchmarks.augment

Almost all of the time is compiling. `at once` is the augmentation under `vmap` over one key, where
every image pays for every operation, as on an accelerator.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmarks.timing import interleave, milliseconds, process_milliseconds, write
from famr_jax import data
from famr_jax.cli.flags import Count, check
from famr_jax.cli.run import main
from famr_jax.store import Clock, console

ALL = (
    data.crop,
    data.crop_and_flip,
    data.random_erasing,
    data.trivial_augment,
    data.rand_augment,
    data.augmix,
)


@dataclass(frozen=True)
class Flags:
    """Settings of the benchmark."""

    size: Count = 32
    """Side of the images."""
    batch: Count = 64
    """Images a call."""
    repeats: Count = 7
    """Rounds; the best and the median are kept."""
    out: Path = Path(__file__).parents[1] / "results" / "benchmark-augment.json"
    """The JSON."""


def run(flags: Flags) -> dict:
    """Times every augmentation and writes the JSON."""
    check(flags)
    clock, key = Clock(), jax.random.key(0)
    levels = np.random.default_rng(0).integers(0, 256, (flags.batch, flags.size, flags.size, 3))
    x = jnp.asarray(levels / 127.5 - 1, jnp.float32)
    runners = {each.__name__: _runner(each, key, x) for each in ALL}
    at_once = jax.vmap(data.trivial_augment)
    runners["trivial_augment at once"] = _runner(at_once, key[None], x[None])
    for name, runner in runners.items():
        clock.time(name, runner)
    clocks = {"wall_ms": milliseconds, "process_ms": process_milliseconds}
    taken = clock.time("timing", lambda: interleave(runners, flags.repeats, clocks))
    for name, each in taken.items():
        console.print(
            f"{name}: {1e3 * each['process_ms']['best']:.1f} us of processor time an image"
        )
    return write(
        "augment",
        flags,
        {"per_image": taken},
        seconds=clock.seconds(),
        environment={},
        versions={},
        path=flags.out,
    )


def _runner(augment: Callable, key: jax.Array, x: jax.Array) -> Callable[[], int]:
    compiled = jax.jit(augment)

    def runner():
        jax.block_until_ready(compiled(key, x))
        return x.shape[-4]

    return runner


if __name__ == "__main__":
    main(Flags, run, description=__doc__)
