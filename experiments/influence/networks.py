"""Networks, their training, and removal by both routes: what the dual experiments share."""

from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from famr_jax import data, forget, metrics, minimise
from famr_jax.curvature import GaussNewton, Hessian, Identity, Solution, solve
from famr_jax.influence import dual, kernels
from famr_jax.losses import l2_anchor
from famr_jax.types import Batch, Context, Pair, Params, pytree, static

WEIGHT_STD, BIAS_STD = 2.0, 0.1  # the paper's
CLASSES = 10
LOSSES = {"squared": dual.SQUARED, "cross_entropy": dual.CROSS_ENTROPY}
WORDS = {"squared": "squared loss", "cross_entropy": "cross-entropy"}


class Effort(NamedTuple):
    """How far conjugate gradients go: the wanted relative residual, and products to give up at."""

    tol: float
    max_steps: int


TIGHT, LOOSE = Effort(1e-12, 20_000), Effort(1e-8, 5000)


@jax.jit
def network(params: Params, x: Array) -> Array:
    """A fully connected network in tangent-kernel parameters, smooth where the paper's has kinks.

    On the kinks of ReLU, L-BFGS finds no stationary point of the network that is not linearised.
    """
    x = x.reshape(len(x), -1)
    for i, (kernel, bias) in enumerate(params):
        x = jax.nn.gelu(x) if i else x
        x = WEIGHT_STD * x @ kernel / jnp.sqrt(len(kernel)) + BIAS_STD * bias
    return x


def init(key: Array, *sizes: int) -> Params:
    """Standard normal weights of layers of these sizes, in float64."""
    keys = jax.random.split(key, (len(sizes) - 1, 2))
    draw = partial(jax.random.normal, dtype=jnp.float64)
    pairs = zip(keys, sizes[:-1], sizes[1:], strict=True)
    return [(draw(k[0], (fan_in, fan_out)), draw(k[1], (fan_out,))) for k, fan_in, fan_out in pairs]


@pytree
class Ridge:
    """(1/n) sum_i l(f_i, y_i) + l2/2 |params - centre|^2 over the retained set.

    `model` is the network itself or its linearisation, an argument of jit either way.
    """

    loss: dual.Loss = static()
    model: Callable
    l2: float

    def __call__(self, params, context, pair, key):
        del key
        values = self.loss.value(self.model(params, pair.retain.x), pair.retain.labels)
        return jnp.mean(values) + self.l2 * l2_anchor(params, context.anchor), {}

    @jax.jit
    def value_and_grad(self, params: Params, centre: Params, batch: Batch) -> tuple[Array, Params]:
        """The objective over a batch, and its gradient."""

        def value(params):
            return self(params, Context(centre), Pair(None, batch), None)[0]

        return jax.value_and_grad(value)(params)


class _Seen(NamedTuple):
    """A batch whose outputs are shifted: those of a linearised model, seen from its centre."""

    x: Array
    labels: Array
    shift: Array


def _outputs(params, seen):
    return network(params, seen.x)


@cache  # one object a loss, as below: jit knows a static function by identity
def _of_outputs(loss):
    def values(outputs, seen):
        return loss.value(outputs + seen.shift, seen.labels)

    return values


@cache
def _of_params(loss):
    def values(params, batch):
        return loss.value(network(params, batch.x), batch.labels)

    return values


def gauss_newton(loss: dual.Loss, params: Params, batch: Batch, outputs: Array) -> GaussNewton:
    """J^T A J: the network's Jacobian at `params`, the loss's curvature A at `outputs`.

    At the centre it is the Hessian of the linearised model.
    """
    seen = _Seen(batch.x, batch.labels, outputs - network(params, batch.x))
    return GaussNewton(_outputs, _of_outputs(loss), params, seen)


def hessian(loss: dual.Loss, params: Params, batch: Batch) -> Hessian:
    """The Hessian of the network's mean loss."""
    return Hessian(_of_params(loss), params, batch)


@jax.jit
def newton(curve: Callable, gradient: Params, l2: float, effort: Effort) -> Solution:
    """-(H + l2 I)^-1 gradient: the primal route, with the gradient over the retained set."""
    downhill = optax.tree.scale(-1.0, gradient)
    matrix = curve + l2 * Identity()
    return solve(matrix, downhill, tol=effort.tol, max_steps=effort.max_steps)


def train_linearised(ridge: Ridge, centre: Params, batch: Batch) -> tuple[Params, float]:
    """The minimum of a linearised model, from its centre, by Newton's method in parameter space.

    Returns:
        Its parameters, and its gradient's norm over that at the centre: above `TIGHT.tol`, it is
        no minimum.
    """
    params = centre
    value, gradient = ridge.value_and_grad(params, centre, batch)
    first = norm(gradient)
    for _ in range(50):
        if norm(gradient) <= TIGHT.tol * first:
            break
        curve = gauss_newton(ridge.loss, centre, batch, ridge.model(params, batch.x))
        step = newton(curve, gradient, ridge.l2, TIGHT._replace(tol=1e-6)).value
        for halvings in range(20):
            moved = optax.tree.add_scale(params, 0.5**halvings, step)
            new_value, gradient = ridge.value_and_grad(moved, centre, batch)
            if new_value <= value * (1 + 1e-14):
                break
        params, value = moved, new_value
    return params, norm(gradient) / first


def train_network(ridge: Ridge, start: Params, centre: Params, batch: Batch) -> minimise.Minimum:
    """A stationary point of the network that is not linearised, by L-BFGS from a start."""
    context, pair, key = Context(centre), Pair(None, batch), jax.random.key(0)
    return minimise.minimise(ridge, start, context, pair, key=key, tol=1e-6, max_steps=10_000)


def norm(tree: Any) -> float:
    """Euclidean norm."""
    return float(_norm(tree))


def error(estimate: Any, true: Any) -> float:
    """||estimate - true|| / ||true|| of changes: 0 is retraining, 1 is doing nothing."""
    return norm(_sub(estimate, true)) / norm(true)


_norm, _sub = jax.jit(optax.tree.norm), jax.jit(optax.tree.sub)


def status(found: Solution) -> dict[str, Any]:
    """What a solver says of its answer."""
    return {
        "converged": bool(found.converged),
        "residual": float(found.residual),
        "products": int(found.num_steps),
        "negative_curvature": bool(found.negative_curvature),
        "why": found.why,
    }


def by_dual(
    loss: dual.Loss,
    kernel: kernels.TangentKernel,
    train: Batch,
    outputs: Array,
    mask: np.ndarray,
    l2: float,
    effort: Effort,
    *,
    gram: kernels.Gram | None = None,
) -> tuple[Params, Solution]:
    """The dual route, matrix-free unless a Gram matrix is given: the move, and the dual weights."""
    found = dual.remove(
        loss,
        gram or kernel.gram(train.x, form="matrix-free"),
        outputs,
        train.labels,
        mask,
        l2=l2,
        normaliser="n-m",
        tol=effort.tol,
        max_steps=effort.max_steps,
    )
    return kernel.to_params(train.x, found.value), found


def random_mask(share: float, size: int, seed: int) -> np.ndarray:
    """A random forget set, another for each share."""
    return forget.at_random(share, size=size, seed=round(1000 * share) + 10_000 * seed)


def accuracy(outputs: Array, labels: Array) -> float:
    """The share of images whose largest output is that of their class."""
    return float(metrics.accuracy(outputs, labels))


def accuracies(labels: Array, outputs: Mapping[str, Array]) -> dict[str, float]:
    """The accuracy of each model from its outputs on the same images."""
    return {name: accuracy(out, labels) for name, out in outputs.items()}


def load_digits(data_dir: Path | None) -> tuple[Batch, Batch]:
    """Training and test images in float64."""
    digits = data.load("digits", data_dir=data_dir)
    return minimise.double(digits.train.batch()), minimise.double(digits.test.batch())


def means(rows: Sequence[Mapping[str, Any]], *by: str, of: Sequence[str]) -> list[dict[str, Any]]:
    """Means over the rows of a JSON that agree in the columns `by`, in order of appearance.

    Args:
        rows: A dict each.
        by: What names the groups.
        of: Columns of numbers, or of dicts of them, to average; null gives NaN.
    """
    groups: dict[tuple, list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault(tuple(row[name] for name in by), []).append(row)
    return [
        dict(zip(by, key, strict=True)) | {name: _mean([row[name] for row in same]) for name in of}
        for key, same in groups.items()
    ]


def _mean(values):
    if isinstance(values[0], Mapping):
        return {name: _mean([value[name] for value in values]) for name in values[0]}
    return float(np.mean(np.asarray(values, np.float64)))
