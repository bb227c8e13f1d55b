"""DELETE: draw the forget set to what the trained model says besides the label."""

import jax.numpy as jnp
import optax

from famr_jax.targets import kl_to, reweighted
from famr_jax.types import ApplyFn, pytree, static
from famr_jax.unlearn import Descent, descend


@pytree
class Decoupled:
    """The objective of `delete`."""

    apply_fn: ApplyFn = static()

    def __call__(self, params, context, pair, key):
        del key
        x, labels = pair.forget.x, pair.forget.labels
        target = reweighted(self.apply_fn(context.anchor, x), labels)
        forget = jnp.mean(kl_to(target, self.apply_fn(params, x)))
        return forget, {"forget": forget}


def delete(
    apply_fn: ApplyFn,
    *,
    optimizer: optax.GradientTransformation = optax.adam(1e-4),  # noqa: B008
) -> Descent:
    """Distils the trained model with the label masked out, on the forget set alone.

        J(params) = mean_F KL(q || p),    q_y = 0,  q_c = p_c(anchor) / (1 - p_y(anchor))

    At the start its gradient in the logits is p_y / (1 - p_y) (e_y - p), that of -log(1 - p_y): the
    ascent direction weighted by the odds, so that it does not vanish where the model is sure.

    Args:
        apply_fn: The model.
        optimizer: The source runs 20 epochs of SGD with momentum .9 in batches of 128, at 1e-4 on a
            ResNet-18 and 5e-5 on a ViT-S/16. The default is FAMR's; take the largest step at which
            Ret-Acc stays.

    Source: Decoupled Distillation to Erase (arXiv 2503.23751), formula and settings from its public
        code; weight decay and anchor are not in it.
    """
    return descend(Decoupled(apply_fn), optimizer, epoch_over="forget")
