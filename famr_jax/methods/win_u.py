"""WIN-U: a Newton step from stored curvature, the forget set's part taken out by Woodbury."""

import optax

from famr_jax.curvature import Eigenspace
from famr_jax.influence.dual import CROSS_ENTROPY
from famr_jax.influence.stored import woodbury
from famr_jax.methods.gauss_newton_removal import BATCH, Model, check, told
from famr_jax.types import ApplyFn, pytree, static
from famr_jax.unlearn import OneShot, in_memory


@pytree
class RemovingByWoodbury:
    """The edit of `win_u`, which says what its fields mean."""

    apply_fn: ApplyFn = static()
    rank: int = static(400)
    store: Eigenspace | None = None
    l2: float = 0.0
    damping: float | None = None

    def __call__(self, params, forget, retain, key):
        model, forget = Model(self.apply_fn), in_memory("forget", forget)
        store = self.store
        if store is None:
            store = model.store(params, forget, retain, rank=self.rank, key=key)
        return told(
            woodbury(
                model.losses,
                model.outputs,
                params,
                forget,
                store,
                l2=self.l2,
                root=CROSS_ENTROPY.root,
                damping=self.damping,
                batch_size=BATCH,
            )
        )


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
    check(rank, l2, damping)
    edit = RemovingByWoodbury(apply_fn, rank, store, l2, damping)
    return OneShot(edit, epoch_over="retain" if store is None else "forget")
