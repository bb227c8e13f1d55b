"""Dual removal: the exact Newton step of the last layer, solved in the space of its outputs."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from famr_jax.influence import dual, kernels
from famr_jax.types import ApplyFn, check_count, check_number, pytree, static
from famr_jax.unlearn import OneShot, in_memory, subtree, with_subtree


@pytree
class RemovingDual:
    """The edit of `dual_removal`, which says what its fields mean."""

    apply_fn: ApplyFn = static()
    head: tuple[str, ...] = static(default=("head",))
    max_steps: int = static(default=1000)
    l2: float = 1e-3

    def __call__(self, params, forget, retain, key):
        del key
        forget, retain = in_memory("forget", forget), in_memory("retain", retain)
        x, labels = (jnp.concatenate(parts) for parts in zip(
            (forget.x, forget.labels), (retain.x, retain.labels), strict=True
        ))  # fmt: skip
        head = subtree(params, self.head)

        def of_head(head, x):
            return self.apply_fn(with_subtree(params, self.head, head), x)

        kernel = kernels.TangentKernel(of_head, head)
        outputs = self.apply_fn(params, x)
        found = dual.remove(
            dual.CROSS_ENTROPY,
            kernel.gram(x),
            outputs,
            labels,
            np.arange(len(labels)) < len(forget),
            l2=self.l2,
            normaliser="n-m",
            max_steps=self.max_steps,
        )
        moved = jax.tree.map(jnp.add, head, kernel.to_params(x, found.value))
        info = {"residual": found.residual, "converged": found.converged}
        info = {name: jnp.asarray(value, float) for name, value in info.items()}
        return with_subtree(params, self.head, moved), info


def dual_removal(
    apply_fn: ApplyFn,
    *,
    l2: float = 1e-3,
    head: tuple[str, ...] = ("head",),
    max_steps: int = 1000,
    optimizer: optax.GradientTransformation | None = None,
) -> OneShot:
    """Moves the last layer alone by its Newton step on the retained data: `influence.dual.remove`.

        (l2 I + S^T K S) v = S^T K b,    head <- head + J^T (b - S v) / l2,    K = J J^T

    K is the kernel of the features over all outputs of both sets. The layer is linear in its
    weights, so that this is the primal step (J^T A J + l2 I)^-1 J^T b to rounding; what the
    features know of the forget set stays. It logs the solver's residual and whether it converged.

    Args:
        apply_fn: The model.
        l2: Ridge of the training objective on the last layer, > 0.
        head: Path of the last layer in the weights.
        max_steps: Products after which the solver gives up.
        optimizer: Not used.

    Raises:
        ValueError: A number out of range, or weights without that layer.

    Source: Sun and Valaee (arXiv 2605.11239), on the last layer, in the form of `influence.dual`.
    """
    del optimizer
    check_number("l2", l2, above=0)
    check_count("max_steps", max_steps)
    return OneShot(RemovingDual(apply_fn, head, max_steps, l2), epoch_over="retain")
