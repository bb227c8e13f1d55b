"""Contrastive divergence, persistent or not: a learner for the epoch loop of `famr_jax.loop`."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from jax.core import Tracer

from famr_jax import loop
from famr_jax.rbm.machine import Boltzmann, bernoulli, cut, free_energy, gibbs
from famr_jax.train import Trained
from famr_jax.types import Batch, check_count, check_key, pytree, static


class ChainState(NamedTuple):
    """What the next step needs.

    Attributes:
        params: The machine, its cut connections at 0.
        opt_state: The optimizer's.
        chains: Visible states of the persistent chains, `[num_chains, num_visible]`; None where
            every step starts its chains at its minibatch.
    """

    params: Boltzmann
    opt_state: Any
    chains: Array | None


@pytree
class ContrastiveDivergence:
    """A learner that raises the likelihood by the gap between free energies of data and samples.

        loss = mean_data F(v) - mean_chains F(u),    u held constant (stop_gradient)

    Its gradient is that of the mean negative log-likelihood but for the samples' error.

    Attributes:
        optimizer: An optax transformation; it never moves a connection that is cut.
        num_steps: k, steps of Gibbs sampling between two updates.
        persistent: Whether chains go on from update to update (PCD-k) or start at the data (CD-k).
        mask: Connections that there are, `[num_visible, num_hidden]`, 0 or 1; None for all.

    Source: CD, Hinton (2002), doi 10.1162/089976602760128018; PCD, Tieleman (ICML 2008).
    """

    optimizer: optax.GradientTransformation = static()
    num_steps: int = static(default=1)
    persistent: bool = static(default=True)
    mask: Array | None = None

    def init(self, params: Boltzmann, key: Array, *, num_chains: int = 100) -> ChainState:
        """The state before the first step: connections cut, chains at fair coins."""
        check_count("num_steps", self.num_steps)
        check_count("num_chains", num_chains)
        params = jax.tree.map(jnp.copy, cut(params, self.mask))
        chains = None
        if self.persistent:
            half = jnp.full((num_chains, params.visible.shape[0]), 0.5, params.weights.dtype)
            chains = bernoulli(key, half)
        return ChainState(params, self.optimizer.init(params), chains)

    def step(
        self, state: ChainState, batch: Batch, key: Array
    ) -> tuple[ChainState, dict[str, Array]]:
        start = batch.x if state.chains is None else state.chains
        samples = gibbs(state.params, start, key, num_steps=self.num_steps)

        def objective(params):
            machine = cut(params, self.mask)
            held = jax.lax.stop_gradient(samples)
            return jnp.mean(free_energy(machine, batch.x)) - jnp.mean(free_energy(machine, held))

        loss, grads = jax.value_and_grad(objective)(state.params)
        updates, opt_state = self.optimizer.update(grads, state.opt_state, state.params)
        params: Any = optax.apply_updates(state.params, updates)
        chains = samples if self.persistent else None
        return ChainState(params, opt_state, chains), {"loss": loss}


def fit(
    learner: ContrastiveDivergence,
    params: Boltzmann,
    train: Batch,
    *,
    epochs: int,
    batch_size: int,
    key: Array,
    num_chains: int = 100,
    swept: bool = False,
) -> Trained:
    """Trains a machine from given weights, or as many as there are keys, with fresh chains.

    Members run as one `vmap`ped program: a grid of masks and seeds is one call with `swept`.

    Args:
        learner: How to train; with `swept` its mask has the member axis.
        params: The weights to start from; with the member axis if `key` has one.
        train: Binary examples, from `binarise`.
        epochs: Passes over them.
        batch_size: Examples an update.
        key: PRNG key, or `[members]` of them.
        num_chains: Persistent chains.
        swept: Whether each member has a mask of its own.

    Raises:
        ValueError: Pixels that are not 0 or 1; a mask or a set of another shape; a count below one;
            a legacy key.
    """
    check_key(key, members=True)
    check_binary(train.x)
    size = train.x.shape[1:]
    if params.visible.shape[-1:] != size:
        rule = f"must have the {params.visible.shape[-1]} visible units of `params`"
        raise ValueError(f"`train` {rule}, got {list(size)}.")
    if learner.mask is not None and learner.mask.shape[-2:] != params.weights.shape[-2:]:
        shape = list(learner.mask.shape)
        rule = f"must have the shape {list(params.weights.shape)} of the weights"
        raise ValueError(f"`mask` {rule}, got {shape}.")
    state, train_key = begin(learner, params, key, num_chains=num_chains, swept=swept)
    passes = loop.run_epochs(
        learner,
        state,
        train,
        size=len(train),
        epochs=epochs,
        batch_size=batch_size,
        key=train_key,
        swept=swept,
        donate=True,
    )
    log = []
    for _, state, info in passes:  # noqa: B007
        log.append(jax.device_get(info))
    log = {name: np.stack([entry[name] for entry in log], axis=-1) for name in log[0]}
    return Trained(state.params, log, bool(np.all(log.pop("finite"))))


@partial(jax.jit, static_argnames=("num_chains", "swept"))
def begin(
    learner: ContrastiveDivergence,
    params: Boltzmann,
    key: Array,
    *,
    num_chains: int = 100,
    swept: bool = False,
) -> tuple[ChainState, Array]:
    """The state before the first epoch, and the key of the epochs; arguments as for `fit`."""
    check_key(key, members=True)

    def one(learner, params, key):
        chain_key, train_key = jax.random.split(key)
        return learner.init(params, chain_key, num_chains=num_chains), train_key

    if not key.ndim:
        return one(learner, params, key)
    return jax.vmap(one, in_axes=(0 if swept else None, 0, 0))(learner, params, key)


def check_binary(v: Array):
    """Raises a `ValueError` unless concrete visible states, `[n, num_visible]`, are 0 or 1."""
    if isinstance(v, Tracer):
        return
    if v.ndim != 2:
        rule = "must have the shape [n, num_visible], as `binarise` gives it"
        raise ValueError(f"`x` {rule}, got {list(v.shape)}.")
    wrong = np.asarray(v)[(np.asarray(v) != 0) & (np.asarray(v) != 1)]
    if wrong.size:
        raise ValueError(f"`x` must be 0 or 1, as `binarise` makes it, got {wrong[0]:g}.")
