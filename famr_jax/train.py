"""Supervised training as jitted epochs: `run` follows a `Recipe`, for one seed or for many."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from famr_jax import loop, mesh
from famr_jax.losses import cross_entropy
from famr_jax.models.batchnorm import BatchNorm
from famr_jax.models.checking import check
from famr_jax.models.precision import computing_in
from famr_jax.optimizer import adamw
from famr_jax.types import (
    ApplyFn,
    Batch,
    Params,
    Source,
    check_count,
    check_kept,
    check_key,
    check_labels_of,
    check_number,
    images_of,
    pytree,
    static,
)

DTYPES = ("float32", "bfloat16")


class TrainState(NamedTuple):
    """Weights and optimizer state: all that the next step needs.

    Attributes:
        params: The weights that training gives.
        opt_state: The optimizer's.
        latest: The weights that the optimizer moves, where `params` are an average of them; weights
            and running statistics, where `params` have these folded in.
    """

    params: Params
    opt_state: Any
    latest: Params | None = None


@pytree
class Supervised:
    """A learner that descends mean cross-entropy with any optax optimizer.

    A step in micro-batches is that of the whole batch up to rounding: images are augmented before
    they are split, so that each has the same draw, and the gradients' mean is exact. But for batch
    normalisation: each micro-batch has its own statistics, and moves the running ones in its turn.

    Attributes:
        apply_fn: The model.
        optimizer: An optax transformation; weight decay belongs to it.
        augment: `augment(key, x) -> x` on a batch of images, inside the jitted step; None for none.
        label_smoothing: Share of the target spread over all classes.
        accumulate: Micro-batches a step, which bound the memory; they must divide the batch.
        ema: Decay a of the average that is trained for, e <- a e + (1 - a) params after each step
            from the first weights on; None for the last weights.
        train_fn: `train_fn(weights, statistics, x) -> (logits, statistics)` in place of `apply_fn`,
            for batch normalisation; see `models.BatchNorm`.
        fold: `fold((weights, statistics)) -> params`, with `train_fn`.
    """

    apply_fn: ApplyFn = static()
    optimizer: optax.GradientTransformation = static()
    augment: Callable[[Array, Array], Array] | None = static(default=None)
    label_smoothing: float = 0.0
    accumulate: int = static(default=1)
    ema: float | None = None
    train_fn: Callable[[Params, Any, Array], tuple[Array, Any]] | None = static(default=None)
    fold: Callable[[tuple[Params, Any]], Params] | None = static(default=None)

    def init(self, params: Params) -> TrainState:
        """The state before the first step, of weights; of (weights, statistics) with `train_fn`."""
        if self.train_fn is not None or self.fold is not None:
            return self._init_normalised(params)
        opt_state = self.optimizer.init(params)
        if self.ema is None:
            return TrainState(params, opt_state)
        check_number("ema", self.ema, least=0)
        check_number("1 - ema", 1 - self.ema, above=0)
        return TrainState(params, opt_state, jax.tree.map(jnp.copy, params))

    def _init_normalised(self, latest):
        if self.train_fn is None or self.fold is None:
            missing = "train_fn" if self.train_fn is None else "fold"
            raise ValueError(f"`train_fn` and `fold` must be given together, got no `{missing}`.")
        if self.ema is not None:
            rule = "must be None with `train_fn`: averaged weights have other statistics"
            raise ValueError(f"`ema` {rule}, got {self.ema!r}.")
        if not isinstance(latest, tuple) or len(latest) != 2:
            rule = "must be (weights, statistics) with `train_fn`"
            raise ValueError(f"`params` {rule}, got {type(latest).__name__}.")
        params = jax.tree.map(jnp.copy, self.fold(latest))
        return TrainState(params, self.optimizer.init(latest[0]), latest)

    def step(self, state: TrainState, batch: Batch, key: Array):
        """One step on a minibatch: the next state, and its loss and accuracy."""
        x = batch.x if self.augment is None else self.augment(key, batch.x)
        params: Any = state.params if self.ema is None else state.latest
        statistics = None
        if self.train_fn is not None and state.latest is not None:
            params, statistics = state.latest
        (loss, (accuracy, statistics)), grads = self._gradient(
            params, statistics, Batch(x, batch.labels)
        )
        updates, opt_state = self.optimizer.update(grads, state.opt_state, params)
        params, info = optax.apply_updates(params, updates), {"loss": loss, "accuracy": accuracy}
        if self.fold is not None:
            latest = params, statistics
            return TrainState(self.fold(latest), opt_state, latest), info
        if self.ema is None:
            return TrainState(params, opt_state), info
        average = optax.incremental_update(params, state.params, 1 - self.ema)
        return TrainState(average, opt_state, params), info

    def _gradient(self, params, statistics, batch):
        def objective(params, statistics, batch):
            if self.train_fn is None:
                logits = self.apply_fn(params, batch.x)
            else:
                logits, statistics = self.train_fn(params, statistics, batch.x)
            loss = cross_entropy(logits, batch.labels, label_smoothing=self.label_smoothing)
            right = jnp.argmax(logits, -1) == batch.labels
            lost = jnp.any(jnp.isnan(logits), axis=-1)
            accuracy = jnp.mean(jnp.where(lost, jnp.nan, right))
            return jnp.mean(loss), (accuracy, statistics)

        gradient = jax.value_and_grad(objective, has_aux=True)
        parts = self.accumulate
        check_count("accumulate", parts)
        if parts == 1:
            return gradient(params, statistics, batch)
        if len(batch) % parts:
            raise ValueError(f"`accumulate` must divide the {len(batch)} examples, got {parts}.")
        # Every `parts`-th example: each device then has its share of each micro-batch already.
        split = jax.tree.map(lambda a: a.reshape(-1, parts, *a.shape[1:]).swapaxes(0, 1), batch)

        def body(carry, part):
            total, statistics = carry
            (loss, (accuracy, statistics)), grads = gradient(params, statistics, mesh.spread(part))
            return (jax.tree.map(jnp.add, total, (loss, accuracy, grads)), statistics), None

        first = jax.tree.map(lambda a: a[0], split)
        (loss, (accuracy, _)), grads = jax.eval_shape(gradient, params, statistics, first)
        like = loss, accuracy, grads
        zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), like)
        (total, statistics), _ = jax.lax.scan(body, (zeros, statistics), split)
        loss, accuracy, grads = jax.tree.map(lambda leaf: leaf / parts, total)
        return (loss, (accuracy, statistics)), grads


@dataclass(frozen=True)
class Recipe:
    """How a model is trained: AdamW with warm-up, cosine decay to zero and clipped gradients.

    Attributes:
        epochs: Passes over the training set.
        batch_size: Images a step.
        lr: Peak learning rate.
        weight_decay: Decoupled weight decay of matrices; biases and norms do not decay.
        warmup: Share of the steps that warm up.
        augment: `augment(key, x) -> x` on a batch of images; None for none.
        label_smoothing: Share of the target spread over all classes.
        accumulate: Micro-batches a step, which bound the memory; they must divide the batch.
        ema: Decay of a running average of the weights, which then is what training ends in.
        dtype: Of products and activations, "float32" or "bfloat16"; weights keep their own.

    Raises:
        ValueError: A value out of range.
    """

    epochs: int
    batch_size: int = 32
    lr: float = 2e-3
    weight_decay: float = 0.05
    warmup: float = 0.1
    augment: Callable[[Array, Array], Array] | None = None
    label_smoothing: float = 0.0
    accumulate: int = 1
    ema: float | None = None
    dtype: str = "float32"

    def __post_init__(self):
        for name in ("epochs", "batch_size", "accumulate"):
            check_count(name, getattr(self, name))
        check_number("lr", self.lr, above=0)
        check_number("weight_decay", self.weight_decay, least=0)
        if not 0 <= self.warmup < 1:
            raise ValueError(f"`warmup` must be in [0, 1), got {self.warmup!r}.")
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(f"`label_smoothing` must be in [0, 1), got {self.label_smoothing!r}.")
        if self.batch_size % self.accumulate:
            rule = f"must divide `batch_size` {self.batch_size}"
            raise ValueError(f"`accumulate` {rule}, got {self.accumulate}.")
        if self.ema is not None and not 0 <= self.ema < 1:
            raise ValueError(f"`ema` must be in [0, 1), got {self.ema!r}.")
        if self.dtype not in DTYPES:
            raise ValueError(f"`dtype` must be one of {', '.join(DTYPES)}, got {self.dtype!r}.")

    def learner(
        self, apply_fn: ApplyFn, size: int, batch_norm: BatchNorm | None = None
    ) -> Supervised:
        """The learner that follows the recipe on a training set of `size` images.

        Raises:
            ValueError: Batch normalisation with an average of the weights, or in bfloat16.
        """
        if batch_norm is not None and (self.ema is not None or self.dtype != "float32"):
            rule = "must be None and `dtype` float32 with batch normalisation"
            raise ValueError(f"`ema` {rule}, got {self.ema!r} and {self.dtype}.")
        num_steps = self.epochs * math.ceil(size / self.batch_size)
        return Supervised(
            apply_fn if self.dtype == "float32" else computing_in(apply_fn, self.dtype),
            adamw(
                num_steps=num_steps,
                lr=self.lr,
                weight_decay=self.weight_decay,
                warmup=self.warmup,
            ),
            self.augment,
            self.label_smoothing,
            self.accumulate,
            self.ema,
            batch_norm and batch_norm.train_fn,
            batch_norm and batch_norm.fold,
        )


class Trained(NamedTuple):
    """What training gives.

    Attributes:
        params: The weights; with a leading member axis where there were many keys.
        log: Mean loss and accuracy per epoch, `[epochs]`, or `[members, epochs]`.
        finite: False if a loss or a weight was no longer finite; training stopped there.
    """

    params: Params
    log: dict[str, np.ndarray]
    finite: bool

    @property
    def members(self) -> list[Params]:
        """The weights of each member, in the order of the keys; of one key, a list of one."""
        return loop.members(self.params) if self.log["loss"].ndim > 1 else [self.params]


def run(
    model: Any,
    train: Batch | Source,
    recipe: Recipe,
    *,
    key: Array,
    start: Params | None = None,
    masks: np.ndarray | None = None,
) -> Trained:
    """Trains a model, or as many as there are keys, on all of a set or each on its own part of it.

    Members run in chunks of `loop.member_width()`, so that the bits of one depend on neither their
    number nor its place among them. Those of a chunk have parts of one size.

    Args:
        model: Anything with `apply(params, x) -> logits` and `init(key) -> params`; with
            `batch_norm` in place of `init`, a `models.BatchNorm`, for batch normalisation.
        train: The training set.
        recipe: How to train.
        key: PRNG key, or `[members]` of them: a model each.
        start: The weights to start from, of every member, in place of `model.init`; weights and
            statistics for a model with `batch_norm`.
        masks: The examples that each member is trained on, `[members, n]`; all if not given.

    Raises:
        ValueError: A model that `models.check` refuses; an empty set; a label that is none of its
            classes; a legacy key, or none; `accumulate` that does not divide the batch; neither
            `init` nor `start`; a `start` in float64 without x64; masks of another shape or one that
            is empty.
    """
    check_key(key, members=True)
    if not len(train):
        raise ValueError("`train` must hold at least one example, got 0.")
    init_fn = init_of(model)
    if start is None and init_fn is None:
        raise ValueError("`start` must be given for a model without `init`, got None.")
    check_kept("start", start)
    learner = _learner(recipe, model, len(train))
    like = jax.eval_shape(partial(begin, learner, init_fn), jax.random.key(0), start).params
    check(model.apply, like, images_of(train))
    check_labels_of(model.apply, like, train)
    if masks is not None:
        masks = loop.check_masks("masks", masks, key.size, len(train))
    if key.ndim == 0:
        part = train if masks is None else train[masks[0]]
        return _run(model, part, recipe, key, start, checked=images_of(train))
    width, found = loop.member_width(), {}
    sizes = np.full((len(key), 1), len(train)) if masks is None else masks.sum(1, keepdims=True)
    for rows in loop.alike(sizes, width):
        rows = int(rows[0]) if width == 1 else rows
        part = train if masks is None else loop.subsets(train, masks, rows)
        checked = None if found else images_of(train)
        done = _run(model, part, recipe, key[rows], start, checked=checked)
        found |= loop.parted(done, rows)
    return loop.joined([found[i] for i in range(len(key))])


def _run(model, train, recipe, key, start, *, checked):
    init_key, train_key = (
        jax.vmap(jax.random.split, out_axes=1)(key) if key.ndim else jax.random.split(key)
    )
    learner = _learner(recipe, model, len(train))
    state = begin(learner, init_of(model), init_key, start)
    if checked is not None:
        params = jax.tree.map(lambda leaf: leaf[0], state.params) if key.ndim else state.params
        check(model.apply, params, checked)
    epochs = loop.run_epochs(
        learner,
        mesh.split(state),
        train,
        size=len(train),
        epochs=recipe.epochs,
        batch_size=recipe.batch_size,
        key=train_key,
        donate=True,
    )
    log = []
    for _, state, info in epochs:  # noqa: B007
        log.append(jax.device_get(info))
    log = {name: np.stack([entry[name] for entry in log], axis=-1) for name in log[0]}
    return Trained(state.params, log, bool(np.all(log.pop("finite"))))


def _learner(recipe, model, size):
    norm = getattr(model, "batch_norm", None)
    return recipe.learner(model.apply, size, *(() if norm is None else (norm,)))


def init_of(model: Any) -> Callable[[Array], Any] | None:
    """What gives a model's first weights by key: `init`, or that of its `batch_norm`; or None."""
    norm = getattr(model, "batch_norm", None)
    return norm.init if norm is not None else getattr(model, "init", None)


def begin(
    learner: Supervised,
    init_fn: Callable[[Array], Params] | None,
    key: Array,
    start: Params | None = None,
) -> TrainState:
    """The state before the first step: fresh weights of each key, or `start` for all of them."""
    check_key(key, members=True)
    return _begin(learner, init_fn, key, start)


@partial(jax.jit, static_argnames="init_fn")
def _begin(learner, init_fn, key, start):
    def one(key):
        params = init_fn(key) if start is None else start
        return learner.init(jax.tree.map(jnp.copy, params))  # a donated state owns its own

    return (jax.vmap(one) if key.ndim else one)(key)
