"""Descent-ascent: descend the loss on the retained set, ascend it on the forget set."""

import jax.numpy as jnp
import optax

from famr_jax.losses import cross_entropy
from famr_jax.types import ApplyFn, check_count, check_number, pytree, static
from famr_jax.unlearn import Descent, descend


@pytree
class DescentAscent:
    """The objective of `descent_ascent`, which says what its fields mean."""

    apply_fn: ApplyFn = static()
    forget_weight: float = 0.1
    ascent_steps: int | None = None
    alternating: bool = static(default=False)

    def __call__(self, params, context, pair, key):
        del key
        weight, keep = self.forget_weight, 1
        if self.ascent_steps is not None:
            weight = jnp.where(context.step < self.ascent_steps, weight, 0.0)
        if self.alternating:
            ascending = (context.step % 2 == 1) & (weight > 0)
            weight, keep = jnp.where(ascending, weight, 0.0), jnp.where(ascending, 0, 1)
        retain, forget = (
            jnp.mean(cross_entropy(self.apply_fn(params, batch.x), batch.labels))
            for batch in (pair.retain, pair.forget)
        )
        return keep * retain - weight * forget, {"retain": retain, "forget": forget}


def descent_ascent(
    apply_fn: ApplyFn,
    *,
    forget_weight: float = 0.1,
    ascent_steps: int | None = None,
    alternating: bool = False,
    optimizer: optax.GradientTransformation = optax.adam(1e-4),  # noqa: B008
) -> Descent:
    """Descends the retained loss and ascends the forget loss in every step: GDA, step by step.

        J(params) = mean_R l(x, y; params) - w mean_F l(x, y; params)

    w = 1 is the objective of the paper's theory; w = |F|/|R|, .1 for a tenth of the data, weighs
    every example alike, as does, to first order in the step of SGD, the paper's loop of |F|/B steps
    of ascent and then |R|/B of descent an epoch.

    Args:
        apply_fn: The model.
        forget_weight: w, >= 0; 0 is fine-tuning on the retained set.
        ascent_steps: Steps after which w is 0; None for never. The paper's: 3 or 5 of 5-10 epochs.
        alternating: Descend in steps 0, 2, 4, ... and ascend in the others, in place of both at
            once: to first order two such steps of SGD are one of those.
        optimizer: The paper takes SGD at 5e-5 to 5e-3; take what Ret-Acc bears.

    Raises:
        ValueError: `forget_weight` negative or not finite; `ascent_steps` below one.

    Source: the baseline GDA, or DA, of Ascent Fails to Forget (arXiv 2509.26427).
    """
    check_number("forget_weight", forget_weight, least=0)
    if ascent_steps is not None:
        check_count("ascent_steps", ascent_steps)
    objective = DescentAscent(apply_fn, forget_weight, ascent_steps, alternating)
    return descend(objective, optimizer, epoch_over="retain")
