"""Restricted Boltzmann machines: training, likelihood, samples, couplings, forgetting."""

from famr_jax.rbm import likelihood as likelihood
from famr_jax.rbm.couplings import Ising, effective_couplings
from famr_jax.rbm.forgetting import fisher_diagonal, forget_gap
from famr_jax.rbm.learning import ContrastiveDivergence, begin, fit
from famr_jax.rbm.likelihood import (
    Estimate,
    ais,
    log_likelihood,
    log_partition,
    pseudo_likelihood,
)
from famr_jax.rbm.machine import (
    Boltzmann,
    binarise,
    cut,
    free_energy,
    gibbs,
    init,
    logit,
    magnitude_mask,
    random_mask,
    sample,
)
from famr_jax.rbm.quality import adversarial_accuracy, classifier_score, moment_errors

__all__ = [
    "Boltzmann",
    "ContrastiveDivergence",
    "Estimate",
    "Ising",
    "adversarial_accuracy",
    "ais",
    "begin",
    "binarise",
    "classifier_score",
    "cut",
    "effective_couplings",
    "fisher_diagonal",
    "fit",
    "forget_gap",
    "free_energy",
    "gibbs",
    "init",
    "log_likelihood",
    "log_partition",
    "logit",
    "magnitude_mask",
    "moment_errors",
    "pseudo_likelihood",
    "random_mask",
    "sample",
]
