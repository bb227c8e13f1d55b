"""Descent-ascent: descend the loss on the retained set, ascend it on the forget set."""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array

from famr_jax.losses import cross_entropy
from famr_jax.types import ApplyFn, Params, check_count, check_number, pytree, static


class DescentAscentState(NamedTuple):
    """What the next step needs; `num_steps` counts the steps taken."""

    params: Params
    opt_state: optax.OptState
    num_steps: Array


@pytree
class DescentAscent:
    """The unlearner behind `descent_ascent`, which says what its fields mean."""

    apply_fn: ApplyFn = static()
    optimizer: optax.GradientTransformation = static()
    forget_weight: float = 1.0
    ascent_steps: int | None = None
    epoch_over: Literal["forget", "retain"] = static("retain")

    def init(self, params, forget, retain, key) -> DescentAscentState:
        del forget, retain, key
        params = jax.tree.map(jnp.copy, params)
        return DescentAscentState(params, self.optimizer.init(params), jnp.zeros((), jnp.int32))

    def step(self, state, pair, key):
        del key
        weight = self.forget_weight
        if self.ascent_steps is not None:
            weight = jnp.where(state.num_steps < self.ascent_steps, weight, 0.0)

        def objective(params):
            retain, forget = (
                jnp.mean(cross_entropy(self.apply_fn(params, batch.x), batch.labels))
                for batch in (pair.retain, pair.forget)
            )
            return retain - weight * forget, {"retain": retain, "forget": forget}

        (value, terms), grads = jax.value_and_grad(objective, has_aux=True)(state.params)
        updates, opt_state = self.optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        info = {"objective": value, **terms, "grad_norm": optax.tree.norm(grads)}
        return DescentAscentState(params, opt_state, state.num_steps + 1), info


def descent_ascent(
    apply_fn: ApplyFn,
    *,
    forget_weight: float = 1.0,
    ascent_steps: int | None = None,
    optimizer: optax.GradientTransformation,
) -> DescentAscent:
    """Descends the retained loss and ascends the forget loss in every step: GDA, step by step.

        J(params) = mean_R l(x, y; params) - w mean_F l(x, y; params)

    w = 1 is the objective of the paper's theory. w = |F|/|R| weighs every example alike; so does,
    to first order in the step of SGD, the paper's loop of |F|/B steps of ascent and then |R|/B of
    descent an epoch.

    Args:
        apply_fn: The model.
        forget_weight: w, >= 0; 0 is fine-tuning on the retained set.
        ascent_steps: Steps after which w is 0; None for never. The paper ascends in the first 3 or
            5 of 5 to 10 epochs, an epoch being ceil(|R|/B) steps.
        optimizer: Any optax transformation; the paper's steps are 5e-5 to 5e-3.

    Raises:
        ValueError: `forget_weight` negative or not finite; `ascent_steps` below one.

    Source: the baseline GDA, or DA, of Ascent Fails to Forget (arXiv 2509.26427).
    """
    check_number("forget_weight", forget_weight, least=0)
    if ascent_steps is not None:
        check_count("ascent_steps", ascent_steps)
    return DescentAscent(apply_fn, optimizer, forget_weight, ascent_steps)
