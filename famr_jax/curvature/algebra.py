"""What every operator `v -> A v` can do: enter jit, add, scale, be restricted, be linearised.

An operator is a callable pytree: arrays are leaves and functions static, so that it enters jit as
an argument, and new weights or data of equal shape do not retrace. `A + B`, `c * A` and
`A + damping * Identity()` compose.
"""

import functools
from collections.abc import Callable
from typing import Any, ParamSpec, TypeAlias, TypeVar, dataclass_transform

import jax
import jax.numpy as jnp
import numpy as np
import optax

from famr_jax.types import Params, as_pytree, check_kept, pytree, static

ROUNDING = 5  # eps of the largest |e|: what an eigenvalue is good to at best

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")

Operator: TypeAlias = Any
"""A linear operator `v -> A v`: a callable to a type checker, which does not see that it adds."""


def precise(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """The function with matrix products of full precision, unless the user has chosen another.

    The defaults of GPU and TPU (TF32, bfloat16) break Lanczos and CG.
    """

    @functools.wraps(function)
    def wrapped(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        settings: Any = jax.config  # whose names JAX sets as it is imported
        chosen = settings.jax_default_matmul_precision or "highest"
        with jax.default_matmul_precision(chosen):
            return function(*args, **kwargs)

    return wrapped


@dataclass_transform(frozen_default=True, field_specifiers=(static,))
def operator(cls: type) -> type:
    """Class decorator: a callable pytree dataclass that adds and scales."""
    made: Any = cls
    made.__call__ = precise(made.__call__)
    made.__add__ = lambda self, other: Sum((self, as_pytree(other)))
    made.__mul__ = made.__rmul__ = lambda self, factor: Scaled(self, factor)
    return pytree(cls)


@precise
def linearized(matvec: Callable) -> Callable:
    """The product `v -> A v`, with all that does not depend on v computed once.

    Solvers call it before their loop. It holds the activations of one pass, so an operator that
    runs in micro-batches stays as it is.
    """
    return as_pytree(getattr(matvec, "linearized", lambda: matvec)())


def check_vector(name: str, tree: Any) -> None:
    """Raises a `ValueError` unless a tree holds numbers, all of one real floating-point type.

    Of at least float32: eigenvalues and factors are of no worse, and half precision loses them.
    """
    types = {getattr(leaf, "dtype", np.dtype(object)) for leaf in jax.tree.leaves(tree)}
    if len(types) != 1 or not jnp.issubdtype(next(iter(types)), jnp.floating):
        told = ", ".join(sorted(map(str, types))) or "no array"
        raise ValueError(f"`{name}` must hold arrays of one real floating-point type, got {told}.")
    if jnp.finfo(next(iter(types))).bits < 32:
        got = f"got {next(iter(types))}: cast the params first"
        raise ValueError(f"`{name}` must be of float32 or float64, {got}.")
    check_kept(name, tree)
    if not any(leaf.size for leaf in jax.tree.leaves(tree)):
        raise ValueError(f"`{name}` must hold at least one number, got none.")


def norm(tree: Any) -> jax.Array:
    """The 2-norm of a tree whose squares may overflow or vanish; otherwise the plain one's bits."""
    unit = power_of_two(tree)
    return unit * optax.tree.norm(jax.tree.map(lambda leaf: leaf / unit, tree))


def power_of_two(tree: Any) -> jax.Array:
    """The power of two at or below the largest |entry| of a tree; one for zeros and infinities.

    Dividing by it changes no bit of what neither overflows nor vanishes.
    """
    largest = optax.tree.norm(tree, ord="inf")
    usual = (largest > 0) & jnp.isfinite(largest)
    _, exponent = jnp.frexp(jnp.where(usual, largest, 1))
    return jnp.ldexp(jnp.ones_like(largest), exponent - 1)


@operator
class Identity:
    """v -> v."""

    def __call__(self, v: Any) -> Any:
        return v


@operator
class Sum:
    """v -> A v + B v + ..."""

    terms: tuple

    def __call__(self, v: Any) -> Any:
        return jax.tree.map(lambda *leaves: sum(leaves), *(term(v) for term in self.terms))

    def linearized(self) -> "Sum":
        return Sum(tuple(linearized(term) for term in self.terms))


@operator
class Scaled:
    """v -> c A v."""

    matvec: Callable
    factor: float

    def __call__(self, v: Any) -> Any:
        return jax.tree.map(lambda leaf: self.factor * leaf, self.matvec(v))

    def linearized(self) -> "Scaled":
        return Scaled(linearized(self.matvec), self.factor)


@operator
class Restricted:
    """A on some of the parameters, the others held: v -> P A P^T v.

    Attributes:
        matvec: A, on vectors shaped like `params`.
        params: Gives the structure.
        keep: `keep(path) -> bool` on paths such as "block_0/qkv/kernel". Vectors have `None` in the
            place of every leaf that is not kept; see `select`.
    """

    matvec: Callable
    params: Params
    keep: Callable[[str], bool] = static()

    def __call__(self, v: Any) -> Any:
        def fill(part, leaf):
            return jnp.zeros_like(leaf) if part is None else part

        whole = jax.tree.map(fill, v, self.params, is_leaf=lambda part: part is None)
        return self.select(self.matvec(whole))

    def linearized(self) -> "Restricted":
        return Restricted(linearized(self.matvec), self.params, self.keep)

    def select(self, tree: Any) -> Any:
        """A tree like `params` with `None` for the leaves that are not kept."""

        def pick(path, leaf):
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            return leaf if self.keep(name) else None

        return jax.tree_util.tree_map_with_path(pick, tree)
