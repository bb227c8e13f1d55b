"""Both sides of every certificate of `famr_jax.certify`, measured on one trained model."""

import functools
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from jax.flatten_util import ravel_pytree

from famr_jax import certify, curvature, metrics, minimise, models
from famr_jax.certify import segment
from famr_jax.losses import uniform_kl
from famr_jax.methods.famr import AnchoredUniform
from famr_jax.types import Batch, Context, Pair, Params

DENSE = 2000
"""Up to so many weights, matrices are written out; above, Lanczos and conjugate gradients."""

PAPERS_STEP, RATE_STEPS, STATIONARY = 1e-4, 20, 1e-3


class Problem(NamedTuple):
    """A trained model, in float64.

    Attributes:
        name: For the report.
        model: The architecture.
        anchor: The trained weights.
        l2: Ridge of the training objective, or the damping that stands in for one.
        has_ridge: Whether it was the training objective's.
        convex: Whether the forget loss is convex in the weights, which is then proved.
        points: Nodes on each segment.
        tol: Of FAMR's end: how far its gradient falls.
    """

    name: str
    model: models.Model
    anchor: Params
    l2: float
    has_ridge: bool
    convex: bool
    points: int
    tol: float


class Measurement:
    """One model and one forget set: what the certificates at every lam share."""

    def __init__(self, problem: Problem, train: Batch, test: Batch, mask: np.ndarray, key: Array):
        self.problem, self.key, self.test = problem, key, test
        self.forget = train[np.flatnonzero(mask)]
        self.retain = train[np.flatnonzero(~mask)]
        self.forget_loss, self.outputs = _functions(problem.model.apply)
        self.loss_at_anchor, self.g = _loss_and_gradient(
            self.forget_loss, problem.anchor, self.forget
        )
        self.hessian_at_anchor = self.hessian(problem.anchor)
        self.lowest_forget = 0.0 if problem.convex else self.ends(self.hessian_at_anchor)[0]

        ridge = partial(minimise.Ridge, problem.model.apply, n=float(len(self.retain)))
        trained, pair = ridge(problem.l2), Pair(None, self.retain)
        # Without a ridge in training, l2 damps the solve and has no part in the gradient.
        bare = trained if problem.has_ridge else ridge(0.0)
        self.step_gradient = _gradient(bare, problem.anchor, problem.anchor, pair)
        gauss_newton = curvature.fisher(self.outputs, problem.anchor, self.retain)
        self.retained = gauss_newton + problem.l2 * curvature.Identity()
        step = self.solved(self.retained, self.step_gradient, 0.0)
        self.influence = optax.tree.sub(problem.anchor, step.value)
        self.step, self.step_converged = step.value, bool(step.converged)
        self.lowest_retained = self.lowest_of_retained()
        self.famr: dict[float, Params] = {}
        self.oracle = None
        if problem.has_ridge:
            settings = {"key": key, "tol": 1e-6, "max_steps": 5000}
            found = minimise.minimise(
                trained, problem.anchor, Context(problem.anchor), pair, **settings
            )
            self.oracle = found.params if found.converged else None

    def hessian(self, params: Params) -> curvature.Hessian:
        """Of the forget loss."""
        return curvature.Hessian(self.forget_loss, params, self.forget)

    def ends(self, matvec: Callable) -> tuple[float, float]:
        """Least and largest eigenvalue: dense, or by Lanczos with its residual."""
        if self.is_dense:
            values = np.linalg.eigvalsh(dense(matvec, self.problem.anchor))
            return float(values[0]), float(values[-1])
        return segment.curvature_range(matvec, self.problem.anchor, tol=1e-4, key=self.key)

    @property
    def is_dense(self) -> bool:
        """Whether matrices are written out."""
        return size(self.problem.anchor) <= DENSE

    def solved(self, matvec: Callable, b: Params, damping: float) -> curvature.Solution:
        """(A + damping I)^-1 b: dense, or by CG where A is a Gauss-Newton matrix, else MINRES."""
        if self.is_dense:
            flat, unravel = ravel_pytree(b)
            matrix = dense(matvec, b) + damping * np.eye(flat.size)
            value = unravel(jnp.asarray(np.linalg.solve(matrix, flat)))
            return curvature.Solution(value, 0.0, 0, True, False, 0)
        method = "minres" if isinstance(matvec, curvature.Hessian) else "cg"
        settings = {"tol": 1e-3, "max_steps": 300, "method": method}
        return curvature.solve(matvec, b, damping=damping, **settings)

    def lowest_of_retained(self) -> float:
        """lambda_min of the Gauss-Newton matrix of the retained data with its ridge."""
        outputs = len(self.retain) * self.problem.model.num_classes
        if outputs < size(self.problem.anchor):
            return self.problem.l2  # its rank is less than its size
        return max(self.ends(self.retained)[0], self.problem.l2)

    def curvature_between(self, start: Params, end: Params) -> tuple[segment.Along, segment.Along]:
        """Least and largest eigenvalue of the forget loss's Hessian, along the segment."""
        ends = lambda params: self.ends(self.hessian(params))  # noqa: E731
        low, high = segment.along(ends, start, end, points=self.problem.points)
        if self.problem.convex:
            low = segment.Along(0.0, 0.0, 0.0)
        return low, high

    def rows(self, lam: float) -> list[dict[str, Any]]:
        """Every certificate at one lam, for the JSON."""
        anchor, pair = self.problem.anchor, Pair(self.forget, None)
        objective = AnchoredUniform(self.problem.model.apply, jnp.asarray(lam))
        settings = {"key": self.key, "tol": self.problem.tol, "max_steps": 3000}
        end = minimise.minimise(objective, anchor, Context(anchor), pair, **settings)
        self.famr[lam] = end.params
        residual, start = float(end.grad_norm), float(optax.tree.norm(self.g))
        distance = apart(end.params, anchor)
        loss_at_end = float(_loss_and_gradient(self.forget_loss, end.params, self.forget)[0])
        low, high = self.curvature_between(anchor, end.params)
        judged = [
            certify.stationarity(residual, start, tol=STATIONARY),
            certify.strong_convexity(low.low, lam),
            certify.step_rule(PAPERS_STEP, high.high, lam),
            self.rate(objective, end.params, residual, (low.low, high.high), lam),
            certify.anchor_distance(distance, start, lam, residual=residual)._replace(
                name="distance, as if convex"
            ),
            certify.anchor_distance(distance, start, lam, lowest=low.mean, residual=residual),
            certify.descent_distance(distance, float(self.loss_at_anchor), loss_at_end, lam),
            self.newton(end.params, residual, lam),
            *self.influences(objective, end.params, residual, lam),
        ]
        return [{"lam": lam, **_plain(certificate)} for certificate in judged]

    def rate(
        self, objective, end: Params, residual: float, ends: tuple[float, float], lam: float
    ) -> certify.Certificate:
        """Gradient descent at 1/(L + lam) from the anchor; curvatures from three iterates on."""
        step = 1 / (ends[1] + lam)
        iterates, distances = _descend(objective, self.problem.anchor, end, self.forget, step)
        ranges = [ends]
        if ends[0] + lam > 0:
            along = [self.curvature_between(iterate, end) for iterate in iterates[1:]]
            ranges += [(low.low, high.high) for low, high in along]
        lowest, highest = min(low for low, _ in ranges), max(high for _, high in ranges)
        error = residual / (lowest + lam) if lowest + lam > 0 else 0.0
        return certify.linear_rate(distances, step, lowest, highest, lam, error=error)

    def newton(self, end: Params, residual: float, lam: float) -> certify.Certificate:
        """FAMR's step beside the damped Newton step on the forget loss."""
        anchor, lowest = self.problem.anchor, self.lowest_forget
        moved = optax.tree.sub(end, anchor)
        distance = float(optax.tree.norm(moved))
        if lowest + lam <= 0:
            return certify.newton_gap(None, 0.0, distance, lowest, lam)
        newton = self.solved(self.hessian_at_anchor, self.g, lam)
        gap = float(optax.tree.norm(optax.tree.add(moved, newton.value)))
        # What the solve leaves counts like a gradient that is left.
        residual += float(newton.residual * optax.tree.norm(self.g))
        change = lambda p: self.hessian(p) + (-1.0) * self.hessian_at_anchor  # noqa: E731
        # Of the zero operator, at the anchor itself, Lanczos finds no end.
        drift = lambda p: max(map(abs, self.ends(change(p)))) if apart(p, anchor) else 0.0  # noqa: E731
        (drifted,) = segment.along(drift, anchor, end, points=self.problem.points)
        return certify.newton_gap(gap, drifted.mean, distance, lowest, lam, residual=residual)

    def influences(self, objective, end: Params, residual: float, lam: float) -> list:
        """FAMR's end beside the influence estimate: weights, and outputs on the test images."""
        norm, distance = float(optax.tree.norm(self.step_gradient)), apart(end, self.influence)
        damped = self.solved(self.retained, self.step_gradient, lam)
        gap = float(optax.tree.norm(optax.tree.sub(damped.value, self.step)))
        to_influence = certify.influence_distance(distance, norm, self.lowest_retained, lam)
        to_influence = if_solved(to_influence, self.step_converged)
        low, _ = self.curvature_between(end, self.influence)
        pair = Pair(self.forget, None)
        there = _gradient(objective, self.influence, self.problem.anchor, pair)
        norms = (residual, float(optax.tree.norm(there)))
        slope = lambda p: segment.output_slope(self.outputs, p, self.test, key=self.key)  # noqa: E731
        (slopes,) = segment.along(slope, end, self.influence, points=self.problem.points)
        logits = [self.outputs(params, self.test) for params in (end, self.influence)]
        outputs = segment.output_gap(*logits)
        divergence = certify.output_divergence(outputs, slopes.mean, distance)
        forget_norm = float(optax.tree.norm(self.g))
        resolvent = certify.resolvent(gap, norm, self.lowest_retained, lam)
        return [
            if_solved(resolvent, self.step_converged and bool(damped.converged)),
            to_influence,
            certify.influence_distance(distance, forget_norm, self.lowest_forget, lam)._replace(
                name="distance to influence, H of forget"
            ),
            certify.minimum_distance(distance, norms, low.mean + lam),
            divergence,
            chained(to_influence, divergence, slopes.mean),
        ]

    def context(self) -> dict[str, Any]:
        """Sizes, and how far doing nothing, influence and FAMR's ends are from the oracle.

        The oracle is the retrained optimum; there is none of a model trained without a ridge.
        """
        logits = self.outputs(self.problem.anchor, self.test)
        found = {
            "num_params": size(self.problem.anchor),
            "num_forget": len(self.forget),
            "num_retain": len(self.retain),
            "lowest_retained": self.lowest_retained,
            "lowest_forget": self.lowest_forget,
            "influence_step": float(optax.tree.norm(self.step)),
            "influence_converged": self.step_converged,
            "test_acc": float(metrics.accuracy(logits, self.test.labels)),
        }
        if self.oracle is not None:
            found["to_oracle"] = {
                "do_nothing": apart(self.problem.anchor, self.oracle),
                "influence": apart(self.influence, self.oracle),
                "famr": {lam: apart(end, self.oracle) for lam, end in self.famr.items()},
            }
        return found


def if_solved(certificate: certify.Certificate, solved: bool) -> certify.Certificate:
    """The certificate, vacuous where what it measures is not what it speaks of."""
    if solved or certificate.verdict == "vacuous":
        return certificate
    why = "the influence step was not solved to its tolerance"
    return certificate._replace(bound=None, verdict="vacuous", why=why)


def chained(weights: certify.Certificate, outputs: certify.Certificate, slope: float):
    """The paper's bound on the outputs: the Jacobian norm times its bound on the weights."""
    name = "output divergence, paper's"
    if weights.bound is None:
        return weights._replace(name=name, measured=outputs.measured)
    bound = slope * weights.bound
    verdict = "holds" if outputs.measured <= bound else "violated"
    return certify.Certificate(name, outputs.measured, bound, verdict)


def trained(model: models.Model, train: Batch, *, l2: float, key: Array) -> Params:
    """The minimum of the training objective that L-BFGS reaches from fresh weights."""
    fresh = minimise.double(model.init(key))
    ridge, pair = minimise.Ridge(model.apply, l2, float(len(train))), Pair(None, train)
    found = minimise.minimise(ridge, fresh, Context(fresh), pair, key=key, tol=1e-7, max_steps=5000)
    return found.params


def apart(params: Params, other: Params) -> float:
    """Euclidean distance over all weights."""
    return float(optax.tree.norm(optax.tree.sub(params, other)))


def dense(matvec: Callable, like: Params) -> np.ndarray:
    """All of a small operator, `[dim, dim]`."""
    return np.asarray(curvature.matrix_of(matvec, like, at_once=50).array)


def size(params: Params) -> int:
    """Number of weights."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))


@functools.cache
def _functions(apply_fn):
    """The forget loss and the outputs; the same objects for the same model, which jit relies on."""
    return (
        lambda params, batch: uniform_kl(apply_fn(params, batch.x)),
        lambda params, batch: apply_fn(params, batch.x),
    )


@partial(jax.jit, static_argnums=0)
def _loss_and_gradient(loss_fn, params, batch):
    return jax.value_and_grad(lambda params: jnp.mean(loss_fn(params, batch)))(params)


@jax.jit
def _gradient(objective, params, anchor, pair):
    return jax.grad(lambda params: objective(params, Context(anchor), pair, None)[0])(params)


@jax.jit
def _descend(objective, anchor, end, forget, step):
    """First, middle and last iterate of plain descent, and every distance to the end."""

    def body(params, _):
        grad = _gradient(objective, params, anchor, Pair(forget, None))
        moved = optax.tree.add_scale(params, -step, grad)
        return moved, moved

    _, later = jax.lax.scan(body, anchor, length=RATE_STEPS)
    path = jax.tree.map(lambda a, b: jnp.concatenate([a[None], b]), anchor, later)
    gaps = jax.vmap(lambda params: optax.tree.norm(optax.tree.sub(params, end)))(path)
    at = lambda i: jax.tree.map(lambda leaf: leaf[i], path)  # noqa: E731
    return [at(0), at(RATE_STEPS // 2), at(RATE_STEPS)], gaps


def _plain(certificate: certify.Certificate) -> dict[str, Any]:
    return {"certificate": certificate.name, **certificate._asdict(), "ratio": certificate.ratio}
