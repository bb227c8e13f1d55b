"""The peers of the curvature benchmark: libraries on PyTorch, each asked for what it offers.

    python -m experiments.benchmarks.curvature_peers PROBLEM TASK PEER

runs one task of one peer in a fresh process, without importing JAX, and prints a line when its
result is ready. As on our side a task prepares and returns what is timed, `run() -> (value,
products)`; vectors are flat, in the order of the module's parameters.
"""

import contextlib
import io
import pickle
import sys
import warnings
from collections.abc import Callable, Mapping
from importlib import import_module, metadata
from typing import Any

import numpy as np

from experiments.benchmarks.torch_vit import import_torch, mlp, torch_layout, vit, with_weights

PACKAGES = {
    "PyHessian": ("PyHessian", "pyhessian"),
    "curvlinops": ("curvlinops-for-pytorch", "curvlinops"),
    "hessian-eigenthings": ("hessian-eigenthings", "hessian_eigenthings"),
    "dattri": ("dattri", "dattri.func.hessian"),
    "SciPy": ("scipy", "scipy.sparse.linalg"),
    "torch": ("torch", "torch"),
}
"""Distribution and module of each peer; SciPy's solvers run on PyTorch's own products."""


def missing() -> dict[str, str]:
    """The peers that are not there, each with a sentence that says so."""
    found = {}
    for peer, (distribution, module) in PACKAGES.items():
        try:
            _import(module)
        except ImportError as error:
            found[peer] = f"{peer} is missing ({error}): pip install {distribution}, or [peers]."
    return found


def versions(absent: Mapping[str, str]) -> dict[str, str]:
    """Of PyTorch and of the peers that are there."""
    there = [distribution for peer, (distribution, _) in PACKAGES.items() if peer not in absent]
    return {name: metadata.version(name) for name in there}


def _import(module):
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        return import_module(module)


class Net:
    """A problem in PyTorch: the module with its weights, its data, its loss."""

    def __init__(self, problem: dict[str, Any], dtype: str = "float32"):
        self.torch = torch = import_torch()
        # The fused kernel of attention on CPUs has no second derivative.
        torch.backends.cuda.enable_flash_sdp(False)
        self.dtype, shape = getattr(torch, dtype), problem["image_shape"]
        if isinstance(problem["model"], str):
            hidden = [int(size) for size in problem["model"].removeprefix("mlp_").split("x")]
            net = mlp(torch, [int(np.prod(shape)), *hidden, problem["num_classes"]])
        else:
            patch, *variant = problem["model"]
            net = vit(torch, variant, patch, shape, problem["num_classes"])
        self.net = with_weights(torch, net, problem["params"]).to(self.dtype)
        self.params = list(self.net.parameters())
        self.x = torch.from_numpy(np.array(problem["x"])).to(self.dtype)
        self.labels = torch.from_numpy(np.array(problem["labels"])).long()
        self.loss = torch.nn.CrossEntropyLoss()
        self.v = self.flat(problem["v"])

    def flat(self, tree: Any) -> Any:
        """A vector of ours, flat."""
        named = torch_layout(tree)
        parts = [named[name].ravel() for name, _ in self.net.named_parameters()]
        return self.torch.from_numpy(np.concatenate(parts)).to(self.dtype)

    def split(self, v: Any) -> list[Any]:
        """A flat vector in the shapes of the parameters."""
        parts = v.split([weight.numel() for weight in self.params])
        return [part.view_as(weight) for part, weight in zip(parts, self.params, strict=True)]

    def join(self, parts: Any) -> Any:
        """The converse."""
        return self.torch.cat([part.reshape(-1) for part in parts])

    def kept(self) -> Callable[[Any], Any]:
        """`v -> H v` by double backward through a graph that is kept: PyTorch alone."""
        grad = self.torch.autograd.grad
        grads = grad(self.loss(self.net(self.x), self.labels), self.params, create_graph=True)
        once = {"retain_graph": True, "materialize_grads": True}
        return lambda v: self.join(grad(grads, self.params, self.split(v), **once))

    def loss_of(self, flat: Any) -> Any:
        """The mean loss at flat weights."""
        names = [name for name, _ in self.net.named_parameters()]
        weights = dict(zip(names, self.split(flat), strict=True))
        return self.loss(self.torch.func.functional_call(self.net, weights, self.x), self.labels)


def pyhessian_product(net: Net) -> Callable[[Any], Any]:
    """PyHessian on one batch: the graph is built once and kept."""
    pyhessian = _import("pyhessian")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        kept = pyhessian.hessian(net.net, net.loss, data=(net.x, net.labels), cuda=False)
    multiply = pyhessian.hessian_vector_product
    return lambda v: net.join(multiply(kept.gradsH, kept.params, net.split(v)))


def curvlinops_hessian(net: Net) -> Any:
    """curvlinops' operator over the data in one batch."""
    operator = _import("curvlinops").HessianLinearOperator
    data = [(net.x, net.labels)]
    return operator(net.net, net.loss, net.params, data, check_deterministic=False)


def eigenthings_hessian(net: Net, batches: tuple[int, ...] | None = None) -> Any:
    """hessian-eigenthings' operator over the data in one batch, or in batches of given sizes."""
    library = _import("hessian_eigenthings")
    data = [(net.x, net.labels)]
    if batches:
        data = list(zip(net.x.split(batches), net.labels.split(batches), strict=True))
    return library.HessianOperator(net.net, data, library.supervised_loss(net.loss))


def dattri_product(net: Net) -> Callable[[Any], Any]:
    """dattri: `torch.func.vjp` of the gradient, its graph kept."""
    hvp_at_x = _import("dattri.func.hessian").hvp_at_x
    return hvp_at_x(net.loss_of, (net.join(net.params).detach(),))


PRODUCTS = {
    "PyHessian": pyhessian_product,
    "curvlinops": lambda net: curvlinops_hessian(net).__matmul__,
    "hessian-eigenthings": lambda net: eigenthings_hessian(net).matvec,
    "dattri": dattri_product,
}


def product(problem: dict[str, Any], peer: str) -> Callable[[], tuple[Any, int]]:
    """One product; the peers that keep a graph have built it before."""
    net = Net(problem)
    multiply = PRODUCTS[peer](net)
    return lambda: (multiply(net.v), 1)


def fresh_product(problem: dict[str, Any], peer: str) -> Callable[[], tuple[Any, int]]:
    """One product, the graph included."""
    net = Net(problem)
    return lambda: (PRODUCTS[peer](net)(net.v), 1)


def loop(problem: dict[str, Any], peer: str) -> Callable[[], tuple[Any, int]]:
    """Steps of the power method, a graph that is kept included."""
    net, length = Net(problem), problem["loop"]

    def run():
        multiply, v = PRODUCTS[peer](net), net.v
        for _ in range(length):
            image = multiply(v)
            v = image / image.norm()
        return v, length

    return run


def top(problem: dict[str, Any], peer: str) -> Callable[[], tuple[Any, int]]:
    """The largest eigenvalues with their vectors."""
    net, k = Net(problem), problem["k"]
    if peer == "hessian-eigenthings":
        lanczos = _import("hessian_eigenthings").lanczos

        def run():
            operator = eigenthings_hessian(net)
            found = lanczos(operator, k=k, max_iter=problem["max_steps"], which="LA", seed=0)
            return (found.eigenvalues, found.eigenvectors), found.iterations

        return run
    return lambda: _eigsh(net, k, problem["tol"])


def _eigsh(net, k, tol):
    scipy = _import("scipy.sparse.linalg")
    matvec = _Counted(net, net.kept())
    start = np.random.default_rng(0).normal(size=matvec.shape[0])
    values, vectors = scipy.eigsh(matvec.operator(), k, which="LA", tol=tol, v0=start)
    return (values[::-1].copy(), vectors.T[::-1].copy()), matvec.products


class _Counted:
    """PyTorch's products as SciPy wants them, counted."""

    def __init__(self, net: Net, multiply: Callable[[Any], Any]):
        self.net, self.multiply, self.products = net, multiply, 0
        self.shape = (len(net.v), len(net.v))

    def operator(self):
        return _import("scipy.sparse.linalg").LinearOperator(self.shape, self, dtype=np.float32)

    def __call__(self, v):
        self.products += 1
        tensor = self.net.torch.from_numpy(np.ascontiguousarray(v.reshape(-1), dtype=np.float32))
        return self.multiply(tensor).numpy()


def density(problem: dict[str, Any], peer: str) -> Callable[[], tuple[Any, int]]:
    """The spectral density: nodes and weights."""
    net = Net(problem)
    steps, probes = problem["steps"], problem["probes"]
    if peer == "PyHessian":
        hessian = _import("pyhessian").hessian

        def run():
            kept = hessian(net.net, net.loss, data=(net.x, net.labels), cuda=False)
            return kept.density(iter=steps, n_v=probes), steps * probes

        return run
    spectral_density = _import("hessian_eigenthings").spectral_density

    def run():
        operator = eigenthings_hessian(net)
        found = spectral_density(operator, num_runs=probes, lanczos_steps=steps, seed=0)
        return (found.raw_eigenvalues, found.raw_weights), steps * probes

    return run


def inverse(problem: dict[str, Any], peer: str) -> Callable[[], tuple[Any, int]]:
    """(H + damping I)^-1 v by conjugate gradients."""
    net, damping, tol = Net(problem), problem["damping"], problem["tol"]
    if peer == "curvlinops":
        library = _import("curvlinops")
        identity = _import("curvlinops.examples").IdentityLinearOperator

        def run():
            shapes = [weight.shape for weight in net.params]
            shift = damping * identity(shapes, net.x.device, net.dtype)
            matvec = curvlinops_hessian(net) + shift
            calls, multiply = [], matvec._matmat
            matvec._matmat = lambda v: calls.append(0) or multiply(v)
            solver = library.CGInverseLinearOperator
            solver = solver(matvec, tolerance=tol, max_iter=500, max_tridiag_iter=0)
            return solver @ net.v, len(calls)

        return run
    if peer == "dattri":
        solver = _import("dattri.func.hessian").ihvp_at_x_cg

        def run():
            weights, steps = net.join(net.params).detach(), problem["max_steps"]
            solve = solver(net.loss_of, weights, max_iter=steps, regularization=damping)
            return solve(net.v)[0], steps + 1

        return run

    def run():
        multiply = net.kept()
        matvec = _Counted(net, lambda v: multiply(v) + damping * v)
        found, _ = _import("scipy.sparse.linalg").cg(matvec.operator(), net.v.numpy(), rtol=tol)
        return found, matvec.products

    return run


def eigenthings_faults(problem: dict[str, Any], batches: tuple[int, ...], *, steps: int) -> Any:
    """hessian-eigenthings' product over ragged batches, and eigenvalues of a long Lanczos run."""
    net, lanczos = Net(problem), _import("hessian_eigenthings").lanczos
    operator = eigenthings_hessian(net)
    found = lanczos(operator, k=problem["k"], max_iter=steps, which="LA", seed=0)
    return eigenthings_hessian(net, batches).matvec(net.v), found.eigenvalues


TASKS = {"product": product, "fresh product": fresh_product, "loop": loop, "top": top}
TASKS |= {"density": density, "inverse": inverse}

if __name__ == "__main__":
    with open(sys.argv[1], "rb") as file:
        TASKS[sys.argv[2]](pickle.load(file), sys.argv[3])()
    print("ready", flush=True)
    sys.stdin.read()  # Until whoever measures the process has read its memory.
