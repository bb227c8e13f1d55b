"""Is our Boltzmann machine trained as well as scikit-learn's BernoulliRBM, and faster?

    python -m experiments.benchmarks.rbm

Equal settings: persistent contrastive divergence of one step, as many chains as examples in a
batch, constant step, the same binary digits, as many as all batches divide: in a smaller last batch
scikit-learn weighs the chains' term too much, by their number over that of its examples. The
likelihoods are exact, of the training images; times are of one epoch, in turns, ours without its
compilation. On two shared CPU cores:

    batch  10  log-likelihood -20.31 and -20.85, difference +0.54 (-0.53 to +1.61), n 5
    batch 100  log-likelihood -25.11 and -25.12, difference +0.00 (-0.01 to +0.01), n 5
    batch  10   16 hidden  ours   12.4 ms  scikit-learn   14.5 ms  1.2x (1.1x in processor time)
    batch 100   16 hidden  ours    5.0 ms  scikit-learn    3.5 ms  0.7x (0.7x in processor time)
    batch  10   64 hidden  ours    8.9 ms  scikit-learn   12.6 ms  1.4x (1.3x in processor time)
    batch 100   64 hidden  ours    5.4 ms  scikit-learn    3.9 ms  0.7x (0.7x in processor time)
    batch  10  256 hidden  ours   22.2 ms  scikit-learn   21.7 ms  1.0x (1.0x in processor time)
    batch 100  256 hidden  ours   11.8 ms  scikit-learn   11.9 ms  1.0x (0.9x in processor time)

The likelihoods agree; the goal of being faster is met for small batches alone.
"""

import math
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmarks.ranges import Some
from experiments.benchmarks.timing import interleave, only_cpu, write
from famr_jax import data, rbm, statistics
from famr_jax.cli.flags import Count, Positive, Within, check, make_optimizer
from famr_jax.cli.run import main
from famr_jax.rbm import Boltzmann, ContrastiveDivergence
from famr_jax.rbm.likelihood import MOST_EXACT
from famr_jax.types import Batch


@dataclass(frozen=True)
class Flags:
    """Settings of the benchmark."""

    batch_sizes: Annotated[tuple[Count, ...], Some()] = (10, 100)
    """Examples an update, and chains; scikit-learn's default is 10."""
    sizes: Annotated[tuple[Count, ...], Some()] = (16, 64, 256)
    """Hidden units to time."""
    hidden: Annotated[int, Within(1, MOST_EXACT + 1)] = 16
    """Hidden units of the machines whose likelihoods are compared."""
    lr: Positive = 0.05
    """Step."""
    epochs: Count = 30
    """Epochs of the machines whose likelihoods are compared."""
    seeds: Count = 5
    """How many of them."""
    timed_epochs: Count = 5
    """Epochs a timed run."""
    repeats: Count = 7
    """Interleaved rounds; best and median are over them."""
    data_dir: Path | None = None
    """Where TFDS keeps its data sets; its own default if not given."""
    out: Path = Path("experiments/results/benchmark-rbm.json")
    """The JSON to write."""


SMALL = Flags(batch_sizes=(50,), sizes=(4,), hidden=4, epochs=3, seeds=3, timed_epochs=1, repeats=1)


def run(flags: Flags) -> None:
    """Compares likelihoods, times both in turns, writes the JSON."""
    started = time.perf_counter()
    check(flags)
    only_cpu()
    train = rbm.binarise(data.load("digits", data_dir=flags.data_dir).train.batch())
    whole = math.lcm(*flags.batch_sizes)
    if whole > len(train):
        rule = f"must divide one number of at most {len(train)}, the images"
        raise ValueError(f"`batch_sizes` {rule}, got {' '.join(map(str, flags.batch_sizes))}.")
    train = train[: len(train) // whole * whole]
    results = {
        "num_train": len(train),
        "likelihood": {str(size): likelihoods(flags, train, size) for size in flags.batch_sizes},
        "times": [
            timed(flags, train, hidden, size)
            for hidden in flags.sizes
            for size in flags.batch_sizes
        ],
    }
    compiling = sum(row["first_call_seconds"] for row in results["times"])
    content = write(
        "rbm",
        flags,
        results,
        seconds={"run": time.perf_counter() - started - compiling, "compile": compiling},
        environment={},
        versions={},
        path=flags.out,
    )
    print("\n".join(headline(content["results"])))


def ours(flags: Flags, train: Batch, hidden: int, size: int, seed: int, epochs: int) -> Boltzmann:
    """A machine trained by us, from visible biases of 0, as scikit-learn begins."""
    init_key, train_key = jax.random.split(jax.random.key(seed))
    start = rbm.init(init_key, num_visible=train.x.shape[1], num_hidden=hidden)
    learner = ContrastiveDivergence(make_optimizer("sgd", flags.lr), 1)
    done = rbm.fit(
        learner,
        start,
        train,
        epochs=epochs,
        batch_size=size,
        key=train_key,
        num_chains=size,
    )
    return jax.block_until_ready(done.params)


def theirs(flags: Flags, x: np.ndarray, hidden: int, size: int, seed: int, epochs: int) -> Any:
    """A machine trained by scikit-learn."""
    from sklearn.neural_network import BernoulliRBM

    return BernoulliRBM(
        n_components=hidden,
        learning_rate=flags.lr,
        batch_size=size,
        n_iter=epochs,
        random_state=seed,
    ).fit(x)


def likelihoods(flags: Flags, train: Batch, size: int) -> dict[str, Any]:
    """Mean exact log-likelihood of the training images by seed, of both, and the difference."""
    x, found = np.asarray(train.x), {"ours": [], "scikit-learn": []}
    for seed in range(flags.seeds):
        mine = ours(flags, train, flags.hidden, size, seed, flags.epochs)
        other = theirs(flags, x, flags.hidden, size, seed, flags.epochs)
        leaves = (other.components_.T, other.intercept_visible_, other.intercept_hidden_)
        other = Boltzmann(*(jnp.asarray(leaf, jnp.float32) for leaf in leaves))
        for name, params in (("ours", mine), ("scikit-learn", other)):
            value = rbm.log_likelihood(params, train.x, rbm.log_partition(params))
            found[name].append(float(jnp.mean(value)))
    pixels = rbm.init(jax.random.key(0), num_visible=x.shape[1], num_hidden=1, means=x.mean(0))
    pixels = pixels._replace(weights=0 * pixels.weights)
    floor = rbm.log_likelihood(pixels, train.x, rbm.log_partition(pixels))
    return {name: statistics.spread(values) for name, values in found.items()} | {
        "difference": statistics.difference(found["scikit-learn"], found["ours"]),
        "independent_pixels": float(jnp.mean(floor)),
    }


def timed(flags: Flags, train: Batch, hidden: int, size: int) -> dict[str, Any]:
    """Milliseconds an epoch of both, in turns, and what the first call of ours takes."""
    x, epochs = np.asarray(train.x), flags.timed_epochs
    begun = time.perf_counter()
    ours(flags, train, hidden, size, 0, epochs)
    cold = time.perf_counter() - begun

    def epochs_of(train_one):
        train_one(hidden, size, 0, epochs)
        return epochs

    runners = {
        "ours": partial(epochs_of, partial(ours, flags, train)),
        "scikit-learn": partial(epochs_of, partial(theirs, flags, x)),
    }
    times = interleave(runners, flags.repeats)
    return {
        "hidden": hidden,
        "batch_size": size,
        "first_call_seconds": cold,
        "ratio": {
            clock: times["scikit-learn"][clock]["best"] / times["ours"][clock]["best"]
            for clock in ("wall_ms", "process_ms")
        },
        "times": times,
    }


def headline(results: dict[str, Any]) -> list[str]:
    """A line for each comparison of likelihoods, and one for each of times."""
    lines = []
    for size, found in results["likelihood"].items():
        low, high = found["difference"]["interval"]
        lines.append(
            f"batch {size:>3}  log-likelihood {found['ours']['mean']:.2f} and "
            f"{found['scikit-learn']['mean']:.2f}, difference {found['difference']['mean']:+.2f} "
            f"({low:+.2f} to {high:+.2f}), n {found['ours']['n']}"
        )
    for row in results["times"]:
        mine, other = (row["times"][n]["wall_ms"]["best"] for n in ("ours", "scikit-learn"))
        lines.append(
            f"batch {row['batch_size']:>3}  {row['hidden']:>3} hidden  ours {mine:6.1f} ms  "
            f"scikit-learn {other:6.1f} ms  {row['ratio']['wall_ms']:.1f}x "
            f"({row['ratio']['process_ms']:.1f}x in processor time)"
        )
    return lines


if __name__ == "__main__":
    main(Flags, run, description=__doc__)
