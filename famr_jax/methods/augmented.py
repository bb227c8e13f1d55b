"""Augmentation in unlearning: any method, on images that change from step to step."""

from collections.abc import Callable
from typing import Any, Literal

import jax
from jax import Array

from famr_jax.types import Batch, Pair, Params, Unlearner, pytree, static


@pytree
class Augmented:
    """The unlearner behind `augmented`, which says what its fields mean."""

    method: Unlearner
    augment: Callable[[Array, Array], Array] = static()
    epoch_over: Literal["forget", "retain"] = static(default="forget")

    def init(self, params: Params, forget: Any, retain: Any, key: Array) -> Any:
        return self.method.init(params, forget, retain, key)

    def step(self, state: Any, pair: Pair, key: Array) -> tuple[Any, dict[str, Array]]:
        forget_key, retain_key, key = jax.random.split(key, 3)
        seen = Pair(self._seen(forget_key, pair.forget), self._seen(retain_key, pair.retain))
        return self.method.step(state, seen, key)

    def _seen(self, key: Array, batch: Batch | None) -> Batch | None:
        if batch is None:
            return None
        x = self.augment(key, batch.x)
        if x.shape != batch.x.shape:
            got = f"{list(x.shape)} of {list(batch.x.shape)}"
            raise ValueError(f"`augment` must keep the shape of a batch, got {got}.")
        return Batch(x, batch.labels, batch.x if batch.raw is None else batch.raw)


def augmented(method: Unlearner, augment: Callable[[Array, Array], Array]) -> Augmented:
    """Runs a method on augmented images of both sets, drawn anew at every step.

        step(state, (a(F), a(R)), key),    a = augment(key, .)

    What a method prepares before its first step, as masks and Fisher matrices, it prepares on the
    images as they are. A trained model that is a teacher sees what the learner sees. Random labels
    stay those of the image as it is.

    Args:
        method: Any unlearner.
        augment: `augment(key, x) -> x` on a batch of images, as `train.Recipe` takes it; that of
            the training, for a comparison with models retrained by it.

    Raises:
        ValueError: What is no unlearner or no function; at the first step, an augmentation that
            changes the shape.

    Source: the protocol of SalUn's public code and of arXiv 2508.18502.
    """
    if not (hasattr(method, "step") and hasattr(method, "epoch_over")):
        raise ValueError(f"`method` must be an unlearner, got {type(method).__name__}.")
    if not callable(augment):
        raise ValueError(f"`augment` must be a function (key, x), got {type(augment).__name__}.")
    return Augmented(method, augment, method.epoch_over)
