"""Influence: what removing training examples does to weights, losses and logits, and how sure.

    remove(loss_fn, params, forget, retain, *, l2, normaliser, key) -> Removal
    influence(loss_fn, params, data, queries, *, l2, normaliser, key) -> Influence

`remove` moves the weights by one Newton step on the retained objective. `influence` predicts, to
first order and for all pairs at once, the change of a query's loss (or logits, by `query_fn`) when
a training example or a group of them is removed. The objective is a mean loss plus a ridge,

    L(params) = (1/N) sum_i l_i(params) + l2/2 ||params||^2,

and there are two retained ones, up to half a step apart: `normaliser` "n" keeps N = n when m of n
examples go, "n-m" takes the mean over what is left. Write g_T for the sum of gradients over the
removed examples. The step solves (H + l2 I + damping I) step = b with

    "n":    b = g_T / n                   H = (1/n) sum_retain d^2 l_i
    "n-m":  b = (g_T - m g_mean) / (n-m)  H = (1/(n-m)) sum_retain d^2 l_i

that is grad L_all - grad L_retain: Newton's step on the retained objective, if training ended at
its minimum. If not, the step that training had still to make is left out; `leftover` says its size.
`l2` belongs to the objective and to the matrix; `damping` is the solver's, and biases the answer.
On nets pass `curvature=partial(GaussNewton, outputs_fn, output_loss, params)`: with the ridge alone
it is positive definite, where the Hessian is usually not; a result's `why` says which it was.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from jax.core import Tracer

from famr_jax.curvature import Hessian, Identity, Jacobian, Solution, eigenvalues, solve
from famr_jax.curvature.algebra import Operator, precise
from famr_jax.curvature.batches import one_each, rows_of, some_each
from famr_jax.curvature.block import solve_block
from famr_jax.curvature.conditioning import Estimate
from famr_jax.curvature.dense import matrix_of, solve_dense
from famr_jax.curvature.operators import LossFn, OutputsFn
from famr_jax.curvature.solve import WORDS, check_limits
from famr_jax.types import Params, Source, check_key, check_labels, check_number

Normaliser: TypeAlias = Literal["n", "n-m"]

COLUMNS = 128
"""Most right-hand sides that share a Krylov space, which bounds the memory."""

DENSE_PER_COLUMN, DENSE_AT_MOST = 8, 8192
"""Up to how many dimensions, for each right-hand side and in all, the matrix itself is formed."""

Curvature: TypeAlias = Callable[[Any], Operator]
"""`curvature(data) -> operator`: the mean curvature of the loss over a data set, without ridge."""


class Removal(NamedTuple):
    """The weights after a removal, and what a judge needs.

    Attributes:
        params: Predicted weights.
        solution: How the solve went; its `value` is the step.
        lambda_min: Smallest eigenvalue of the matrix, l2 and damping in it, by Lanczos.
        leftover: ||grad L_all|| / ||b|| at the trained weights: training left unfinished, in units
            of what the removal asks for.
    """

    params: Params
    solution: Solution
    lambda_min: Estimate
    leftover: Array

    @property
    def why(self) -> str:
        """How far the answer may be trusted, in words."""
        return _why(self)


class Influence(NamedTuple):
    """Predicted changes for all pairs, and what a judge needs.

    Attributes:
        values: `[n, q, ...]`, change of query j's output when example i is removed; `[groups, q,
            ...]` with groups. Positive for a loss: the query gets worse.
        solution: How each solve went, one entry for each column of the smaller side; its `value`
            holds the inverse-Hessian-vector products.
        lambda_min: Smallest eigenvalue of the matrix, l2 and damping in it, by Lanczos.
    """

    values: Array
    solution: Solution
    lambda_min: Estimate

    @property
    def why(self) -> str:
        """How far the answer may be trusted, in words."""
        return _why(self)


def remove(
    loss_fn: LossFn,
    params: Params,
    forget: Any,
    retain: Any,
    *,
    l2: float,
    normaliser: Normaliser,
    curvature: Curvature | None = None,
    over: Literal["retain", "all"] = "retain",
    damping: float | Array = 0.0,
    tol: float = 1e-5,
    max_steps: int = 1000,
    method: Literal["cg", "minres"] = "cg",
    batch_size: int | None = None,
    key: Array,
) -> Removal:
    """Predicts the weights after removal by one Newton step; exact for a quadratic loss.

    Args:
        loss_fn: `(params, data) -> [n]`, one value per example.
        params: The trained weights.
        forget: What is removed, any pytree with a leading axis of examples.
        retain: What is left.
        l2: Ridge of the training objective.
        normaliser: Which retained objective; see above.
        curvature: `data -> operator`; `Hessian(loss_fn, params, data)` if not given.
        over: Whose curvature; "all" is the classical form, which does not subtract the forget part.
        damping: Shift in the solve.
        tol: Wanted relative residual.
        max_steps: Products after which to give up.
        method: How `curvature.solve` does it.
        batch_size: Micro-batch of gradients and of the default curvature; None for all at once.
        key: PRNG key of Lanczos.

    Raises:
        ValueError: A number out of range, an unknown word, an empty set, or a `loss_fn` that does
            not give one finite value per example, as of a label that is no class.
    """
    check_key(key)
    _check(l2, damping, normaliser)
    if over not in ("retain", "all"):
        raise ValueError(f"`over` must be 'retain' or 'all', got {over!r}.")
    m, kept = _size("forget", forget), _size("retain", retain)
    for name, data in (("forget", forget), ("retain", retain)):
        _check_losses(name, loss_fn, params, data, batch_size)
    n = m + kept
    curvature = curvature or partial(Hessian, loss_fn, params, batch_size=batch_size)
    of_forget: Operator = curvature(forget)
    of_retain: Operator = curvature(retain)
    eye: Operator = Identity()
    if over == "all":
        matrix = (m / n) * of_forget + (kept / n) * of_retain
    else:
        matrix = (kept / n if normaliser == "n" else 1.0) * of_retain
    matrix = matrix + l2 * eye
    b, leftover = _change(
        loss_fn, params, forget, retain, l2, normaliser=normaliser, batch_size=batch_size
    )
    found = solve(matrix, b, damping=damping, tol=tol, max_steps=max_steps, method=method)
    after = optax.tree.add(params, found.value)
    return Removal(after, found, _smallest(matrix, params, damping, key), leftover)


@partial(jax.jit, static_argnames=("loss_fn", "normaliser", "batch_size"))
def _change(loss_fn, params, forget, retain, l2, *, normaliser, batch_size):
    """b = grad L_all - grad L_retain, and ||grad L_all|| / ||b||."""
    m, kept = _size("forget", forget), _size("retain", retain)
    share = m / (m + kept)

    def mean_gradient(data, size):
        jacobian = Jacobian(loss_fn, params, data, batch_size)
        return jacobian.transpose()(jnp.full(size, 1 / size, float))

    def everywhere(of_forget, of_retain, leaf):
        return share * of_forget + (1 - share) * of_retain + l2 * leaf

    of_forget, of_retain = mean_gradient(forget, m), mean_gradient(retain, kept)
    b = of_forget if normaliser == "n" else optax.tree.sub(of_forget, of_retain)
    b = optax.tree.scale(share, b)
    left = jax.tree.map(everywhere, of_forget, of_retain, params)
    return b, optax.tree.norm(left) / optax.tree.norm(b)


def influence(
    loss_fn: LossFn,
    params: Params,
    data: Any,
    queries: Any,
    *,
    l2: float,
    normaliser: Normaliser,
    query_fn: OutputsFn | None = None,
    groups: Array | None = None,
    curvature: Curvature | None = None,
    damping: float | Array = 0.0,
    tol: float = 1e-5,
    max_steps: int = 1000,
    batch_size: int | None = 128,
    key: Array,
) -> Influence:
    """Predicts, to first order, each query's change when each example (or group) is removed.

        values[i, j] = d query_j . (H + l2 I + damping I)^-1 b_i,    H over all the data

    One solve for each column of the smaller side, training examples or query outputs: by block CG,
    or by the factors of the matrix itself, if it has at most 8 dimensions a column and 8192 in all.
    The gradients of the other side are formed and used up a block at a time.

    Args:
        loss_fn: `(params, data) -> [n]`, one value per example.
        params: The trained weights.
        data: The training set, n examples.
        queries: q examples.
        l2: Ridge of the training objective.
        normaliser: Which retained objective; see above.
        query_fn: `(params, queries) -> [q, ...]`: what is asked of a query; `loss_fn` by default.
        groups: `[groups, n]` boolean; removes groups in place of single examples, of each some and
            not all.
        curvature: `data -> operator`; `Hessian(loss_fn, params, data)` if not given.
        damping: Shift in the solve.
        tol: Wanted relative residual of each column.
        max_steps: Products a column after which block CG gives up.
        batch_size: Examples whose gradients are in memory at a time, and micro-batch of the default
            curvature, on which up to 128 columns act at once (Lanczos has one, and takes as many
            times the examples); None for all examples.
        key: PRNG key of Lanczos.

    Raises:
        ValueError: A number out of range, an unknown word, an empty set, a wrong mask, or a
            function that does not give a finite value, or a row, per example.
    """
    check_key(key)
    _check(l2, damping, normaliser)
    check_limits(damping, tol, max_steps)
    n, _ = _size("data", data), _size("queries", queries)
    if groups is not None and (groups.shape[1:] != (n,) or groups.dtype != bool):
        got = f"{groups.dtype} {list(groups.shape)}"
        raise ValueError(f"`groups` must be bool of shape [groups, {n}], got {got}.")
    gone = np.ones(1, int) if groups is None else np.sum(groups, axis=1)
    if np.any((gone == 0) | (gone == n)):
        rule = "must take some examples of `data` and leave some"
        raise ValueError(f"what `groups` remove {rule}, got {gone} of {n}.")
    _check_losses("data", loss_fn, params, data, batch_size)
    if query_fn is None:
        _check_losses("queries", loss_fn, params, queries, batch_size)
    query_fn = query_fn or loss_fn
    asked = some_each(jax.eval_shape(query_fn, params, queries), queries, name="query_fn")
    shape = asked.shape
    hessian = partial(Hessian, loss_fn, params, data)
    eye: Operator = Identity()
    matrix = (curvature(data) if curvature else hessian(batch_size)) + l2 * eye
    dim, count = sum(leaf.size for leaf in jax.tree.leaves(params)), min(n, math.prod(shape))
    if dim <= min(DENSE_PER_COLUMN * count, DENSE_AT_MOST):
        single = matrix_of(matrix, params, at_once=COLUMNS)
        solve_for = partial(solve_dense, single, damping=damping, tol=tol)
    else:
        # One vector takes the room of all columns: as many times the examples.
        wide = batch_size and batch_size * min(COLUMNS, count)
        single = matrix if curvature else hessian(wide) + l2 * eye
        solve_for = partial(_solve_all, matrix, damping=damping, tol=tol, max_steps=max_steps)
    route = _by_examples if n < math.prod(shape) else _by_queries
    solution, products = route(
        solve_for, loss_fn, query_fn, params, data, queries, batch_size=batch_size
    )
    values = _values(products, groups, normaliser=normaliser).reshape(-1, *shape)
    return Influence(values, solution, _smallest(single, params, damping, key))


def _by_examples(solve_for, loss_fn, query_fn, params, data, queries, *, batch_size):
    """Solves for the gradient of each training example, then multiplies the queries' gradients."""
    solution = solve_for(_gradients(loss_fn, params, data, batch_size=batch_size))
    return solution, _products(query_fn, params, queries, solution.value, batch_size=batch_size).T


def _by_queries(solve_for, loss_fn, query_fn, params, data, queries, *, batch_size):
    """Solves for the gradient of each query output, then multiplies the examples' gradients."""
    solution = solve_for(_gradients(query_fn, params, queries, batch_size=batch_size))
    return solution, _products(loss_fn, params, data, solution.value, batch_size=batch_size)


@partial(jax.jit, static_argnames=("function", "batch_size"))
@precise
def _gradients(function, params, data, *, batch_size):
    """The gradient of every output of every example: a pytree with a leading axis of them all."""
    one = partial(_jacobian, function, params)
    rows = jax.lax.map(one, data, batch_size=batch_size or _size("data", data))
    return jax.tree.map(lambda leaf, like: leaf.reshape(-1, *like.shape), rows, params)


@partial(jax.jit, static_argnames=("function", "batch_size"))
@precise
def _products(function, params, data, columns, *, batch_size):
    """The gradient of every output of every example times every column, `[outputs, columns]`."""

    def flat(tree):
        pairs = zip(jax.tree.leaves(tree), jax.tree.leaves(params), strict=True)
        return [leaf.reshape(-1, like.size) for leaf, like in pairs]

    columns = flat(columns)

    def one(example):
        rows = flat(_jacobian(function, params, example))
        return sum(row @ column.T for row, column in zip(rows, columns, strict=True))

    products = jax.lax.map(one, data, batch_size=batch_size or _size("data", data))
    return products.reshape(-1, products.shape[-1])


def _jacobian(function, params, example):
    """Gradients of one example's outputs: each leaf `[*outputs, *leaf]`."""
    batch = jax.tree.map(lambda leaf: leaf[None], example)
    return jax.jacrev(lambda params: function(params, batch)[0])(params)


def _solve_all(matrix, columns, *, damping, tol, max_steps):
    """Solves for all columns, in blocks of equal size that each share a Krylov space."""
    leaves = jax.tree.leaves(columns)
    count = len(leaves[0])
    most = min(COLUMNS, sum(leaf[0].size for leaf in leaves))
    size = math.ceil(count / math.ceil(count / most))

    def solve_from(start):
        block = jax.tree.map(lambda leaf: leaf[start : start + size], columns)
        return solve_block(matrix, block, damping=damping, tol=tol, max_steps=max_steps)

    solutions = [solve_from(start) for start in range(0, count, size)]
    return jax.tree.map(lambda *parts: jnp.concatenate(parts), *solutions)


def _smallest(matrix, like, damping, key):
    least = eigenvalues(matrix, like, k=1, which="smallest", key=key)
    return Estimate(least.values[0] + damping, least.residuals[0])


@partial(jax.jit, static_argnames="normaliser")
def _values(products, groups, normaliser):
    """What removing each example, or group, changes, of the products g_i . H^-1 q_j."""
    n = products.shape[0]
    m = jnp.ones((n, 1), int) if groups is None else jnp.sum(groups, axis=1, keepdims=True)
    total = products if groups is None else groups.astype(products.dtype) @ products
    if normaliser == "n":
        return total / n
    return (total - m * jnp.mean(products, axis=0)) / (n - m)


def _check(l2, damping, normaliser):
    check_number("l2", l2, least=0)
    check_number("damping", damping, least=0)
    if normaliser not in ("n", "n-m"):
        raise ValueError(f"`normaliser` must be 'n' or 'n-m', got {normaliser!r}.")


def _check_losses(name, loss_fn, params, data, batch_size):
    """Raises unless every example has one finite loss: the slopes of others may well be 0."""
    check_labels(getattr(data, "labels", np.zeros(0, int)))
    if not isinstance(data, Source):
        one_each(jax.eval_shape(loss_fn, params, data), data)
    losses = _losses(loss_fn, params, data, batch_size=batch_size)
    if isinstance(losses, Tracer) or bool(jnp.all(jnp.isfinite(losses))):
        return
    row = int(jnp.argmin(jnp.isfinite(losses)))
    of = f" of label {data.labels[row]}" if hasattr(data, "labels") else ""
    got = f"got {losses[row]} on example {row}{of}"
    raise ValueError(f"`loss_fn` must be finite on every example of `{name}`, {got}.")


@partial(jax.jit, static_argnames=("loss_fn", "batch_size"))
def _losses(loss_fn, params, data, *, batch_size):
    return rows_of(partial(loss_fn, params), data, batch_size)


def _size(name, data):
    size = len(data) if isinstance(data, Source) else jax.tree.leaves(data)[0].shape[0]
    if size == 0:
        raise ValueError(f"`{name}` must hold at least one example, got 0.")
    return size


def _why(result):
    solution = result.solution
    open_ = int(jnp.sum(~solution.converged))
    solved = f"{open_} of {solution.converged.size} solves unconverged: " if open_ else ""
    solved += WORDS[int(jnp.max(solution.reason))]
    low, error = map(float, result.lambda_min)
    definite = "indefinite" if low < -error else "definite" if low > error else "not resolved"
    return f"{solved}; lambda_min + damping = {low:.2g} +- {error:.1g}: {definite}"
