"""TRW: draw the forgotten class to its look-alikes, as retrained models send it there."""

from typing import Any

import jax.numpy as jnp
import optax

from famr_jax.methods.finetune import mean_loss
from famr_jax.targets import Tilted, head_similarity, kl_to
from famr_jax.types import ApplyFn, check_count, check_number, pytree, static
from famr_jax.unlearn import Descent, descend, subtree


@pytree
class Drawn:
    """The objective of `trw`, which says what its fields mean."""

    apply_fn: ApplyFn = static()
    head: tuple[str, ...] = static(default=("head", "kernel"))
    num_components: int = static(default=10)
    with_retain: bool = static(default=True)
    beta: float = 10.0
    temperature: float = 0.1
    forget_weight: float = 1.0

    def prepare(self, params, forget, retain, key):
        del forget, retain, key
        kernel: Any = subtree(params, self.head)
        return head_similarity(
            kernel, temperature=self.temperature, num_components=self.num_components
        )

    def __call__(self, params, context, pair, key):
        del key
        x, labels = pair.forget.x, pair.forget.labels
        tilted = Tilted(context.prepared, self.beta)
        target = tilted(self.apply_fn(context.anchor, x), labels)
        forget = jnp.mean(kl_to(target, self.apply_fn(params, x)))
        if not self.with_retain:
            return self.forget_weight * forget, {"forget": forget}
        retain = mean_loss(self.apply_fn, params, pair.retain)
        return retain + self.forget_weight * forget, {"forget": forget, "retain": retain}


def trw(
    apply_fn: ApplyFn,
    *,
    beta: float = 10.0,
    temperature: float = 0.1,
    num_components: int = 10,
    with_retain: bool = True,
    forget_weight: float = 1.0,
    head: tuple[str, ...] = ("head", "kernel"),
    optimizer: optax.GradientTransformation = optax.adam(5e-4),  # noqa: B008
) -> Descent:
    """Distils the trained model with the label masked out and similar classes favoured.

        J(params) = [mean_R l(x, y)] + w mean_F KL(q || p),    q of `targets.Tilted`

    Known are the target and beta 10; the similarity's constants, w and the step are inferred.

    Args:
        apply_fn: The model.
        beta: Strength of the tilt; 0 for DELETE's target.
        temperature: Of the similarity's softmax, > 0.
        num_components: Of its projection.
        with_retain: Whether the retained term is there, whose set an epoch passes over then.
        forget_weight: w, > 0.
        head: Path of the last layer's kernel, `[dim, num_classes]`, in the weights.
        optimizer: Our choice.

    Raises:
        ValueError: A number out of range.

    Source: TRW (arXiv 2506.20893), from its abstract and public reviews; its code was not seen.
    """
    check_number("beta", beta)
    check_number("temperature", temperature, above=0)
    check_number("forget_weight", forget_weight, above=0)
    check_count("num_components", num_components)
    objective = Drawn(apply_fn, head, num_components, with_retain, beta, temperature, forget_weight)
    return descend(objective, optimizer, epoch_over="retain" if with_retain else "forget")
