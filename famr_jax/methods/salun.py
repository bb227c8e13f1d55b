"""SalUn: any method, on the weights that matter most to the forget set."""

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree

from famr_jax.curvature.gradients import mean_gradient
from famr_jax.losses import cross_entropy
from famr_jax.methods.random_labels import random_labels
from famr_jax.types import ApplyFn, Params, Unlearner, check_number, pytree, static
from famr_jax.unlearn import in_memory


class SalientState(NamedTuple):
    """The state of the method inside, and which weights move."""

    inner: Any
    mask: Params

    @property
    def params(self) -> Params:
        """The weights."""
        return self.inner.params


@pytree
class Salient:
    """The unlearner behind `salun`, which says what its fields mean."""

    apply_fn: ApplyFn = static()
    method: Unlearner
    share: float = 0.5
    epoch_over: Literal["forget", "retain"] = static(default="forget")

    def init(self, params, forget, retain, key) -> SalientState:
        def losses(params, batch):
            return cross_entropy(self.apply_fn(params, batch.x), batch.labels)

        gradient = mean_gradient(losses, params, in_memory("forget", forget), batch_size=256)
        flat, unravel = ravel_pytree(jax.tree.map(jnp.abs, gradient))
        rank = jnp.floor((1 - self.share) * flat.size).astype(int)
        mask = flat >= jnp.sort(flat)[jnp.clip(rank, 0, flat.size - 1)]
        inner = self.method.init(params, forget, retain, key)
        mask = jax.tree.map(lambda leaf: leaf > 0, unravel(mask.astype(flat.dtype)))
        return SalientState(inner, mask)

    def step(self, state, pair, key):
        moved, info = self.method.step(state.inner, pair, key)
        params = jax.tree.map(jnp.where, state.mask, moved.params, state.params)
        return SalientState(moved._replace(params=params), state.mask), info


def salun(
    apply_fn: ApplyFn,
    *,
    method: Unlearner | None = None,
    share: float = 0.5,
    optimizer: optax.GradientTransformation = optax.adam(5e-4),  # noqa: B008
) -> Salient:
    """Runs a method on the most salient weights alone; the others do not move at all.

        m_j = 1 where |d mean_F l(x, y) / d params_j| is among the largest share of all weights
        params <- m * (the method's step) + (1 - m) * params

    What is masked is the new weights, so that decay and momentum move none of m = 0. The optimizer
    sees whole gradients; the source masks them first, which differs where their norm is clipped.

    Args:
        apply_fn: The model.
        method: Any unlearner; `random_labels` by default, as in the source.
        share: Of all weights together, those that move, > 0 and <= 1; ties are let in.
        optimizer: That of `random_labels`, where no method is given.

    Raises:
        ValueError: `share` not in (0, 1].

    Source: SalUn (arXiv 2310.12508): its public code takes .5, SGD at .013 and 10 epochs for a
        tenth of CIFAR-10, and restores the masked weights after each step, as here.
    """
    check_number("share", share, above=0)
    check_number("1 - share", 1 - share, least=0)
    if method is None:
        method = random_labels(apply_fn, optimizer=optimizer)
    return Salient(apply_fn, method, share, method.epoch_over)
