"""Doing nothing: the baseline that every method must beat."""

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from famr_jax.types import Params, pytree, static


class NothingState(NamedTuple):
    """The trained weights, as they are."""

    params: Params


@pytree
class Nothing:
    """The unlearner behind `nothing`."""

    epoch_over: Literal["forget", "retain"] = static(default="forget")

    def init(self, params, forget, retain, key) -> NothingState:
        del forget, retain, key
        return NothingState(jax.tree.map(jnp.copy, params))

    def step(self, state, pair, key) -> tuple[NothingState, dict[str, Any]]:
        del pair, key
        return state, {}


def nothing() -> Nothing:
    """The unlearner that returns the trained weights."""
    return Nothing()
