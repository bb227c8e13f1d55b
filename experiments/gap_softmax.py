"""Softmax regression in float64, where every weight of the comparison is exact.

Original w0, retrained w*, FAMR's stationary points, the influence step and the Newton step are
minimisers or dense solves. The training objective is (1/n) sum l + l2/2 ||params||^2; retraining
without m examples either keeps n or divides by n - m, two conventions with two different w*.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.flatten_util import ravel_pytree

from experiments.workbench import Case
from famr_jax import metrics, minimise, models
from famr_jax.curvature import Hessian, Identity
from famr_jax.methods.famr import AnchoredUniform
from famr_jax.types import Batch, Context, Pair, Params, pytree

CONVENTIONS = ("n", "n-m")


class Trained(NamedTuple):
    """The original model and what it was trained on, in float64."""

    model: models.Model
    params: Params
    train: Batch
    test: Batch
    l2: float
    converged: bool


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
        dot = lambda a, b: jnp.vdot(ravel_pytree(a)[0], ravel_pytree(b)[0])  # noqa: E731
        step = jax.tree.map(jnp.subtract, params, context.anchor)
        return dot(step, self.metric(step)) / 2 - dot(self.gradient, step), {}


def train(train: Batch, test: Batch, *, num_classes: int, l2: float) -> Trained:
    """The exact minimiser of the training objective on everything; needs `jax.enable_x64`."""
    train, test = minimise.double((train, test))
    shape = train.x.shape[1:]
    model = models.create("logistic", num_classes=num_classes, image_shape=shape)
    start = minimise.double(model.init(jax.random.key(0)))
    objective = minimise.Ridge(model.apply, l2, float(len(train)))
    found = minimise.newton(objective, start, Context(start), Pair(None, train))
    return Trained(model, found.params, train, test, l2, bool(found.converged))


def compare(trained: Trained, case: Case, lams: Sequence[float]) -> dict[str, Any]:
    """One forget set: FAMR over `lams`, one-step predictions and retrained models, by weights."""
    apply_fn, anchor, l2 = trained.model.apply, trained.params, trained.l2
    pair = minimise.split(trained.train, case.mask)
    forgetting, everything = Pair(pair.forget, None), Pair(None, trained.train)
    n, m = len(case.mask), int(case.mask.sum())

    _, full = _derivatives(minimise.Ridge(apply_fn, l2, float(n)), anchor, everything)
    retrained, newton, converged = {}, {}, [trained.converged]
    for convention, count in zip(CONVENTIONS, (n, n - m), strict=True):
        objective = minimise.Ridge(apply_fn, l2, float(count))
        found = minimise.newton(objective, anchor, Context(anchor), pair)
        converged.append(bool(found.converged))
        retrained[convention] = _step(anchor, found.params)
        slope, curvature = _derivatives(objective, anchor, pair)
        newton[convention] = -np.linalg.solve(curvature, slope)
    pull = forgotten_gradient(trained, pair)
    influence = np.linalg.solve(full, pull / n)
    ends = [
        minimise.newton(AnchoredUniform(apply_fn, lam), anchor, Context(anchor), forgetting)
        for lam in lams
    ]
    steps = [_step(anchor, end.params) for end in ends]
    limit = _step(anchor, uniform_on(anchor, pair.forget.x))

    described = _describer(trained, case, retrained, newton["n"])
    famr = [
        {
            "lam": lam,
            "converged": bool(end.converged),
            "num_steps": int(end.num_steps),
            "to_limit": distance(step, limit),
            **described(step),
        }
        for lam, end, step in zip(lams, ends, steps, strict=True)
    ]
    least = float(np.linalg.eigvalsh(full)[0])
    # The paper's lam / lambda_min^2 in its own scale: sums, where lam is m times the mean form's.
    promised = [m * lam * np.linalg.norm(pull) / (n * least) ** 2 for lam in lams]
    return {
        "forget": case.spec,
        "num_forget": m,
        "num_train": n,
        "trained_converged": all(converged),
        "conventions_apart": distance(retrained["n-m"], retrained["n"]),
        "points": {
            "original": described(np.zeros_like(limit)),
            "influence": described(influence),
            "newton": described(newton["n"]),
            "newton n-m": described(newton["n-m"]),
            "paper's sign": described(-influence),
            "limit": described(limit),
        },
        "famr": famr,
        "identity": identity(trained, pair, full, dict(zip(lams, steps, strict=True))),
        "repair": repair(trained, pair, newton["n"]),
        "bound": {
            "lambda_min": least,
            "over": [
                np.linalg.norm(step - retrained["n"]) / most
                for step, most in zip(steps, promised, strict=True)
            ],
        },
    }


def _describer(trained, case, retrained, newton):
    """`step -> dict`: where original + step lies, in weights and in outputs."""
    flat, unravel = ravel_pytree(trained.params)
    kept = trained.test[np.flatnonzero(~np.isin(trained.test.labels, case.classes))]
    forget = trained.train[np.flatnonzero(case.mask)]

    @jax.jit
    def outputs(step):
        params = unravel(flat + step)
        return {s: trained.model.apply(params, x) for s, x in inputs.items()}

    inputs = {"forget": forget.x, "test": kept.x}
    oracle = outputs(retrained["n"])

    def described(step):
        logits = outputs(step)
        return {
            "moved": float(np.linalg.norm(step)),
            "to_retrained": {c: distance(step, goal) for c, goal in retrained.items()},
            "to_newton": distance(step, newton),
            "cos_retrained": cosine(step, retrained["n"]),
            "cos_newton": cosine(step, newton),
            **{f"kl_{s}": float(jnp.mean(metrics.kl(oracle[s], logits[s]))) for s in inputs},
            "acc_test": float(metrics.accuracy(logits["test"], kept.labels)),
        }

    return described


def forgotten_gradient(trained: Trained, pair: Pair) -> np.ndarray:
    """g_T, the sum of the training loss's gradients over the forget set."""
    plain_sum = minimise.Ridge(trained.model.apply, 0.0, 1.0)
    return _derivatives(plain_sum, trained.params, Pair(None, pair.forget))[0]


def identity(
    trained: Trained, pair: Pair, full: np.ndarray, steps: dict[float, np.ndarray]
) -> dict[str, Any]:
    """||(H + lam I) step + sum_T grad l|| / ||sum_T grad l|| in each reading of the paper's words.

    `training`: l is cross-entropy and H the Hessian of the training objective, as influence needs.
    `training, plus`: the same with the other sign. `forget`: l is FAMR's own loss and H its Hessian
    at the anchor. `path`: that Hessian averaged on the way, which is exact. All in the paper's
    scale, where sums run over examples and lam is |T| times ours.
    """
    forgetting, m, n = Pair(pair.forget, None), len(pair.forget), len(trained.train)
    bare = AnchoredUniform(trained.model.apply, 0.0, float(m))
    pushed, curvature = _derivatives(bare, trained.params, forgetting)
    pull = forgotten_gradient(trained, pair)
    rows = []
    for lam, step in steps.items():
        anchored = m * lam * step
        averaged = np.asarray(minimise.along_path(bare, trained.params, step, forgetting))
        rows.append(
            {
                "lam": lam,
                "training": distance(n * full @ step + anchored, -pull),
                "training, plus": distance(n * full @ step + anchored, pull),
                "forget": distance(curvature @ step + anchored, -pushed),
                "path": distance(averaged + anchored, -pushed),
                "cos_training": cosine(step, -pull),
            }
        )
    return {"rows": rows, "cos_gradients": cosine(pushed, pull)}


def repair(trained: Trained, pair: Pair, newton: np.ndarray) -> dict[str, Any]:
    """Descends `LinearisedAscent` by L-BFGS: how far from the dense Newton step it ends."""
    anchor, n = trained.params, len(trained.train)
    retained = Hessian(minimise.loss_fn(trained.model.apply), anchor, pair.retain)
    metric = (len(pair.retain) / n) * retained + trained.l2 * Identity()
    pull = ravel_pytree(anchor)[1](jnp.asarray(forgotten_gradient(trained, pair) / n))
    repaired = LinearisedAscent(pull, metric)
    found = minimise.minimise(
        repaired, anchor, Context(anchor), Pair(None, None), key=None, tol=1e-13
    )
    return {
        "distance": distance(_step(anchor, found.params), newton),
        "num_steps": int(found.num_steps),
    }


def uniform_on(params: Params, x: Array) -> Params:
    """The weights nearest to `params` whose outputs on x are uniform: a projection.

    Logits (x, 1) W are equal over the classes where W without its mean over the classes vanishes on
    the span of the inputs. It is the limit of FAMR's end point as lam goes to 0.
    """
    weights = jnp.concatenate([params["head"]["kernel"], params["head"]["bias"][None]])
    inputs = jnp.concatenate([x.reshape(len(x), -1), jnp.ones((len(x), 1))], axis=1)
    centred = weights - jnp.mean(weights, axis=1, keepdims=True)
    weights = weights - jnp.linalg.pinv(inputs) @ (inputs @ centred)
    return {"head": {"kernel": weights[:-1], "bias": weights[-1]}}


def cosine(a: np.ndarray, b: np.ndarray) -> float | None:
    """Cosine of the angle of two vectors; None if one of them is zero."""
    norms = np.linalg.norm(a) * np.linalg.norm(b)
    return float(np.vdot(a, b) / norms) if norms > 0 else None


def distance(a: np.ndarray, b: np.ndarray) -> float:
    """||a - b|| / ||b||."""
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


def _derivatives(objective, params, pair):
    return tuple(
        np.asarray(d) for d in minimise.derivatives(objective, params, Context(params), pair)
    )


def _step(start: Params, end: Params) -> np.ndarray:
    return np.asarray(ravel_pytree(end)[0] - ravel_pytree(start)[0])
