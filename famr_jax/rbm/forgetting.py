"""Forgetting in a Boltzmann machine: ascent on the free-energy gap, held by an anchor."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array

from famr_jax.losses import l2_anchor
from famr_jax.rbm.machine import Boltzmann, cut, free_energy, gibbs, hidden_given, sample
from famr_jax.types import check_count, check_number, pytree, static
from famr_jax.unlearn import Descent, descend


class Prepared(NamedTuple):
    """What is computed once of the trained machine.

    Attributes:
        chains: Its samples, from which those of every step start, `[num_chains, num_visible]`.
        mask: 1 at every connection that is not cut.
        fisher: The diagonal of its Fisher information, or None for a plain anchor.
    """

    chains: Array
    mask: Array
    fisher: Boltzmann | None


@pytree
class AnchoredGap:
    """The objective of `forget_gap`, which says what its fields mean."""

    lam: float = 1.0
    num_steps: int = static(default=5)

    def __call__(self, params, context, pair, key):
        chains, mask, fisher = context.prepared
        machine = cut(params, mask)
        samples = gibbs(jax.lax.stop_gradient(machine), chains, key, num_steps=self.num_steps)
        gap = jnp.mean(free_energy(machine, pair.forget.x)) - jnp.mean(
            free_energy(machine, samples)
        )
        if fisher is None:
            distance = l2_anchor(params, context.anchor)
        else:
            squares = jax.tree.map(
                lambda f, new, old: jnp.sum(f * (new - old) ** 2), fisher, params, context.anchor
            )
            distance = sum(jax.tree.leaves(squares)) / 2
        return self.lam * distance - gap, {"gap": gap, "anchor": distance}


def forget_gap(
    *,
    lam: float = 1.0,
    fisher: bool = False,
    num_steps: int = 5,
    num_chains: int = 200,
    burn_in: int = 500,
    optimizer: optax.GradientTransformation,
) -> Descent:
    """Makes a forget set improbable: raises its free energy above that of the machine's samples.

        J(params) = -(mean_F F(v) - mean_u F(u)) + lam/2 sum_i f_i (params_i - anchor_i)^2

    The u are samples of the current machine, held constant: the gradient of the gap is that of the
    mean negative log-likelihood of the forget set. Free energies grow at most linearly in the
    weights, so that any lam > 0 bounds J. Sees the forget set and the machine alone.

    Args:
        lam: Strength of the anchor, >= 0; 0 is ascent that nothing holds back.
        fisher: Whether f is the diagonal Fisher information of the trained machine; else it is 1.
        num_steps: Gibbs steps at every update, from samples of the trained machine.
        num_chains: Samples.
        burn_in: Gibbs steps that draw them before the first update.
        optimizer: Any optax transformation.

    Raises:
        ValueError: `lam` negative or not finite; a count below one.

    Source: ours for a Boltzmann machine; the Fisher anchor as in Selective Amnesia (arXiv
        2305.10120), which forgets in other generative models and replays what is kept.
    """
    check_number("lam", lam, least=0)
    for name, count in (("num_steps", num_steps), ("num_chains", num_chains), ("burn_in", burn_in)):
        check_count(name, count)
    prepare = Prepare(fisher, num_chains, burn_in)
    return descend(AnchoredGap(lam, num_steps), optimizer, prepare=prepare)


@pytree
class Prepare:
    """What `forget_gap` does before the first step; its fields are those of that function."""

    fisher: bool = static()
    num_chains: int = static()
    burn_in: int = static()

    def __call__(self, params: Boltzmann, forget: Any, retain: Any, key: Array) -> Prepared:
        del forget, retain
        chains = sample(params, key, num_samples=self.num_chains, num_steps=self.burn_in)
        mask = (params.weights != 0).astype(params.weights.dtype)
        return Prepared(chains, mask, fisher_diagonal(params, chains) if self.fisher else None)


def fisher_diagonal(params: Boltzmann, samples: Array) -> Boltzmann:
    """The diagonal of the Fisher information of a machine, by its own samples.

        f_i = Var_{v ~ p} dF(v)/dparams_i

    with dF/dW_ij = -v_i p(h_j = 1 | v), dF/db_i = -v_i, dF/dc_j = -p(h_j = 1 | v).
    """
    h = hidden_given(params, samples)
    squares = (samples**2).T @ h**2 / len(samples)
    means = samples.T @ h / len(samples)
    return Boltzmann(squares - means**2, jnp.var(samples, axis=0), jnp.var(h, axis=0))
