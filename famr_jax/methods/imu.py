"""IMU: ascend in the last layer, the more on an example the more it shaped it."""

import jax
import jax.numpy as jnp
import optax

from famr_jax.curvature.gradients import mean_gradient, mean_square
from famr_jax.losses import cross_entropy
from famr_jax.types import ApplyFn, check_number, pytree, static
from famr_jax.unlearn import Descent, descend, in_memory, subtree, with_subtree


@pytree
class Influential:
    """The objective of `imu`, which says what its fields mean."""

    apply_fn: ApplyFn = static()
    head: tuple[str, ...] = static(default=("head",))
    damping: float = 0.01
    clip: float = 0.93

    def _losses(self, params):
        def losses(head, batch):
            logits = self.apply_fn(with_subtree(params, self.head, head), batch.x)
            return cross_entropy(logits, batch.labels)

        return losses

    def _weights(self, params, batch, step):
        """sqrt(g_i . step), where that is positive, by one forward derivative."""
        head, losses = subtree(params, self.head), self._losses(params)
        _, along = jax.jvp(lambda head: losses(head, batch), (head,), (step,))
        return jnp.sqrt(jnp.maximum(along, 0))

    def prepare(self, params, forget, retain, key):
        del retain, key
        head, losses = subtree(params, self.head), self._losses(params)
        forget = in_memory("forget", forget)
        gradient = mean_gradient(losses, head, forget, batch_size=256)
        fisher = mean_square(losses, head, forget)
        step = jax.tree.map(lambda g, f: g / (f + self.damping), gradient, fisher)
        weights = self._weights(params, forget, step)
        chosen = jnp.where(weights > 0, weights, jnp.nan)
        return {"step": step, "most": jnp.nan_to_num(jnp.nanquantile(chosen, self.clip))}

    def __call__(self, params, context, pair, key):
        del key
        step, most = context.prepared["step"], context.prepared["most"]
        weights = jnp.minimum(self._weights(context.anchor, pair.forget, step), most)
        losses = self._losses(context.anchor)(subtree(params, self.head), pair.forget)
        forget = jnp.vdot(weights, losses) / jnp.maximum(jnp.sum(weights), 1e-12)
        return -forget, {"forget": forget}


def imu(
    apply_fn: ApplyFn,
    *,
    damping: float = 0.01,
    clip: float = 0.93,
    head: tuple[str, ...] = ("head",),
    optimizer: optax.GradientTransformation = optax.adam(1e-3),  # noqa: B008
) -> Descent:
    """Ascends the forget loss in the last layer alone, examples weighted by their influence there.

        J(head) = - sum_B w_i l_i / sum_B w_i,    w_i^2 = max(0, g_i . (F + damping)^-1 g_mean)

    g_i are gradients in the last layer at the trained weights, g_mean their mean over the forget
    set, F the mean of their squares; w_i is clipped at its own quantile. Other weights have no
    gradient; a decay in the optimizer would still move them.

    Args:
        apply_fn: The model.
        damping: Of F, > 0.
        clip: The quantile, of the positive weights, in (0, 1].
        head: Path of the last layer in the weights.
        optimizer: J is unbounded below: it and the epochs are reported. Ten times FAMR's step.

    Raises:
        ValueError: A number out of range; the weights have no such part.

    Source: IMU (arXiv 2508.01620), by its public code, without its optional l1 and top share.
    """
    check_number("damping", damping, above=0)
    check_number("clip", clip, above=0)
    check_number("1 - clip", 1 - clip, least=0)
    return descend(Influential(apply_fn, head, damping, clip), optimizer, epoch_over="forget")
