"""Boltzmann machines whose connections are cut before training, after it, and then trained again.

Claims (Diluting Restricted Boltzmann Machines, arXiv 2511.00648): 80 % of the connections can be
cut before training; cutting after training hurts, retraining does not repair it and is worse than
training sparse from scratch; quality falls sharply at a critical dilution. Trains machines of
several sizes on binary images, all masks and seeds of a size in one program, and measures samples
and likelihood against the test images; writes metrics.json and report.html.

    python -m experiments.rbm.diluted_rbm

Eighteen minutes on two busy CPU cores. Expect (share of the quality above independent pixels that
is left: classifier score, covariances, nearest neighbours, log-likelihood; then the dilution at
which half of the score is left after a cut, and the width over which it falls from 3/4 to 1/4):

    digits    8 hidden  80 % cut before training, left %: -1 -15 7 4
    digits    8 hidden  cut after, random     half at 0.14  width 0.17
    digits    8 hidden  cut after, magnitude  half at 0.64  width 0.20
    digits   16 hidden  80 % cut before training, left %: -1 -7 7 8
    digits   16 hidden  cut after, random     half at 0.14  width 0.28
    digits   16 hidden  cut after, magnitude  half at 0.60  width 0.21
    digits   32 hidden  80 % cut before training, left %: 6 1 7 18
    digits   32 hidden  cut after, random     half at 0.14  width 0.22
    digits   32 hidden  cut after, magnitude  half at 0.61  width 0.25
"""

from dataclasses import dataclass, field
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.harness.run import Experiment, main
from experiments.rbm import diluted_verdicts, machines
from experiments.rbm.diluted_page import headline, page
from famr_jax import rbm
from famr_jax.cli.bench import Bench
from famr_jax.cli.flags import Ascending, BenchFlags, Count, Positive, Within, make_optimizer
from famr_jax.files import discard

CUTS = ("random", "magnitude")


@dataclass(frozen=True)
class Flags:
    """Settings of a run; of the bench, the model is the auxiliary classifier."""

    sizes: Annotated[tuple[Count, ...], Ascending(1)] = (8, 16, 32)
    """Hidden units of the machines, ascending."""
    dilutions: Annotated[tuple[Annotated[float, Within(0, 1)], ...], Ascending(2)] = (
        *(0.0, 0.2, 0.4, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98),
    )
    """Shares of the connections that are cut; the first must be 0."""
    seeds: Count = 3
    """Machines of each kind; seeds are compared in pairs."""
    epochs: Count = 60
    """Passes over the data, in training and again in retraining."""
    lr: Positive = 0.1
    """Step, constant, by SGD."""
    gibbs_steps: Count = 3
    """Steps of the persistent chains between two updates."""
    chains: Count = 100
    """Persistent chains."""
    rbm_batch_size: Count = 100
    """Examples an update."""
    samples: Count = 400
    """Samples of each machine."""
    sample_steps: Count = 200
    """Gibbs steps from fair coins to each sample."""
    ais_chains: Count = 100
    """Chains of annealed importance sampling, for more than 20 hidden units."""
    ais_steps: Count = 400
    """Its temperatures."""
    examples: Count | None = None
    """Use the first so many training images only."""
    bench: BenchFlags = field(default_factory=lambda: BenchFlags(model="mlp_64", train_epochs=30))

    @property
    def optimizer(self) -> optax.GradientTransformation:
        """What trains the machines; the same object each time, as jit wants it."""
        return make_optimizer("sgd", self.lr)


SMALL = Flags(
    sizes=(2, 3),
    dilutions=(0.0, 0.8),
    seeds=2,
    epochs=2,
    gibbs_steps=1,
    chains=10,
    samples=20,
    sample_steps=3,
    ais_chains=4,
    ais_steps=3,
    examples=200,
    bench=BenchFlags(model="logistic", train_epochs=1, batch_size=64),
)
"""The configuration that the test suite runs."""


def check(flags: Flags) -> None:
    """Raises a `ValueError` unless the uncut machine is among them."""
    if flags.dilutions[0] != 0:
        raise ValueError(f"`dilutions` must begin with 0, got {flags.dilutions[0]}.")


def measure(flags: Flags, bench: Bench) -> dict[str, Any]:
    """References, and a row for each size, kind and dilution, with a value a seed."""
    classifier = bench.original("classifier").params
    train, test = machines.flat(bench.train), machines.flat(bench.test)
    rows, shown = [], {}
    for size in flags.sizes:
        for kind, members in _machines(flags, bench, train, size):
            found, samples = bench.clock.show(
                f"measure {size} {kind}",
                lambda members=members: _measured(flags, bench, classifier, members, train, test),
            )
            rows += [{"size": size, "kind": kind} | row for row in found]
            if size == flags.sizes[-1]:
                shown[kind] = samples
    _keep_samples(bench, shown)
    dataset = bench.dataset
    return {
        "dataset": {"name": dataset.name, "num_classes": dataset.num_classes},
        "model": {"name": bench.model.name},
        "num_visible": train.x.shape[1],
        "num_train": len(train),
        "num_test": len(test),
        "updates": flags.epochs * -(-len(train) // flags.rbm_batch_size),
        "references": _references(flags, bench, classifier, train, test),
        "rows": rows,
    }


def _machines(flags, bench, train, size):
    """Every kind of machine of a size: its name, and the members stacked by dilution, then seed."""
    init_key, mask_key, train_key = (
        jax.random.fold_in(jax.random.fold_in(bench.keys.train, size), i) for i in range(3)
    )
    count, dilutions = flags.seeds, np.repeat(flags.dilutions, flags.seeds)
    fresh = machines.start(init_key, train, size, count)
    mask_keys, train_keys, again_keys = (
        jax.random.split(jax.random.fold_in(mask_key, 0), count),
        jax.random.split(jax.random.fold_in(train_key, 0), count),
        jax.random.split(jax.random.fold_in(train_key, 1), count),
    )
    each = np.tile(np.arange(count), len(flags.dilutions))
    shape = fresh.weights.shape[1:]
    masks = jax.vmap(lambda key, d: rbm.random_mask(key, shape, d))(
        mask_keys[each], jnp.asarray(dilutions)
    )

    def train_on(kind, params, masks, keys):
        known = {"size": size, "kind": kind, "dilutions": flags.dilutions, "seeds": count}
        name = f"{size} {kind}"
        return machines.trained(
            bench, name, flags, params, train, masks, keys, config=known | {"epochs": flags.epochs}
        )

    begun = jax.tree.map(lambda leaf: leaf[each], fresh)
    sparse = train_on("sparse", begun, masks, train_keys[each])
    yield "sparse", sparse
    yield "sparse, twice", train_on("sparse, twice", sparse, masks, again_keys[each])
    dense = jax.tree.map(lambda leaf: leaf[each % count], sparse)  # the first rows are uncut
    for cut in CUTS:
        if cut == "magnitude":
            masks = jax.vmap(rbm.magnitude_mask)(dense.weights, jnp.asarray(dilutions))
        members = rbm.cut(dense, masks)
        yield f"cut, {cut}", members
        kind = f"retrained, {cut}"
        yield kind, train_on(kind, members, masks, again_keys[each])


def _measured(flags, bench, classifier, members, train, test):
    """A row a dilution, each measure a list over the seeds, and the samples of the first seed."""
    sample_key, ais_key, _ = jax.random.split(bench.keys.probes, 3)
    samples = machines.drawn(
        members, sample_key, num_samples=flags.samples, num_steps=flags.sample_steps
    )
    base = rbm.logit(jnp.mean(train.x, axis=0))
    z = machines.partitions(
        members, ais_key, base, num_chains=flags.ais_chains, num_steps=flags.ais_steps
    )
    couplings = jax.lax.map(lambda each: rbm.effective_couplings(each).couplings, members)
    likelihoods = jax.vmap(rbm.log_likelihood, in_axes=(0, None, 0))(members, test.x, z.log_z)
    pseudo = jax.lax.map(lambda each: jnp.mean(rbm.pseudo_likelihood(each, test.x)), members)
    rows, count = [], flags.seeds
    for i, dilution in enumerate(flags.dilutions):
        found = []
        for j in range(i * count, (i + 1) * count):
            row = machines.of_samples(
                bench.model.apply, classifier, samples[j], test, bench.dataset.image_shape
            )
            row["log_likelihood"] = float(likelihoods[j].mean())
            row["ais_error"] = float(z.high[j] - z.low[j]) / 2
            row["pseudo"] = float(pseudo[j])
            row["coupling"] = float(jnp.sqrt(jnp.mean(couplings[j] ** 2)))
            row["coupling_kept"] = _cosine(couplings[j], couplings[j % count])
            found.append(row)
        rows.append(
            {"dilution": dilution}
            | {n: [float(f"{row[n]:.5g}") for row in found] for n in found[0]}
        )
    return rows, np.asarray(samples[::count, :10], bool)


def _cosine(a, b):
    norms = jnp.linalg.norm(a) * jnp.linalg.norm(b)
    return float(jnp.vdot(a, b) / norms) if norms > 0 else 0.0


def _references(flags, bench, classifier, train, test):
    """Independent pixels, the floor; and training images in place of samples, the ceiling."""
    means = jnp.mean(train.x, axis=0)
    *_, key = jax.random.split(bench.keys.probes, 3)
    pixels = rbm.machine.bernoulli(key, jnp.tile(means, (flags.samples, 1)))
    size = train.x.shape[1]
    floor = rbm.Boltzmann(jnp.zeros((size, 1)), rbm.logit(means), jnp.zeros(1))
    found = {}
    for name, samples in (("independent", pixels), ("images", train.x[: flags.samples])):
        shape = bench.dataset.image_shape
        found[name] = machines.of_samples(bench.model.apply, classifier, samples, test, shape)
    likelihood = rbm.log_likelihood(floor, test.x, rbm.log_partition(floor))
    found["independent"]["log_likelihood"] = float(likelihood.mean())
    return found


def _keep_samples(bench, shown):
    bench.out.mkdir(parents=True, exist_ok=True)
    discard(bench.out / "samples.npz")
    np.savez_compressed(bench.out / "samples.npz", **shown)


def images(results: dict[str, Any], bench: Bench) -> dict[str, np.ndarray]:
    """Samples of the largest machines, first seed: `[dilutions, 10, height, width]` a kind."""
    del results
    height, width, _ = bench.dataset.image_shape
    with np.load(bench.out / "samples.npz") as file:
        return {kind: file[kind].reshape(-1, 10, height, width) for kind in file.files}


EXPERIMENT = Experiment(
    module="experiments.rbm.diluted_rbm",
    flags=Flags,
    small=SMALL,
    measure=measure,
    claims=diluted_verdicts.claims,
    page=page,
    headline=headline,
    check=check,
    change=machines.binary,
    images=images,
)

if __name__ == "__main__":
    main(EXPERIMENT)
