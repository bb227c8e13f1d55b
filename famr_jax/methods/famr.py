"""FAMR: a target on the forget set, uniform predictions, and weights held near the trained ones."""

from collections.abc import Callable

import jax.numpy as jnp
import optax

from famr_jax.losses import l2_anchor, uniform_kl
from famr_jax.targets import kl_to
from famr_jax.types import ApplyFn, as_pytree, check_number, pytree, static
from famr_jax.unlearn import Descent, descend


@pytree
class AnchoredUniform:
    """FAMR's objective, J = w mean_T KL(q || p) + lam d(params, anchor).

    As in the paper q is uniform and d half the squared distance, unless others are given. A
    minibatch B estimates the mean over T by its own mean.

    Attributes:
        apply_fn: The model.
        lam: Strength of the anchor.
        forget_weight: w. 1 is the mean form; |T| is the paper's sum over T, whose minibatch
            estimate is (|T|/B) times the batch's sum. The minimisers agree at
            lam_mean = lam_sum / |T|; the step sizes that are stable do not.
        target: q, one of `targets`; None for the uniform distribution.
        distance: d, one of `anchors`; None for `l2_anchor`.
    """

    apply_fn: ApplyFn = static()
    lam: float = 0.1
    forget_weight: float = 1.0
    target: Callable | None = None
    distance: Callable | None = None

    def __call__(self, params, context, pair, key):
        del key
        logits = self.apply_fn(params, pair.forget.x)
        if self.target is None:
            forget = jnp.mean(uniform_kl(logits))
        else:
            trained = self.apply_fn(context.anchor, pair.forget.x)
            forget = jnp.mean(kl_to(self.target(trained, pair.forget.labels), logits))
        distance = (self.distance or l2_anchor)(params, context.anchor)
        value = self.forget_weight * forget + self.lam * distance
        return value, {"forget": forget, "anchor": distance}


def famr(
    apply_fn: ApplyFn,
    *,
    lam: float = 0.1,
    forget_weight: float = 1.0,
    target: Callable | None = None,
    anchor: Callable | None = None,
    optimizer: optax.GradientTransformation = optax.adam(1e-4),  # noqa: B008
) -> Descent:
    """Forget-Aligned Model Reconstruction: descends J on the forget set alone.

        J(params) = w mean_{x in T} KL(u || p(.|x)) + (lam/2) ||params - anchor||^2

    Target and metric may be others: with `targets.reweighted` it is DELETE with an anchor.

    Args:
        apply_fn: The model.
        lam: Strength of the anchor, >= 0; the paper's value is 0.1.
        forget_weight: w: 1 for the mean form, |T| for the paper's sum; see `AnchoredUniform`.
        target: `target(trained logits, labels) -> q` in place of u, one of `targets`.
        anchor: `distance(params, anchor)` in place of half the squared one, one of `anchors`.
        optimizer: The paper gives the step, 1e-4, and not the optimizer; Adam is the one that is
            customarily run at that step on a ViT.

    Raises:
        ValueError: `lam` negative or not finite; `forget_weight` not positive.

    Source: FAMR (arXiv 2506.14515), section 2.2.
    """
    check_number("lam", lam, least=0)
    check_number("forget_weight", forget_weight, above=0)
    target, anchor = (each and as_pytree(each) for each in (target, anchor))
    objective = AnchoredUniform(apply_fn, lam, forget_weight, target, anchor)
    return descend(objective, optimizer, epoch_over="forget")
