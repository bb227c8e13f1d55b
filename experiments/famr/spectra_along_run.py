"""Spectra along FAMR's run: its path, the losses as a surface, and all that a point of it shows."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from experiments.famr.spectra import by_group, gauss_newton
from famr_jax import curvature, losses, mesh, metrics, unlearn
from famr_jax.store import NonFiniteError
from famr_jax.types import ApplyFn, Batch, Params, Unlearner

FORMS = ("mean", "sum")  # of the objective: the weight of its forget term is 1, or |T|
AT_ONCE = 512  # images whose activations are held at a time


def path(
    method: Unlearner,
    anchor: Params,
    forget: Batch,
    *,
    epochs: Sequence[int],
    batch_size: int,
    key: Array,
) -> Iterator[tuple[int, Params]]:
    """The weights of an unlearning run at some epochs, in order, of which 0 is the anchor."""
    yield 0, anchor
    for epoch, state, info in unlearn.run_epochs(
        method,
        mesh.split(unlearn.begin(method, anchor, forget, key=key)),
        forget,
        epochs=epochs[-1],
        batch_size=batch_size,
        key=key,
    ):
        if not np.all(info["finite"]):
            raise NonFiniteError("famr", epoch)
        if epoch in epochs:
            yield epoch, jax.tree.map(jnp.copy, state.params)  # the next epoch takes the buffers


def _uniform_kl(logits: Array, batch: Batch) -> Array:
    del batch
    return losses.uniform_kl(logits)


@dataclass(frozen=True, eq=False)
class Surface:
    """The losses of a model on samples of a forget and a retained set, and their Hessians.

    Attributes:
        apply_fn: The model.
        forget: Forgotten images.
        retain: Retained images.
    """

    apply_fn: ApplyFn
    forget: Batch
    retain: Batch

    def outputs(self, params: Params, batch: Batch) -> Array:
        """Logits, `[n, num_classes]`."""
        return self.apply_fn(params, batch.x)

    def forget_loss(self, params: Params, batch: Batch) -> Array:
        """KL(u || p), one value an image."""
        return losses.uniform_kl(self.apply_fn(params, batch.x))

    def retain_loss(self, params: Params, batch: Batch) -> Array:
        """Cross-entropy, one value an image."""
        return losses.cross_entropy(self.apply_fn(params, batch.x), batch.labels)

    def slope(self, params: Params) -> tuple[Array, Params]:
        """The mean forget loss and its gradient."""
        return _slope(self.forget_loss, params, self.forget)

    def accuracy(self, params: Params, batch: Batch) -> Array:
        """Share of the images that are recognised."""
        logits = metrics.predict(self.apply_fn, params, batch.x)
        return metrics.accuracy(logits, batch.labels)

    def hessian(self, params: Params) -> curvature.Hessian:
        """Hessian of the mean forget loss."""
        return curvature.Hessian(self.forget_loss, params, self.forget, AT_ONCE)

    def retained(self, params: Params) -> curvature.Hessian:
        """Hessian of the mean retained loss."""
        return curvature.Hessian(self.retain_loss, params, self.retain, AT_ONCE)

    def gauss_newton(self, params: Params, batch: Batch) -> curvature.GaussNewton:
        """The part of the forget Hessian that the model's second derivatives do not enter."""
        return curvature.GaussNewton(self.outputs, _uniform_kl, params, batch, AT_ONCE)


@partial(jax.jit, static_argnums=0)
def _slope(loss_fn, params, batch):
    return jax.value_and_grad(lambda params: jnp.mean(loss_fn(params, batch)))(params)


def look(
    surface: Surface,
    params: Params,
    spectrum_of: Callable,
    *,
    lam: float,
    num_forget: int,
    rank_examples: int | None,
) -> dict[str, Any]:
    """Everything about one point of the path; layer groups and ranks if `rank_examples` is given.

    Args:
        surface: The losses.
        params: The weights.
        spectrum_of: `spectrum` with everything but the operator and `like` filled in.
        lam: FAMR's anchor strength.
        num_forget: Size of the forget set, the weight of the sum form.
        rank_examples: Images for the exact rank of the Gauss-Newton part.
    """
    hessian, retained = surface.hessian(params), surface.retained(params)
    loss, grads = surface.slope(params)
    grad_norm = optax.tree.norm(grads)
    forget, retain = ({"all": spectrum_of(each, params)} for each in (hessian, retained))
    least, most = forget["all"]["lambda_min"], forget["all"]["lambda_max"]
    weights = dict(zip(FORMS, (1.0, float(num_forget)), strict=True))
    convex = {"forget loss": convexity(least)}
    convex |= {form: convexity(least, lam=lam, weight=w) for form, w in weights.items()}
    definite = convex["forget loss"] == "convex"
    point = {
        "forget_loss": loss,
        "for_acc": surface.accuracy(params, surface.forget),
        "ret_acc": surface.accuracy(params, surface.retain),
        "grad_norm": grad_norm,
        "forget": forget,
        "retain": retain,
        "limit": {form: 1 / (w * most["value"] + lam) for form, w in weights.items()},
        "convex": convex,
        "bound": bound(lam, float(grad_norm), least["value"] if definite else 0.0),
    }
    if rank_examples is not None:
        forget |= by_group(spectrum_of, hessian, params)
        retain |= by_group(spectrum_of, retained, params)
        some = surface.forget[:rank_examples]
        exact = gauss_newton(surface.apply_fn, params, some.x, lam=lam)
        exact["bound"] = bound(lam, float(grad_norm), exact["smallest"])
        exact["by_lanczos"] = spectrum_of(surface.gauss_newton(params, some), params)
        residual = hessian + -1.0 * surface.gauss_newton(params, surface.forget)
        point |= {"residual": spectrum_of(residual, params), "gauss_newton": exact}
    return point


def convexity(end: dict[str, float], *, lam: float = 0.0, weight: float = 1.0) -> str:
    """Whether w H + lam I is positive definite, from the lambda_min of H and its error.

    Lanczos bounds lambda_min from above: "not convex" is proved, "convex" is what was found.
    """
    lowest = weight * end["value"] + lam
    if abs(lowest) <= weight * end["error"]:
        return "not resolved"
    return "convex" if lowest > 0 else "not convex"


def bound(lam: float, grad_norm: float, lambda_min: float) -> float | None:
    """The paper's bound lam |g| / (lambda_min (lambda_min + lam)); None if vacuous.

    It needs a positive definite Hessian.
    """
    return lam * grad_norm / (lambda_min * (lambda_min + lam)) if lambda_min > 0 else None
