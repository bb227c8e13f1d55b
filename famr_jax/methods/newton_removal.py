"""Newton removal: one damped Newton step from the trained weights to the retained optimum."""

from typing import Literal

import jax.numpy as jnp
import optax

from famr_jax.curvature import fisher
from famr_jax.influence import remove
from famr_jax.losses import cross_entropy
from famr_jax.types import ApplyFn, check_number, pytree, static
from famr_jax.unlearn import OneShot, in_memory


@pytree
class Removing:
    """The edit of `newton_removal`, which says what its fields mean."""

    apply_fn: ApplyFn = static()
    matrix: Literal["gauss_newton", "hessian"] = static(default="gauss_newton")
    max_steps: int = static(default=200)
    l2: float = 0.0
    damping: float = 0.1

    def __call__(self, params, forget, retain, key):
        def losses(params, batch):
            return cross_entropy(self.apply_fn(params, batch.x), batch.labels)

        def outputs(params, batch):
            return self.apply_fn(params, batch.x)

        def curvature(data):
            return fisher(outputs, params, data, batch_size=256)

        found = remove(
            losses,
            params,
            in_memory("forget", forget),
            in_memory("retain", retain),
            l2=self.l2,
            normaliser="n-m",
            curvature=curvature if self.matrix == "gauss_newton" else None,
            damping=self.damping,
            max_steps=self.max_steps,
            batch_size=256,
            key=key,
        )
        solution = found.solution
        info = {"residual": solution.residual, "converged": solution.converged}
        info["lambda_min"] = found.lambda_min.value
        return found.params, {name: jnp.asarray(value, float) for name, value in info.items()}


def newton_removal(
    apply_fn: ApplyFn,
    *,
    matrix: Literal["gauss_newton", "hessian"] = "gauss_newton",
    l2: float = 0.0,
    damping: float = 0.1,
    max_steps: int = 200,
    optimizer: optax.GradientTransformation | None = None,
) -> OneShot:
    """Moves the weights by one damped Newton step on the retained objective: `influence.remove`.

        params <- params + (M + l2 I + damping I)^-1 (grad L_all - grad L_retain)

    M is the retained set's Gauss-Newton matrix, or its Hessian, which on networks is indefinite. It
    logs the solver's residual, whether it converged, and the least eigenvalue with both shifts.

    Args:
        apply_fn: The model.
        matrix: M.
        l2: Ridge of the training objective.
        damping: The solver's shift: the larger, the shorter and the safer the step.
        max_steps: Products after which the solver gives up.
        optimizer: Not used.

    Raises:
        ValueError: A number out of range, or another name of M.

    Source: influence functions (arXiv 1703.04730), as `influence.primal`; the damping is ours.
    """
    del optimizer
    if matrix not in ("gauss_newton", "hessian"):
        raise ValueError(f"`matrix` must be 'gauss_newton' or 'hessian', got {matrix!r}.")
    check_number("l2", l2, least=0)
    check_number("damping", damping, least=0)
    return OneShot(Removing(apply_fn, matrix, max_steps, l2, damping), epoch_over="retain")
