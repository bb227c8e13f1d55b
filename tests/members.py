"""Seeds that train: members for a store, which count what was run of them."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from famr_jax.store import Clock, Store

EPOCHS = 4


class State(NamedTuple):
    params: dict
    momentum: jax.Array


@jax.jit
def begin(seed):
    w = jax.random.normal(jax.random.key(seed), (5, 3))
    return State({"w": w, "b": jnp.zeros(3)}, jnp.zeros((5, 3)))


def _step(state, seed, epoch):
    key = jax.random.fold_in(jax.random.key(seed), epoch)
    x = jax.random.normal(key, (7, 5))

    def loss(w):
        return jnp.mean(jax.nn.logsumexp(x @ w, axis=1))

    value, slope = jax.value_and_grad(loss)(state.params["w"])
    momentum = 0.9 * state.momentum + slope
    params = {"w": state.params["w"] - 0.1 * momentum, "b": state.params["b"] + value}
    return State(params, momentum), {"loss": value, "finite": jnp.isfinite(value)}


STEP, STEPS = jax.jit(_step), jax.jit(jax.vmap(_step, (0, 0, None)))


class Members:
    """Seeds that train, what was run of them, and an interruption."""

    def __init__(self, seeds, width, stop=None):
        self.seeds, self.width, self.stop, self.ran = seeds, width, stop, []

    def begin(self, rows):
        seeds = np.array(self.seeds)[rows]
        return jax.vmap(begin)(seeds) if self.width > 1 else begin(seeds)

    def advance(self, rows, state, start):
        self.ran.append((list(np.atleast_1d(rows)), start))
        for epoch in range(start + 1, EPOCHS + 1):
            if epoch == self.stop:
                raise KeyboardInterrupt
            step = STEPS if self.width > 1 else STEP
            state, info = step(state, np.array(self.seeds)[rows], epoch)
            yield epoch, state, info

    def fit(self, root, *, resume=True, **changes):
        clock = Clock()
        found = Store(root, resume=resume, clock=clock).fit_members(
            "oracles class:3",
            [{"data": "x", "member": seed} | changes for seed in self.seeds],
            self.begin,
            self.advance,
            epochs=EPOCHS,
            width=self.width,
        )
        assert list(clock.phases) == ["oracles class:3"]
        total = sum(each.seconds["run"] for each in found)
        assert clock.phases["oracles class:3"]["run"] == pytest.approx(total)
        return found


def bits(found):
    return [each.params for each in found]
