"""WIN-U: a Newton step from stored curvature, the forget set's part taken out by Woodbury."""

import optax

from famr_jax.curvature import Eigenspace
from famr_jax.influence.dual import CROSS_ENTROPY
from famr_jax.influence.stored import woodbury
from famr_jax.methods.gauss_newton_removal import BATCH, removing
from famr_jax.types import ApplyFn
from famr_jax.unlearn import OneShot


def win_u(
    apply_fn: ApplyFn,
    *,
    store: Eigenspace | None = None,
    rank: int = 400,
    l2: float = 0.0,
    damping: float | None = None,
    optimizer: optax.GradientTransformation | None = None,
) -> OneShot:
    """Moves the weights by a Newton step whose matrix is the stored one minus the forget part.

        params <- params + (H - R^T R)^-1 b,   H = n / (n-m) U^T S U + d,   R^T R = m / (n-m) G_f
        (H - R^T R)^-1 = H^-1 + H^-1 R^T (I - R H^-1 R^T)^-1 R H^-1

    b, the store and the log are those of `gauss_newton_removal`, which stays inside U. Here all of
    b is followed, and outside of U what is subtracted may exceed d: d is then raised, or the
    removal refused. With every direction stored both are Newton's step with the exact retained
    matrix; without R it is the classical influence removal.

    Args:
        apply_fn: The model.
        store: As there; the forget set alone is seen with one.
        rank: Directions of a store that is taken here.
        l2: Ridge of the training objective, the least damping.
        damping: d; by `curvature.trust_damping` if not given.
        optimizer: Not used.

    Raises:
        ValueError: A number out of range.

    Source: WIN-U (arXiv 2604.13438) by its abstract; the form, the store and d are ours.
    """
    del optimizer
    return removing(apply_fn, _by_woodbury, store, rank, l2, damping)


def _by_woodbury(model, params, forget, store, l2, damping):
    return woodbury(
        model.losses,
        model.outputs,
        params,
        forget,
        store,
        l2=l2,
        root=CROSS_ENTROPY.root,
        damping=damping,
        batch_size=BATCH,
    )
