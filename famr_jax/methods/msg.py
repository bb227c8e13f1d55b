"""MSG: draw anew the weights on which forget and retained set do not differ, then fine-tune."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from famr_jax.curvature.gradients import mean_gradient
from famr_jax.losses import cross_entropy
from famr_jax.methods.finetune import mean_loss
from famr_jax.types import ApplyFn, Params, check_number, pytree, static
from famr_jax.unlearn import Descent, descend, in_memory


class Redrawn(NamedTuple):
    """Which weights are drawn anew, and all of them drawn anew."""

    chosen: Params
    fresh: Params


@pytree
class Masked:
    """The objective of `msg`, which says what its fields mean."""

    apply_fn: ApplyFn = static()
    share: float = 0.3
    kept: float = 0.1

    def prepare(self, params, forget, retain, key):
        pick_key, draw_key = jax.random.split(key)

        def losses(params, batch):
            return cross_entropy(self.apply_fn(params, batch.x), batch.labels)

        forget, retain = in_memory("forget", forget), in_memory("retain", retain)
        count = min(len(forget), len(retain))
        some = retain[jax.random.choice(pick_key, len(retain), (count,), replace=False)]
        gone, kept = (
            mean_gradient(losses, params, data, batch_size=256) for data in (forget, some)
        )
        leaves, structure = jax.tree.flatten(optax.tree.sub(kept, gone))
        rank = 4 if any(leaf.ndim == 4 for leaf in leaves) else 2
        chosen = [
            _smallest(jnp.abs(leaf), self.share if leaf.ndim >= rank else 0.0) for leaf in leaves
        ]
        draw = jax.nn.initializers.variance_scaling(2.0, "fan_out", "normal")
        keys = jax.random.split(draw_key, len(leaves))
        fresh = [
            draw(key, leaf.shape, leaf.dtype) if leaf.ndim >= rank else leaf
            for key, leaf in zip(keys, leaves, strict=True)
        ]
        return Redrawn(*(jax.tree.unflatten(structure, each) for each in (chosen, fresh)))

    def start(self, params, context, forget):
        del forget
        return jax.tree.map(jnp.where, *context.prepared, params)

    def __call__(self, params, context, pair, key):
        del key

        def slowed(leaf, chosen):  # the weight itself; its gradient times 1 or `kept`
            still = jax.lax.stop_gradient(leaf)
            return still + jnp.where(chosen, 1, self.kept).astype(leaf.dtype) * (leaf - still)

        params = jax.tree.map(slowed, params, context.prepared.chosen)
        retain = mean_loss(self.apply_fn, params, pair.retain)
        return retain, {"retain": retain}


def _smallest(leaf, share):
    """Which entries are the smallest share of an array, by their rank: round(share * size)."""
    ranks = jnp.argsort(jnp.argsort(leaf.reshape(-1))).reshape(leaf.shape)
    return ranks < jnp.round(share * leaf.size)


def msg(
    apply_fn: ApplyFn,
    *,
    share: float = 0.3,
    kept: float = 0.1,
    optimizer: optax.GradientTransformation = optax.adam(2e-3, b2=0.99),  # noqa: B008
) -> Descent:
    """Draws anew the weights that both sets pull alike, then fine-tunes them on the retained set.

        chosen_j = |g_retain - g_forget|_j among the smallest share of its array;  chosen: N(0, s^2)
        J(params) = mean_R l(x, y; params),    gradients of the weights not chosen times `kept`

    Adam undoes a constant factor of the gradient, up to its epsilon: with it all weights move alike
    and `kept` says nothing; with SGD it says what the source means.

    Args:
        apply_fn: The model.
        share: Of each array, drawn anew by He's deviation (fan out), in [0, 1].
        kept: Factor of the other gradients, >= 0.
        optimizer: The training's own step; the source takes SGD, momentum .9, 1e-3, 5 epochs.

    Raises:
        ValueError: A number out of range.

    Source: Masked Small Gradients, `kgltop2` of DeepUnlearn (arXiv 2410.01276), by its code. It
        draws convolutions alone; we draw matrices where a model has no convolution.
    """
    check_number("share", share, least=0)
    check_number("1 - share", 1 - share, least=0)
    check_number("kept", kept, least=0)
    return descend(Masked(apply_fn, share, kept), optimizer, epoch_over="retain")
