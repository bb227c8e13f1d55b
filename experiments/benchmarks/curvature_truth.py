"""What the curvature benchmark measures on, and what is true there, in float64."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import scipy.stats
from jax.flatten_util import ravel_pytree
from sklearn.datasets import load_digits

from experiments.benchmarks import curvature_ours as ours
from experiments.benchmarks import curvature_peers as peers
from experiments.benchmarks.torch_vit import torch_layout
from famr_jax import train
from famr_jax.curvature import eigenvalues, solve
from famr_jax.loop import run_epochs
from famr_jax.types import Batch

LOOP = 10
MICRO_BATCH = 100
TOLERANCE = 1e-4


def make_problems(flags: Any) -> dict[str, Any]:
    """Networks trained on scikit-learn's digits, with a random unit vector: plain arrays."""
    digits = load_digits()
    x = (digits.images[: flags.size, :, :, None] / 8 - 1).astype(np.float32)
    data = Batch(jnp.asarray(x), jnp.asarray(digits.target[: flags.size], jnp.int32))
    sizes = {"k": flags.k, "steps": flags.steps, "probes": flags.probes, "loop": LOOP}
    sizes |= {"tol": TOLERANCE, "batch_size": min(MICRO_BATCH, flags.size)}
    problems = {}
    for name, architecture, damping in (("ViT", flags.vit, 20.0), ("MLP", flags.mlp, 0.2)):
        problem = {"model": architecture, "image_shape": (8, 8, 1), "num_classes": 10}
        model = ours.model_of(problem)
        init_key, fit_key, vector_key = jax.random.split(jax.random.key(flags.seed), 3)
        learner = train.Supervised(model.apply, optax.adam(1e-3))
        state = learner.init(model.init(init_key))
        fit = {"size": flags.size, "epochs": flags.epochs, "batch_size": 100, "key": fit_key}
        *_, (_, fitted, _) = run_epochs(learner, state, data, **fit)
        flat, unravel = ravel_pytree(fitted.params)
        v = jax.random.normal(vector_key, flat.shape)
        arrays = {"params": fitted.params, "v": unravel(v / jnp.linalg.norm(v))}
        arrays |= {"x": data.x, "labels": data.labels}
        problem |= jax.tree.map(np.asarray, arrays) | sizes | {"damping": damping}
        problems[name] = problem
    tenth = max(1, flags.size // 10)
    first = {"x": x[:tenth], "labels": np.asarray(data.labels[:tenth])}
    return problems | {"ViT of 100": problems["ViT"] | first}


class Truth:
    """Products in float64, and with them the error of any result.

    Attributes:
        agreement: Relative difference of one product to PyTorch's double backward in float64.
        order: Where each entry of a peer's flat vector stands in ours.
    """

    def __init__(self, problem: Mapping[str, Any], with_torch: bool):
        self.problem = problem

        def cast(leaf):
            return leaf.astype(np.float64) if leaf.dtype == np.float32 else leaf

        arrays = {name: problem[name] for name in ("params", "x", "labels", "v")}
        double = {**problem, **jax.tree.map(cast, arrays)}
        flat, unravel = ravel_pytree(problem["params"])
        numbers = unravel(jnp.arange(flat.size, dtype=jnp.float32))
        with jax.enable_x64(True):
            self.matvec = ours.hessian(double, problem["batch_size"])
            self.v = np.asarray(ravel_pytree(double["v"])[0])
        self.agreement, self.order = None, np.arange(flat.size)
        if with_torch:
            net = peers.Net(double, "float64")
            names, indices = [n for n, _ in net.net.named_parameters()], torch_layout(numbers)
            self.order = np.concatenate([indices[name].ravel() for name in names]).astype(int)
            theirs = self.to_ours(net.kept()(net.v))
            self.agreement = _relative(theirs, self(self.v))

    def __call__(self, v: np.ndarray) -> np.ndarray:
        """H v of a flat vector in our order."""
        with jax.enable_x64(True):
            return np.asarray(_flat_product(self.matvec, jnp.asarray(v, jnp.float64)))

    def to_ours(self, value: Any) -> np.ndarray:
        """A peer's flat vectors, in rows, in our order and float64."""
        value = np.asarray(value.detach() if hasattr(value, "detach") else value, np.float64)
        moved = np.empty_like(value)
        moved[..., self.order] = value
        return moved

    def error(self, task: str, value: Any, from_peer: bool) -> float:
        """How wrong a result is.

        Product: relative error. Eigenpairs: the largest ||H u - e u|| / e_1. Density: Wasserstein
        distance to the exact spectrum, of its range. Inverse: ||b - (H + damping I) x|| / ||b||.
        """
        move = self.to_ours if from_peer else _flatten
        if task in ("product", "fresh product", "held product"):
            return _relative(move(value), self(self.v))
        if task == "loop":
            v = self.v
            for _ in range(self.problem["loop"]):
                v = self(v)
                v = v / np.linalg.norm(v)
            return _relative(move(value), v)
        if task == "top":
            values, vectors = np.asarray(value[0], np.float64), move(value[1])
            vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
            pairs = zip(values, vectors, strict=True)
            return max(np.linalg.norm(self(u) - e * u) for e, u in pairs) / values.max()
        if task == "density":
            nodes, weights = (np.asarray(part, np.float64).ravel() for part in value)
            exact = self.spectrum
            distance = scipy.stats.wasserstein_distance(nodes, exact, weights)
            return distance / np.ptp(exact)
        x = move(value)
        return float(np.linalg.norm(self.v - self(x) - self.problem["damping"] * x))

    @property
    def spectrum(self) -> np.ndarray:
        """All eigenvalues of the float64 matrix."""
        size = len(self.v)
        with jax.enable_x64(True):
            columns = jax.lax.map(partial(_flat_product, self.matvec), jnp.eye(size))
        return np.linalg.eigvalsh(np.asarray(columns))


@jax.jit
def _flat_product(matvec, v):
    return ravel_pytree(matvec(ravel_pytree(matvec.params)[1](v)))[0]


def _flatten(value):
    flat = value if isinstance(value, jax.Array) else ravel_pytree(value)[0]
    return np.asarray(flat, np.float64)


def _relative(found: np.ndarray, true: np.ndarray) -> float:
    return float(np.linalg.norm(found - true) / np.linalg.norm(true))


def faults(mlp: dict[str, Any], truth: Truth, absent: Mapping[str, str]) -> dict[str, Any]:
    """Where peers are known to go wrong, and we on the same: errors, copies, words."""
    n = len(mlp["labels"])
    ragged, key = (2 * n // 5, 2 * n // 5, n - 2 * (2 * n // 5)), jax.random.key(0)
    matvec = ours.hessian(mlp, None)
    value, _ = ours.product(mlp | {"batch_size": ragged[0]})()
    top = eigenvalues(matvec, matvec.params, k=mlp["k"], tol=TOLERANCE, key=key).values
    b, damping = mlp["v"], 1e-3
    solved = solve(matvec, b, damping=damping, tol=TOLERANCE, max_steps=500)
    silent, info = jax.scipy.sparse.linalg.cg(
        jax.jit(lambda v: jax.tree.map(lambda a, c: a + damping * c, matvec(v), v)),
        b, tol=TOLERANCE, maxiter=500,
    )  # fmt: skip
    x = _flatten(silent)
    found = {
        "ragged batches": {"ours": truth.error("product", value, from_peer=False)},
        "copies of the largest eigenvalue": {"ours": _copies(top)},
        "solve of an indefinite matrix": {
            "ours": solved.why,
            "jax.scipy": f"info {info}",
            "jax.scipy, true residual": float(np.linalg.norm(truth.v - truth(x) - damping * x)),
        },
    }
    if not {"torch", "hessian-eigenthings"} & set(absent):
        product, values = peers.eigenthings_faults(mlp, ragged, steps=200)
        wrong = truth.error("product", product, from_peer=True)
        found["ragged batches"]["hessian-eigenthings"] = wrong
        found["copies of the largest eigenvalue"]["hessian-eigenthings"] = _copies(values)
    return found


def _copies(values):
    values = np.asarray(values)
    return int(np.sum(values > values.max() * (1 - 1e-3)))
