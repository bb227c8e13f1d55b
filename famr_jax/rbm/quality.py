"""How good samples are: moments, nearest neighbours, and what a classifier makes of them."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array


class Moments(NamedTuple):
    """Mean absolute errors of the samples' moments.

    Attributes:
        first: Of the pixels' means.
        second: Of the covariances of different pixels.
    """

    first: Array
    second: Array


@jax.jit
def moment_errors(samples: Array, data: Array) -> Moments:
    """How far the means and covariances of samples are from those of data, on average.

    Args:
        samples: Zeros and ones, `[n, num_visible]`.
        data: Others, `[m, num_visible]`.
    """
    (mean, cov), (wanted, truth) = (
        (jnp.mean(v, axis=0), jnp.cov(v, rowvar=False, bias=True)) for v in (samples, data)
    )
    size = mean.shape[0]
    off = jnp.abs(cov - truth) * (1 - jnp.eye(size))
    return Moments(jnp.mean(jnp.abs(mean - wanted)), jnp.sum(off) / (size * (size - 1)))


class Adversarial(NamedTuple):
    """Nearest-neighbour adversarial accuracy: 0.5 where samples and data cannot be told apart.

    Attributes:
        truth: Share of the data whose nearest other datum is nearer than any sample: towards 1
            the samples miss some of the data, towards 0 they copy them.
        synthetic: Share of the samples whose nearest other sample is nearer than any datum.
    """

    truth: Array
    synthetic: Array

    @property
    def score(self) -> Array:
        """AATS, the mean of both."""
        return (self.truth + self.synthetic) / 2


@jax.jit
def adversarial_accuracy(samples: Array, data: Array) -> Adversarial:
    """The nearest-neighbour adversarial accuracy of samples against as many data; ties count 1/2.

    Args:
        samples: Zeros and ones, `[n, num_visible]`.
        data: Others, `[n, num_visible]`; unequal numbers shift the score from 0.5.

    Source: Yale et al. (Neurocomputing 416, 2020), equation 1; the rule for ties is ours, since
        Hamming distances tie often.
    """
    across = _hamming(data, samples)
    nearest = jnp.min(across, axis=1), jnp.min(across, axis=0)
    own = (_nearest_other(v) for v in (data, samples))
    parts = [
        jnp.mean((other > mine) + (other == mine) / 2)
        for other, mine in zip(nearest, own, strict=True)
    ]
    return Adversarial(*parts)


def _hamming(v, u):
    return jnp.round(v @ (1 - u).T + (1 - v) @ u.T)


def _nearest_other(v):
    return jnp.min(_hamming(v, v) + jnp.where(jnp.eye(len(v)) > 0, jnp.inf, 0), axis=1)


class Score(NamedTuple):
    """What a classifier of real images makes of samples.

    Attributes:
        score: exp(mean KL(p(y|x) || p(y))), from 1 to the number of classes.
        confidence: Mean of the largest probability.
        coverage: exp(entropy of the mean prediction): how many classes the samples spread over.
    """

    score: Array
    confidence: Array
    coverage: Array


@jax.jit
def classifier_score(logits: Array) -> Score:
    """The auxiliary-classifier score of samples, which saturates where they look like any digit.

    Args:
        logits: Of the classifier on the samples, `[n, num_classes]`.

    Source: the form of the Inception score (arXiv 1606.03498); the authors' own is not known.
    """
    log_p = jax.nn.log_softmax(logits)
    p = jnp.exp(log_p)
    mean = jnp.mean(p, axis=0)
    inside = -jnp.mean(jnp.sum(p * log_p, axis=-1))
    across = -jnp.sum(jax.scipy.special.xlogy(mean, mean))
    return Score(jnp.exp(across - inside), jnp.mean(jnp.max(p, axis=-1)), jnp.exp(across))
