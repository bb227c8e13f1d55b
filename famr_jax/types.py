"""The contracts of the library, written once: models, data, objectives and unlearners."""

import dataclasses
import math
import numbers
import operator
from collections.abc import Callable, Generator, Iterable
from typing import (
    Any,
    Literal,
    NamedTuple,
    Protocol,
    TypeAlias,
    dataclass_transform,
    runtime_checkable,
)

import jax
import numpy as np
from jax import Array
from jax.core import Tracer

Params: TypeAlias = Any
"""A pytree of arrays: the weights of a model."""

ApplyFn: TypeAlias = Callable[[Params, Array], Array]
"""`apply_fn(params, x) -> logits`: a model, as everyone sees it.

Pure and deterministic; row i of the logits depends on row i of `x` alone; the logits have shape
`[n, num_classes]` and the dtype of `params` (float64 in, float64 out).
"""


def static(default: Any = dataclasses.MISSING) -> Any:
    """A field of a pytree dataclass that is compared, not traced: a function, a name, a size."""
    return dataclasses.field(default=default, metadata={"static": True})


@dataclass_transform(frozen_default=True, field_specifiers=(static,))
def pytree(cls: type) -> type:
    """Class decorator: a frozen dataclass that is a pytree, its `static()` fields not leaves.

    To `jax.tree_util.register_dataclass` (JAX 0.10 to 0.12) any two classes with equal static
    fields are one structure, and `jit` now and then runs what it compiled for the one for the
    other: every lookup in its cache whose hashes agree in seven bits comes to that comparison.
    """
    made: Any = dataclasses.dataclass(frozen=True)(cls)
    kinds = {each.name: each.metadata.get("static", False) for each in dataclasses.fields(made)}
    constant = tuple(name for name, static in kinds.items() if static)
    traced = tuple(name for name, static in kinds.items() if not static)
    keys = tuple(map(jax.tree_util.GetAttrKey, traced))

    def flatten(tree):
        return [getattr(tree, n) for n in traced], tuple(getattr(tree, n) for n in constant)

    def flatten_with_keys(tree):
        leaves, fixed = flatten(tree)
        return list(zip(keys, leaves, strict=True)), fixed

    def unflatten(fixed, leaves):
        named = (*zip(constant, fixed, strict=True), *zip(traced, leaves, strict=True))
        return made(**dict(named))

    jax.tree_util.register_pytree_with_keys(made, flatten_with_keys, unflatten, flatten)
    return made


def as_pytree(function: Callable) -> Callable:
    """A plain function wrapped, so that it may enter `jit` as an argument."""
    plain = jax.tree_util.all_leaves([function])
    return jax.tree_util.Partial(function) if plain else function


@pytree
class Batch:
    """Labelled images held in memory: a minibatch, or a whole set.

    Attributes:
        x: Images, `[n, height, width, channels]`, scaled to [-1, 1].
        labels: Class indices, `[n]`, integer.
        raw: The images before `methods.augmented` changed them, else None.
    """

    x: Array
    labels: Array
    raw: Array | None = None

    def __len__(self) -> int:
        return self.labels.shape[0]

    def __getitem__(self, rows: Any) -> "Batch":
        return Batch(self.x[rows], self.labels[rows], None if self.raw is None else self.raw[rows])


@runtime_checkable
class Source(Protocol):
    """Labelled images that are not in memory: training, unlearning and evaluation stream them.

    A pytree without leaves (`jax.tree_util.register_static`), so that it may enter `jit`.

    Attributes:
        labels: Class indices, `[n]`, in memory.
        image_shape: Height, width and channels of every image.
    """

    @property
    def labels(self) -> np.ndarray: ...

    @property
    def image_shape(self) -> tuple[int, int, int]: ...

    def __len__(self) -> int:
        """How many images there are."""
        ...

    def __getitem__(self, rows: Any) -> "Source":
        """A subset, by slice, mask or row numbers; reads nothing."""
        ...

    def stream(self, rows: Iterable[np.ndarray]) -> Generator[Batch]:
        """Yields the batch at each array of rows, in order, reading ahead; may be closed early."""
        ...

    def batch(self) -> Batch:
        """All of it, in memory."""
        ...


@pytree
class Pair:
    """What one unlearning step sees: a batch of each set, `None` for a set that is not there."""

    forget: Batch | None
    retain: Batch | None


class Context(NamedTuple):
    """What an objective may know besides the weights and the minibatches.

    Attributes:
        anchor: The trained weights.
        prepared: What the method computed once before the first step, such as a teacher's outputs
            or a saliency mask: any pytree, or None.
        step: How many steps were taken, from which an objective reads its phase.
    """

    anchor: Params
    prepared: Any = None
    step: Array | int = 0


class Objective(Protocol):
    """A scalar to descend: a pytree dataclass whose call adds up its terms.

    Functions are static fields and numbers are leaves, so that a new value of `lam` does not
    retrace and a sweep over it is a `vmap`. Losses give one value per example; it is the objective
    that averages them.
    """

    def __call__(
        self, params: Params, context: Context, pair: Pair, key: Array
    ) -> tuple[Array, dict[str, Array]]:
        """Returns the scalar and its named terms."""
        ...


@runtime_checkable
class Unlearner(Protocol):
    """An unlearning method: a frozen pytree dataclass with a pure `init` and a pure `step`.

    `init` may be expensive: Fisher matrices, teachers and one-shot solves happen there, and a
    one-shot method's `step` returns its state unchanged. The state is a pytree with an attribute
    `params`; it holds what the next step needs and nothing else, phases read from a counter in it.

    Attributes:
        epoch_over: The set that one epoch passes over; the other is drawn in reshuffled batches.
    """

    @property
    def epoch_over(self) -> Literal["forget", "retain"]: ...

    def init(
        self, params: Params, forget: Batch | Source, retain: Batch | Source | None, key: Array
    ) -> Any:
        """The state before the first step; sets are whole, `params` are the trained weights."""

    def step(self, state: Any, pair: Pair, key: Array) -> tuple[Any, dict[str, Array]]:
        """One step on a minibatch: the next state, and scalars worth logging."""
        ...


def check_number(name: str, value: Any, *, above: float = -math.inf, least: float = -math.inf):
    """Raises unless a concrete `value` is a finite number, `> above` and `>= least`.

    Arrays and tracers pass: whoever sweeps over a grid checks the grid first.

    Raises:
        ValueError: With the name, the rule and the value.
    """
    if isinstance(value, (Array, np.ndarray)):
        return
    rule = f"> {above:g}" if above > -math.inf else f">= {least:g}" if least > -math.inf else ""
    number = float(value) if isinstance(value, numbers.Real) else math.nan
    if not (math.isfinite(number) and number > above and number >= least):
        raise ValueError(f"`{name}` must be finite{rule and f' and {rule}'}, got {value!r}.")


def check_labels(labels: Any, num_classes: int | None = None):
    """Raises unless concrete labels are classes: no loss says so, and -1 is the last class to it.

    The values of tracers pass: whoever lets a set in checks them there.

    Args:
        labels: Class indices of any shape.
        num_classes: How many classes there are, if that is known.

    Raises:
        ValueError: Labels that are no integers; one below 0, or of `num_classes` or more.
    """
    if not isinstance(labels, (Array, np.ndarray)):
        labels = np.asarray(labels)
    if not np.issubdtype(labels.dtype, np.integer):
        got = f"{labels.dtype} of shape {list(labels.shape)}"
        raise ValueError(f"`labels` must be integers, a class each, got {got}.")
    if isinstance(labels, Tracer) or not getattr(labels, "is_fully_addressable", True):
        return
    labels = np.asarray(labels)
    if labels.size and (labels.min() < 0 or (num_classes and labels.max() >= num_classes)):
        rule = f"classes of {num_classes}, 0 to {num_classes - 1}" if num_classes else ">= 0"
        raise ValueError(f"`labels` must be {rule}, got {labels.min()} to {labels.max()}.")


def images_of(data: "Batch | Source") -> "Array | Source":
    """The images of a set in memory, as an array, or the set itself where it is on disk."""
    return data.x if isinstance(data, Batch) else data


def check_labels_of(apply_fn: ApplyFn, params: Params, data: "Batch | Source"):
    """Raises a `ValueError` unless each example of a set has a label among a model's classes."""
    if np.ndim(data.labels) != 1:
        raise ValueError(f"`labels` must be a class each, [n], got {list(np.shape(data.labels))}.")
    shape = data.x.shape[1:] if isinstance(data, Batch) else data.image_shape
    x = jax.ShapeDtypeStruct((2, *shape), np.float32)
    check_labels(data.labels, jax.eval_shape(apply_fn, params, x).shape[-1])


def check_key(key: Any, *, members: bool = False):
    """Raises a `ValueError` unless `key` is one of `jax.random.key`, or [members] of them if so."""
    if not (isinstance(key, Array) and jax.numpy.issubdtype(key.dtype, jax.dtypes.prng_key)):
        found = f"an array of {key.dtype}" if hasattr(key, "dtype") else repr(key)
        raise ValueError(f"`key` must come from jax.random.key, got {found}.")
    if key.ndim > members or not key.size:
        rule = "one key, or [members] of them" if members else "one key"
        raise ValueError(f"`key` must be {rule}, got {list(key.shape)}.")


def check_kept(name: str, tree: Any):
    """Raises a `ValueError` for numbers of 64 bits that JAX would round to 32, and tell nobody."""
    settings: Any = jax.config  # whose names JAX sets as it is imported
    for leaf in jax.tree.leaves(tree):
        dtype = getattr(leaf, "dtype", None)
        if dtype in (np.float64, np.complex128) and not settings.jax_enable_x64:
            raise ValueError(
                f"`{name}` of {dtype} needs jax.config.update('jax_enable_x64', True): "
                "call it first, or cast them to float32."
            )


def check_count(name: str, value: Any):
    """Raises a `ValueError` unless `value` is an integer of at least one; True is none."""
    try:
        good = operator.index(value) >= 1 and not isinstance(value, bool)
    except TypeError:
        good = False
    if not good:
        raise ValueError(f"`{name}` must be an integer >= 1, got {value!r}.")
