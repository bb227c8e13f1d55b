"""The influence identity in each reading of the paper's words, and FAMR repaired to obey it."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from experiments.famr.steps import between, cosine, derivatives, distance
from famr_jax import minimise
from famr_jax.curvature import Hessian, Identity
from famr_jax.methods.famr import AnchoredUniform
from famr_jax.types import ApplyFn, Context, Pair, Params, pytree


@pytree
class LinearisedAscent:
    """FAMR repaired: -<g, d> + 1/2 d^T A d with d = params - anchor, least at d = A^-1 g.

    With g = g_T / n, the forgotten gradients of the training loss, and A the Hessian of the
    retained objective it is the Newton removal. The anchor's metric A is what carries the retained
    data; an isotropic one knows nothing of them.
    """

    gradient: Any
    metric: Any

    def __call__(self, params, context, pair, key):
        del pair, key
        step = jax.tree.map(jnp.subtract, params, context.anchor)
        return _dot(step, self.metric(step)) / 2 - _dot(self.gradient, step), {}


def identity(
    apply_fn: ApplyFn,
    anchor: Params,
    pair: Pair,
    *,
    full: np.ndarray,
    pull: np.ndarray,
    steps: Mapping[float, np.ndarray],
) -> dict[str, Any]:
    """Takes the residual of the influence identity in each reading of the paper's words.

        ||(H + lam I) step + sum_T grad l|| / ||sum_T grad l||

    `training`: l is cross-entropy and H the Hessian of the training objective, as influence needs.
    `training, plus`: the same with the other sign. `forget`: l is FAMR's own loss and H its Hessian
    at the anchor. `path`: that Hessian averaged on the way, which is exact. All in the paper's
    scale, where sums run over examples and lam is |T| times ours.

    Args:
        apply_fn: The model.
        anchor: The trained weights.
        pair: The forget set and the rest of the training set.
        full: The Hessian of the training objective, a mean.
        pull: g_T, the sum of the training loss's gradients over the forget set.
        steps: FAMR's step by lam.
    """
    forgetting, m = Pair(pair.forget, None), len(pair.forget)
    bare, total = AnchoredUniform(apply_fn, 0.0, float(m)), (m + len(pair.retain)) * full
    pushed, curvature = derivatives(bare, anchor, forgetting)
    rows = []
    for lam, step in steps.items():
        anchored = m * lam * step
        averaged = np.asarray(minimise.along_path(bare, anchor, step, forgetting))
        rows.append(
            {
                "lam": lam,
                "training": distance(total @ step + anchored, -pull),
                "training, plus": distance(total @ step + anchored, pull),
                "forget": distance(curvature @ step + anchored, -pushed),
                "path": distance(averaged + anchored, -pushed),
                "cos_training": cosine(step, -pull),
            }
        )
    return {"rows": rows, "cos_gradients": cosine(pushed, pull)}


def repair(
    apply_fn: ApplyFn,
    anchor: Params,
    pair: Pair,
    *,
    l2: float,
    pull: np.ndarray,
    newton: np.ndarray,
) -> dict[str, Any]:
    """Descends `LinearisedAscent` by L-BFGS: how far from the dense Newton step it ends."""
    kept = len(pair.retain)
    n = kept + len(pair.forget)
    retained = Hessian(minimise.loss_fn(apply_fn), anchor, pair.retain)
    slope = ravel_pytree(anchor)[1](jnp.asarray(pull / n))
    objective = LinearisedAscent(slope, (kept / n) * retained + l2 * Identity())
    nothing = Pair(None, None)
    found = minimise.minimise(
        objective, anchor, Context(anchor), nothing, key=jax.random.key(0), tol=1e-13
    )
    apart = distance(between(anchor, found.params), newton)
    return {"distance": apart, "num_steps": int(found.num_steps)}


def _dot(a, b):
    return jnp.vdot(ravel_pytree(a)[0], ravel_pytree(b)[0])
