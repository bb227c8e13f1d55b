"""Boundary expand: send the forget set to a class that is thrown away afterwards."""

import jax
import jax.numpy as jnp
import optax

from famr_jax.losses import cross_entropy
from famr_jax.types import ApplyFn, pytree, static
from famr_jax.unlearn import Descent, descend, subtree, with_subtree


@pytree
class Expanded:
    """The objective of `boundary_expand`, which says what its fields mean."""

    apply_fn: ApplyFn = static()
    head: tuple[str, ...] = static(default=("head",))

    def prepare(self, params, forget, retain, key):
        del forget, retain
        kernel = subtree(params, (*self.head, "kernel"))
        limit = jnp.sqrt(2 / sum(kernel.shape))
        return limit * jax.random.normal(key, kernel.shape[:1], kernel.dtype)

    def __call__(self, params, context, pair, key):
        del key
        logits = self.apply_fn(params, pair.forget.x)
        # The shadow class is the model's first, with its weights in place of that class's.
        head = subtree(params, self.head)
        head = {
            "kernel": head["kernel"].at[:, 0].set(context.prepared),
            "bias": head["bias"].at[0].set(0),
        }
        shadow = self.apply_fn(with_subtree(params, self.head, head), pair.forget.x)[:, :1]
        labels = jnp.full_like(pair.forget.labels, logits.shape[-1])
        forget = jnp.mean(cross_entropy(jnp.concatenate([logits, shadow], axis=1), labels))
        return forget, {"forget": forget}


def boundary_expand(
    apply_fn: ApplyFn,
    *,
    head: tuple[str, ...] = ("head",),
    optimizer: optax.GradientTransformation = optax.adam(3e-5),  # noqa: B008
) -> Descent:
    """Trains the forget set as a class C + 1 of a wider last layer, which is cut off again.

        J(params) = mean_F -log softmax([z, z_shadow])_shadow,    z_shadow = k . features

    Sees the forget set alone. k is drawn once, with the deviation sqrt(2 / (dim + C)), and stays;
    the source trains it with the rest. Weights keep their shapes all the while.

    Args:
        apply_fn: The model.
        head: Path of the last layer, a dict of `kernel` `[dim, num_classes]` and `bias`.
        optimizer: The default is a third of FAMR's; take the largest step at which Ret-Acc stays.

    Raises:
        ValueError: The weights have no such part.

    Source: Boundary Unlearning (arXiv 2303.11570), by the code of SalUn and DELETE.
    """
    return descend(Expanded(apply_fn, head), optimizer, epoch_over="forget")
