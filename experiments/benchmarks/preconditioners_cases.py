"""The networks of the benchmark of preconditioners, and the systems of their removals."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from famr_jax import curvature, data, models, train
from famr_jax.cli.flags import OneOf
from famr_jax.curvature.gradients import mean_gradient
from famr_jax.loop import run_epochs
from famr_jax.losses import cross_entropy
from famr_jax.types import ApplyFn, Batch

CASES = {
    "MLP 2k": ("digits", "mlp_32", None),
    "ViT 40k": ("digits", "vit_32x3/2", None),
    "ViT 200k": ("digits", "vit_64x4x4/2", None),
    "ViT 40k, CIFAR-100": ("cifar100", "vit_32x3/4", 10),
    "ResNet-18 narrow": ("digits", "resnet18_32", None),
}
"""Data, model and, of CIFAR-100, how many classes, by name."""
CaseName = Annotated[str, OneOf(tuple(CASES))]
"""A flag's type: the name of one of them."""


class Settings(NamedTuple):
    """What a system is made of.

    Attributes:
        size: Images.
        forget: Of them those whose removal is the right-hand side.
        epochs: Of training, Adam at 2e-3, batches of 50, ridge 1e-3.
        seed: Of weights, labels and forget set.
    """

    size: int
    forget: int
    epochs: int
    seed: int


class Case(NamedTuple):
    """A trained network and its system."""

    apply_fn: ApplyFn
    outputs: Callable
    params: Any
    retain: Batch
    matrix: curvature.GaussNewton
    b: Any


def trained(name: str, settings: Settings, data_dir: Path | None = None) -> Case:
    """The network of a case at its trained weights, and the system of a removal."""
    size, m, epochs, seed = settings
    source, architecture, classes = CASES[name]
    dataset = data.load(source, data_dir=data_dir, classes=classes)
    if size > (most := len(dataset.train)):
        raise ValueError(f"`size` must be at most {most}, the images of {name}, got {size}.")
    whole = dataset.train.batch()[:size]
    label_key, init_key, fit_key = jax.random.split(jax.random.key(seed), 3)
    wrong_key, which_key = jax.random.split(label_key)
    drawn = jax.random.randint(wrong_key, whole.labels.shape, 0, dataset.num_classes)
    wrong = jax.random.uniform(which_key, whole.labels.shape) < 0.1
    whole = Batch(whole.x, jnp.where(wrong, drawn, whole.labels))
    model = models.create(
        architecture, num_classes=dataset.num_classes, image_shape=dataset.image_shape
    )
    optimizer = optax.chain(optax.add_decayed_weights(1e-3), optax.adam(2e-3))
    learner = train.Supervised(model.apply, optimizer)
    state = learner.init(jax.jit(model.init)(init_key))
    epochs_of = run_epochs(
        learner, state, whole, size=size, epochs=epochs, batch_size=50, key=fit_key
    )
    *_, (_, fitted, _) = epochs_of

    def outputs(params, batch):
        return model.apply(params, batch.x)

    def losses(params, batch):
        return cross_entropy(model.apply(params, batch.x), batch.labels)

    params, retain = fitted.params, whole[m:]
    gradient = jax.jit(partial(mean_gradient, losses))(params, whole[:m])
    b = jax.tree.map(lambda leaf: m / (size - m) * leaf, gradient)
    matrix = curvature.fisher(outputs, params, retain)
    return Case(model.apply, outputs, params, retain, matrix, b)
