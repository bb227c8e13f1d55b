"""Bad teacher: learn the forget set from a model that knows nothing."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jax import Array

from famr_jax.targets import as_trained, kl_to
from famr_jax.types import ApplyFn, Params, check_key, check_number, pytree, static
from famr_jax.unlearn import Descent, descend


@pytree
class TwoTeachers:
    """The objective of `bad_teacher`, which says what its fields mean."""

    apply_fn: ApplyFn = static()
    init_fn: Callable[[Array], Params] | None = static(default=None)
    forget_weight: float = 0.3
    temperature: float = 1.0

    def prepare(self, params, forget, retain, key):
        del forget, retain
        return shuffled(params, key) if self.init_fn is None else self.init_fn(key)

    def __call__(self, params, context, pair, key):
        del key
        forget, retain = (
            self._distance(params, teacher, batch)
            for teacher, batch in (
                (context.prepared, pair.forget),
                (context.anchor, pair.retain),
            )
        )
        value = retain + self.forget_weight * forget
        return value, {"forget": forget, "retain": retain}

    def _distance(self, params, teacher, batch):
        target = as_trained(self.apply_fn(teacher, batch.x) / self.temperature, batch.labels)
        return jnp.mean(kl_to(target, self.apply_fn(params, batch.x) / self.temperature))


def bad_teacher(
    apply_fn: ApplyFn,
    *,
    init_fn: Callable[[Array], Params] | None = None,
    forget_weight: float = 0.3,
    temperature: float = 1.0,
    optimizer: optax.GradientTransformation = optax.adam(1e-4),  # noqa: B008
) -> Descent:
    """Distils an incompetent teacher on the forget set and the trained model on the retained set.

        J(params) = mean_R KL(p_T(anchor) || p_T(params)) + w mean_F KL(p_T(bad) || p_T(params))

    Args:
        apply_fn: The model.
        init_fn: `init_fn(key) -> params`, whose fresh weights are the incompetent teacher, as in
            the source; None shuffles the trained ones within each array, which needs no
            initialiser and keeps their sizes: our choice.
        forget_weight: w, >= 0. The source pools the forget set and three tenths of the retained
            one: w = |F| / (.3 |R|), about .3 for a tenth of the data.
        temperature: T, > 0, of the softmax p_T.
        optimizer: The source's is Adam at 1e-4, for one epoch in batches of 256.

    Raises:
        ValueError: A number out of range.

    Source: Can Bad Teaching Induce Forgetting? (arXiv 2205.08096), by its public code, whose mean
        over examples and classes is ours divided by the number of classes.
    """
    check_number("forget_weight", forget_weight, least=0)
    check_number("temperature", temperature, above=0)
    objective = TwoTeachers(apply_fn, init_fn, forget_weight, temperature)
    return descend(objective, optimizer, epoch_over="retain")


def shuffled(params: Params, key: Array) -> Params:
    """The weights in another order within each array: as large, and knowing nothing."""
    check_key(key)
    leaves, structure = jax.tree.flatten(params)
    keys = jax.random.split(key, len(leaves))

    def mix(key, leaf):
        return jax.random.permutation(key, leaf.reshape(-1)).reshape(leaf.shape)

    return jax.tree.unflatten(structure, map(mix, keys, leaves))
