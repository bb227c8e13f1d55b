"""What the experiments on Boltzmann machines share: binary data, training in one program, rows."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from famr_jax import data, loop, rbm
from famr_jax.cli.bench import Bench
from famr_jax.rbm import Boltzmann, ContrastiveDivergence
from famr_jax.types import ApplyFn, Batch

SOURCES = ("famr_jax.rbm.learning", "famr_jax.loop")
MEASURES = ("score", "covariance", "aats", "log_likelihood")
"""The columns that verdicts read; of the first and the last, more is better."""


def binary(flags: Any, dataset: data.Dataset) -> data.Dataset:
    """The data set with pixels of 0 or 255, above or below half of full brightness.

    With `flags.examples` only so many of the first training images.
    """

    def made(split, most=None):
        x = np.where(split.x[:most] > 127, 255, 0).astype(np.uint8)
        return data.Split(x, split.labels[:most])

    parts = made(dataset.train, getattr(flags, "examples", None)), made(dataset.test)
    return data.Dataset(
        dataset.name, *parts, class_names=dataset.class_names, mirrored=dataset.mirrored
    )


def flat(images: Batch) -> Batch:
    """Binary images as a machine sees them: rows of zeros and ones."""
    return rbm.binarise(images)


def start(key: jax.Array, train: Batch, size: int, members: int) -> Boltzmann:
    """As many fresh machines of some hidden units, stacked."""
    means = jnp.mean(train.x, axis=0)
    one = partial(rbm.init, num_visible=train.x.shape[1], num_hidden=size, means=means)
    return jax.vmap(one)(jax.random.split(key, members))


def trained(
    bench: Bench,
    name: str,
    flags: Any,
    params: Boltzmann,
    train: Batch,
    masks: jax.Array,
    keys: jax.Array,
    *,
    config: dict[str, Any],
) -> Boltzmann:
    """Machines trained from `params` under their masks, all in one program, kept in the store.

    Args:
        bench: Holds the store.
        name: For progress, seconds and the store.
        flags: With `optimizer`, `gibbs_steps`, `chains`, `epochs` and `rbm_batch_size`.
        params: Where each member starts, with the member axis.
        train: Binary examples.
        masks: Connections of each member, `[members, num_visible, num_hidden]`.
        keys: A key for each member.
        config: What determines `params` and `masks`, for the store.
    """
    learner = ContrastiveDivergence(flags.optimizer, flags.gibbs_steps, mask=masks)
    made = partial(rbm.begin, learner, params, keys, num_chains=flags.chains, swept=True)
    known = config | {"data": bench.dataset.fingerprint, "seed": bench.flags.seed}
    known |= {n: getattr(flags, n) for n in ("lr", "gibbs_steps", "chains", "rbm_batch_size")}

    def advance(state, begun):
        return loop.run_epochs(
            learner,
            state,
            train,
            size=len(train),
            epochs=flags.epochs,
            batch_size=flags.rbm_batch_size,
            key=made()[1],
            start=begun,
            swept=True,
        )

    fitted = bench.store.fit(
        name, known, lambda: made()[0], advance, epochs=flags.epochs, sources=SOURCES
    )
    return Boltzmann(*jax.tree.leaves(fitted.params))


def stacked(members: list[Boltzmann]) -> Boltzmann:
    """Machines along a member axis."""
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *members)


@partial(jax.jit, static_argnames=("num_samples", "num_steps"))
def drawn(params: Boltzmann, key: jax.Array, *, num_samples: int, num_steps: int) -> jax.Array:
    """Samples of each machine, `[members, num_samples, num_visible]`."""
    one = partial(rbm.sample, num_samples=num_samples, num_steps=num_steps)
    return jax.vmap(one)(params, jax.random.split(key, len(params.visible)))


@partial(jax.jit, static_argnames=("num_chains", "num_steps"))
def partitions(
    params: Boltzmann, key: jax.Array, base: jax.Array, *, num_chains: int, num_steps: int
) -> rbm.Estimate:
    """log Z of each machine: exact where that is cheap, else by annealed importance sampling."""
    if params.hidden.shape[-1] <= rbm.likelihood.MOST_EXACT:
        exact = jax.lax.map(rbm.log_partition, params)
        return rbm.Estimate(exact, exact, exact, jnp.full_like(exact, jnp.inf))
    one = partial(rbm.ais, base=base, num_chains=num_chains, num_steps=num_steps)
    return jax.vmap(one)(params, jax.random.split(key, len(params.visible)))


def of_samples(
    apply_fn: ApplyFn, classifier: Any, samples: jax.Array, test: Batch, shape: tuple[int, ...]
) -> dict[str, float]:
    """The measures of samples: what a classifier makes of them, moments, nearest neighbours.

    Args:
        apply_fn: The auxiliary classifier, trained on real images.
        classifier: Its weights.
        samples: Zeros and ones, `[n, num_visible]`.
        test: Binary test examples; as many of both are compared as neighbours.
        shape: Of the images that the classifier sees.
    """
    return {k: float(v) for k, v in _of_samples(apply_fn, classifier, samples, test, shape).items()}


@partial(jax.jit, static_argnames=("apply_fn", "shape"))
def _of_samples(apply_fn, classifier, samples, test, shape):
    images = (2 * samples - 1).reshape(-1, *shape)
    logits = apply_fn(classifier, images)
    score, moments = rbm.classifier_score(logits), rbm.moment_errors(samples, test.x)
    num = min(len(samples), len(test))
    near = rbm.adversarial_accuracy(samples[:num], test.x[:num])
    return {
        "score": score.score,
        "confidence": score.confidence,
        "coverage": score.coverage,
        "covariance": moments.second,
        "aats": near.score,
    }
