"""Random labels: teach the forget set wrong labels, and the retained set its own."""

import jax
import jax.numpy as jnp
import optax

from famr_jax.losses import cross_entropy
from famr_jax.methods.finetune import mean_loss
from famr_jax.targets import wrong_labels
from famr_jax.types import ApplyFn, check_number, pytree, static
from famr_jax.unlearn import Descent, descend


@pytree
class Relabelled:
    """The objective of `random_labels`, which says what its fields mean."""

    apply_fn: ApplyFn = static()
    forget_weight: float = 1.0

    def prepare(self, params, forget, retain, key):
        del params, forget, retain
        return jax.random.key_data(key)

    def __call__(self, params, context, pair, key):
        del key
        batch = pair.forget
        logits = self.apply_fn(params, batch.x)
        image = batch.x if batch.raw is None else batch.raw
        labels = wrong_labels(context.prepared, image, batch.labels, logits.shape[-1])
        forget = jnp.mean(cross_entropy(logits, labels))
        retain = mean_loss(self.apply_fn, params, pair.retain)
        return retain + self.forget_weight * forget, {"forget": forget, "retain": retain}


def random_labels(
    apply_fn: ApplyFn,
    *,
    forget_weight: float = 1.0,
    optimizer: optax.GradientTransformation = optax.adam(5e-4),  # noqa: B008
) -> Descent:
    """Trains on the retained set and on the forget set with a wrong label for each image.

        J(params) = mean_R l(x, y) + w mean_F l(x, y'),    y' uniform over the classes other than y

    An image keeps its label for the whole run: drawn anew at each step, they would add up to the
    uniform target.

    Args:
        apply_fn: The model.
        forget_weight: w, >= 0; |F|/|R| weighs every image alike, as a pass over their union does.
        optimizer: Between `famr`'s step and the training's: our choice.

    Raises:
        ValueError: `forget_weight` negative or not finite.

    Source: Amnesiac Machine Learning (arXiv 2010.10981), as in public code. That of SalUn draws
        from all classes, the right one too, and anew at every epoch.
    """
    check_number("forget_weight", forget_weight, least=0)
    return descend(Relabelled(apply_fn, forget_weight), optimizer, epoch_over="retain")
