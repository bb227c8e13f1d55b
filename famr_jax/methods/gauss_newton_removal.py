"""Gauss-Newton removal: one step inside a stored curvature, as long as the model stays linear."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array

from famr_jax.curvature import Eigenspace, eigenspace, fisher
from famr_jax.curvature.operators import GaussNewton
from famr_jax.influence.stored import StoredRemoval, inside
from famr_jax.losses import cross_entropy
from famr_jax.types import ApplyFn, Batch, Params, Source, check_count, check_number, pytree, static
from famr_jax.unlearn import OneShot, in_memory

BATCH = 256
"""Micro-batch of every product and gradient."""
TOL = 1e-6
"""Residual of the store's vectors, relative to the largest eigenvalue."""


@pytree
class Model:
    """Losses, logits and Gauss-Newton matrix of a model, as functions that jit compares."""

    apply_fn: ApplyFn = static()

    def losses(self, params: Params, batch: Batch) -> Array:
        return cross_entropy(self.apply_fn(params, batch.x), batch.labels)

    def outputs(self, params: Params, batch: Batch) -> Array:
        return self.apply_fn(params, batch.x)

    def curvature(self, params: Params, data: Batch | Source) -> GaussNewton:
        return fisher(self.outputs, params, data, batch_size=BATCH)

    def store(
        self, params: Params, forget: Any, retain: Any, *, rank: int, key: Array
    ) -> Eigenspace:
        """The store of all training data at the trained weights, of `rank` directions at most."""
        m, kept = len(forget), len(retain)
        operators: Any = [self.curvature(params, data) for data in (forget, retain)]
        of_forget, of_retain = operators  # they scale and add by their decorator
        matrix = m / (m + kept) * of_forget + kept / (m + kept) * of_retain
        dim = sum(leaf.size for leaf in jax.tree.leaves(params))
        return eigenspace(matrix, params, k=min(rank, dim), size=m + kept, key=key, tol=TOL)


@pytree
class Removing:
    """The edit of `gauss_newton_removal` and `win_u`, which say what its numbers mean.

    Attributes:
        apply_fn: The model.
        step: `step(model, params, forget, store, l2, damping) -> StoredRemoval`.
    """

    apply_fn: ApplyFn = static()
    step: Callable[..., StoredRemoval] = static()
    rank: int = static(default=400)
    store: Eigenspace | None = None
    l2: float = 0.0
    damping: float | None = None

    def __call__(self, params, forget, retain, key):
        model, forget = Model(self.apply_fn), in_memory("forget", forget)
        store = self.store
        if store is None:
            store = model.store(params, forget, retain, rank=self.rank, key=key)
        return _told(self.step(model, params, forget, store, self.l2, self.damping))


def _told(found: StoredRemoval) -> tuple[Params, dict[str, Array]]:
    """The weights, and what the log says of the step: weights are the trained ones at trusted 0."""
    trusted = found.trusted
    info = {
        "damping": trusted.damping,
        "divergence": jnp.minimum(trusted.divergence, jnp.finfo(jnp.float32).max),
        "trusted": trusted.met,
        "outside": found.outside,
    }
    return found.params, {name: jnp.asarray(value, float) for name, value in info.items()}


def gauss_newton_removal(
    apply_fn: ApplyFn,
    *,
    store: Eigenspace | None = None,
    rank: int = 400,
    l2: float = 0.0,
    damping: float | None = None,
    optimizer: optax.GradientTransformation | None = None,
) -> OneShot:
    """Moves the weights by one Gauss-Newton step inside a stored curvature: `influence.stored`.

        params <- params + U^T [n / (n-m) (S - U G_f U^T m / n) + d]^-1 U b,   S = U G U^T
        b = (sum_F grad l + m l2 params) / (n-m)

    With a store it sees the forget set alone; without one it takes it first, of both sets. It logs
    d, the mean KL from the linearised to the moved model on the forget set, whether that is trusted
    (if not the weights stay), and the share of b outside U.

    Args:
        apply_fn: The model.
        store: `curvature.keep` of the Fisher information of all training data at the weights.
        rank: Directions of a store that is taken here.
        l2: Ridge of the training objective, the least damping.
        damping: d; by `curvature.trust_damping` if not given.
        optimizer: Not used.

    Raises:
        ValueError: A number out of range.

    Source: ours; at d = l2 and with every direction stored it is Newton's step (arXiv 1703.04730).
    """
    del optimizer
    return removing(apply_fn, _inside, store, rank, l2, damping)


def _inside(model, params, forget, store, l2, damping):
    return inside(
        model.losses,
        model.outputs,
        params,
        forget,
        store,
        l2=l2,
        curvature=lambda data: model.curvature(params, data),
        damping=damping,
        batch_size=BATCH,
    )


def removing(
    apply_fn: ApplyFn,
    step: Callable[..., StoredRemoval],
    store: Eigenspace | None,
    rank: int,
    l2: float,
    damping: float | None,
) -> OneShot:
    """The one-shot method of a step from a store; a `ValueError` for a number out of range."""
    check_count("rank", rank)
    check_number("l2", l2, least=0)
    if damping is not None:
        check_number("damping", damping, above=0)
    edit = Removing(apply_fn, step, rank, store, l2, damping)
    return OneShot(edit, epoch_over="retain" if store is None else "forget")
