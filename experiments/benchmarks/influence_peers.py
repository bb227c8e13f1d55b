"""The peers of the influence benchmark: dattri, kronfluence, and PyTorch by hand."""

import contextlib
import io
import logging
import tempfile
import warnings
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from famr_jax.minimise import double
from famr_jax.types import Batch, Params

CHUNK = 256


def import_peers() -> Any:
    """PyTorch, or a sentence that says how to get the peers."""
    try:
        import dattri  # noqa: F401
        import kronfluence  # noqa: F401
        import torch
    except ImportError as error:
        raise ValueError(
            f"`{error.name}` is needed here: pip install torch dattri kronfluence."
        ) from error
    return torch


def torch_mlp(torch: Any, params: Params) -> Any:
    """Our perceptron as a PyTorch module with the same weights; its layers in their order."""
    layers = []
    for name in sorted(params, key=lambda name: (name == "head", name)):
        kernel, bias = (
            torch.from_numpy(np.array(params[name][leaf])) for leaf in ("kernel", "bias")
        )
        linear = torch.nn.Linear(*kernel.shape)
        linear.load_state_dict({"weight": kernel.T.contiguous(), "bias": bias})
        layers += [linear, torch.nn.Tanh()]
    return torch.nn.Sequential(torch.nn.Flatten(), *layers[:-1])


def torch_data(torch: Any, batch: Batch) -> tuple[Any, Any]:
    """Images and labels as tensors."""
    return torch.from_numpy(np.array(batch.x)), torch.from_numpy(np.array(batch.labels)).long()


def by_dattri(torch: Any, net: Any, train: Any, queries: Any, l2: float) -> Callable:
    """A call that gives `[n, q]` of g_i . (H + l2 I)^-1 g_j, the Hessian explicit."""
    from dattri.algorithm import influence_function as attributors
    from dattri.task import AttributionTask

    def loss(params, pair):
        logits = torch.func.functional_call(net, params, pair[0])
        return torch.nn.functional.cross_entropy(logits, pair[1])

    task = AttributionTask(loss, net, net.state_dict())
    attributor = attributors.IFAttributorExplicit(task, regularization=l2)
    # Whole sets as one batch: it forms the matrix anew for each batch, and adds their inverses.
    loaders = [
        torch.utils.data.DataLoader(torch.utils.data.TensorDataset(*sets), batch_size=len(sets[0]))
        for sets in (train, queries)
    ]

    def scores():
        with contextlib.redirect_stderr(io.StringIO()):
            attributor.cache(loaders[0])
            return attributor.attribute(*loaders).detach().numpy()

    return scores


def by_kronfluence(torch: Any, net: Any, train: Any, queries: Any, l2: float) -> Callable:
    """A call that gives `[n, q]` of g_i . (EKFAC + l2 I)^-1 g_j, an approximation by layers."""
    from kronfluence.analyzer import Analyzer, prepare_model
    from kronfluence.arguments import FactorArguments, ScoreArguments
    from kronfluence.task import Task

    class Classification(Task):
        def compute_train_loss(self, batch, model, sample=False):
            logits = model(batch[0])
            labels = torch.distributions.Categorical(logits=logits).sample() if sample else batch[1]
            return torch.nn.functional.cross_entropy(logits, labels, reduction="sum")

        def compute_measurement(self, batch, model):
            return torch.nn.functional.cross_entropy(model(batch[0]), batch[1], reduction="sum")

    logging.disable(logging.WARNING)
    task = Classification()
    model = prepare_model(net, task)
    sets = [torch.utils.data.TensorDataset(*each) for each in (train, queries)]
    sizes = [len(each) for each in sets]

    def scores():
        with tempfile.TemporaryDirectory() as out, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            settings = {"cpu": True, "disable_tqdm": True, "output_dir": out}
            analyzer = Analyzer("all", model, task, **settings)
            analyzer.fit_all_factors(
                "f", sets[0], per_device_batch_size=sizes[0], factor_args=FactorArguments()
            )
            analyzer.compute_pairwise_scores(
                "s",
                "f",
                query_dataset=sets[1],
                train_dataset=sets[0],
                per_device_query_batch_size=sizes[1],
                per_device_train_batch_size=sizes[0],
                score_args=ScoreArguments(damping_factor=l2),
            )
            return analyzer.load_pairwise_scores("s")["all_modules"].numpy().T

    return scores


def by_hand(torch: Any, net: Any, train: Any, queries: Any, l2: float) -> Callable:
    """A call that gives `[n, q]`: the dense Hessian by `torch.func` products, then Cholesky."""
    names, leaves = zip(*net.named_parameters(), strict=True)
    leaves = [leaf.detach() for leaf in leaves]
    shapes, sizes = [leaf.shape for leaf in leaves], [leaf.numel() for leaf in leaves]
    flat = torch.cat([leaf.reshape(-1) for leaf in leaves])

    def loss(vector, x, labels):
        parts = zip(names, vector.split(sizes), shapes, strict=True)
        params = {name: part.reshape(shape) for name, part, shape in parts}
        logits = torch.func.functional_call(net, params, x)
        return torch.nn.functional.cross_entropy(logits, labels)

    def gradient(vector, x, labels):
        return torch.func.grad(loss)(vector, x[None], labels[None])

    each = torch.func.vmap(gradient, in_dims=(None, 0, 0))
    whole = torch.func.grad(lambda vector: loss(vector, *train))

    def product(v):
        return torch.func.jvp(whole, (flat,), (v,))[1]

    products = torch.func.vmap(product, chunk_size=CHUNK)

    def scores():
        with torch.no_grad():
            eye = torch.eye(len(flat))
            factor = torch.linalg.cholesky(products(eye) + l2 * eye)
            solved = torch.cholesky_solve(each(flat, *queries).T, factor)
            return (each(flat, *train) @ solved).numpy()

    return scores


def reference(loss_fn: Callable, params: Params, train: Batch, queries: Batch, l2: float):
    """`[n, q]` in float64 by dense algebra, and a function that gives the residual of columns."""
    from jax.flatten_util import ravel_pytree

    with jax.enable_x64(True):
        params, train, queries = double((params, train, queries))
        flat, unravel = ravel_pytree(params)
        slope = jax.grad(lambda vector, batch: loss_fn(unravel(vector), batch).mean())

        def one(vector, example):
            return slope(vector, jax.tree.map(lambda a: a[None], example))

        each = jax.jit(jax.vmap(one, in_axes=(None, 0)))
        asked, learnt = (np.asarray(each(flat, batch)) for batch in (queries, train))

        @jax.jit
        def hessian(vector, batch, eye):
            def product(v):
                return jax.jvp(lambda at: slope(at, batch), (vector,), (v,))[1]

            return jax.lax.map(product, eye, batch_size=CHUNK)  # all columns at once take 18 GB

        eye = np.eye(flat.size)
        matrix = np.asarray(hessian(flat, train, eye)) + l2 * eye
    values = learnt @ np.linalg.solve(matrix, asked.T)

    def residual(columns: np.ndarray) -> float:
        gaps = asked - columns.astype(np.float64) @ matrix
        return float(np.max(np.linalg.norm(gaps, axis=1) / np.linalg.norm(asked, axis=1)))

    return values, residual
