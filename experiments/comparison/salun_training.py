"""How SalUn's protocol trains and unlearns: its numbers, each with where it was read.

All were read in public code, not in the paper (arXiv 2310.12508): in `arg_parser.py` and the README
of Unlearn-Saliency, the authors' repository; in the README of Unlearn-Sparse, on which it is built;
and in a script of Scissorhands, which runs the same baselines. They are those for a random tenth of
CIFAR-10; the authors searched steps over orders of magnitude, by the smallest gap to retraining.
"""

import math
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
import optax

from experiments.comparison.choosing import validation_of
from experiments.comparison.trials import AtStep
from famr_jax import data, loop, mesh, train
from famr_jax.cli.bench import Bench
from famr_jax.methods import (
    boundary_expand,
    boundary_shrink,
    finetune,
    gradient_ascent,
    l1_sparse,
    random_labels,
    salun,
)
from famr_jax.store import Fitted
from famr_jax.types import ApplyFn, Batch, Unlearner

EPOCHS, BATCH_SIZE, LR = 182, 256, 0.1
"""Of training: `--epochs`, `--batch_size` and `--lr` of `arg_parser.py`."""
MOMENTUM, DECAY = 0.9, 5e-4
"""Of SGD, in training and in unlearning, decay of all weights: `--momentum`, `--weight_decay`."""
DROPS = (91, 136)
"""Epochs of 182 after which the step falls to a tenth: `--decreasing_lr`."""
EVERY = 10
"""One image of so many is held out of each class: `valid_idx` of `dataset.py`."""
SHARE, PENALTY = 0.5, 1e-4
"""Weights that SalUn moves (Unlearn-Saliency, README); gamma of l1-sparse (Scissorhands)."""


class Setting(NamedTuple):
    """The published step of a method, its epochs, and where both were read."""

    lr: float
    epochs: int
    source: str


SETTINGS = {
    "FT": Setting(0.01, 10, "Unlearn-Sparse, README"),
    "RL": Setting(0.013, 10, "Unlearn-Saliency, README: SalUn's"),
    "GA": Setting(1e-4, 5, "Unlearn-Sparse, README"),
    "BE": Setting(1e-6, 10, "Scissorhands, main_0.1_cifar10.sh"),
    "BS": Setting(1e-6, 10, "Scissorhands, main_0.1_cifar10.sh"),
    "l1-sparse": Setting(0.01, 10, "Unlearn-Sparse, README; Scissorhands, main_0.1_cifar10.sh"),
    "SalUn": Setting(0.013, 10, "Unlearn-Saliency, README"),
}
"""By the source's names: what its table has and this library too."""


UNLEARNING = optax.chain(
    optax.add_decayed_weights(DECAY),
    optax.inject_hyperparams(optax.sgd)(learning_rate=1.0, momentum=MOMENTUM),
)
"""SGD with a step of 1 that `trials.AtStep` replaces."""


@lru_cache
def training(lr: float, num_steps: int) -> optax.GradientTransformation:
    """SGD with momentum and decay of all weights, whose step falls to a tenth twice."""
    drops = {epoch * num_steps // EPOCHS: 0.1 for epoch in DROPS}
    rate = optax.piecewise_constant_schedule(lr, drops)
    return optax.chain(optax.add_decayed_weights(DECAY), optax.sgd(rate, momentum=MOMENTUM))


def made(name: str, apply_fn: ApplyFn, lr: float, *, weight: float, num_steps: int) -> Unlearner:
    """A method by the source's name.

    Args:
        name: One of `SETTINGS`.
        apply_fn: The model.
        lr: The step of SGD.
        weight: |F|/|R|, by which random labels count as in a pass over the union of both sets.
        num_steps: How many steps will be taken, over which the l1 penalty falls to 0.
    """
    optimizer = UNLEARNING
    relabelled = random_labels(apply_fn, forget_weight=weight, optimizer=optimizer)
    method = {
        "FT": finetune(apply_fn, optimizer=optimizer),
        "RL": relabelled,
        "GA": gradient_ascent(apply_fn, optimizer=optimizer),
        "BE": boundary_expand(apply_fn, optimizer=optimizer),
        "BS": boundary_shrink(apply_fn, optimizer=optimizer),
        "l1-sparse": l1_sparse(
            apply_fn, penalty=PENALTY, decay_steps=num_steps, optimizer=optimizer
        ),
        "SalUn": salun(apply_fn, method=relabelled, share=SHARE),
    }[name]
    return AtStep(method, lr, method.epoch_over)


def held_out(bench: Bench) -> tuple[Bench, Batch]:
    """A bench without a tenth of each class's training images, and that tenth in memory."""
    whole = bench.dataset.train
    held = validation_of(np.asarray(whole.labels), bench.flags.seed, every=EVERY)
    part, files = whole, tuple(np.array(bench.dataset.files)[~held]) if bench.dataset.files else ()
    if isinstance(whole, data.OnDisk):
        part = whole[~held]
    else:
        part = data.Split(whole.x[~held], whole.labels[~held])
    dataset = replace(bench.dataset, train=part, files=files)
    return replace(bench, dataset=dataset, train=bench.train[~held]), bench.in_memory(held)


def trained(
    bench: Bench, name: str, mask: np.ndarray, *, members: int, key: jax.Array
) -> list[Fitted]:
    """Models trained on the rows of a mask, one for each seed, each kept on its own.

    Args:
        bench: Data, model and store; `train_epochs`, `batch_size` and `train_lr` of its flags.
        name: For progress, seconds and the store.
        mask: The examples, `[n]`.
        members: How many models.
        key: PRNG key of all of them.
    """
    rows, flags, norm = bench.train[mask], bench.flags, bench.model.batch_norm
    num_steps = flags.train_epochs * math.ceil(len(rows) / flags.batch_size)
    learner = train.Supervised(
        bench.model.apply,
        training(flags.train_lr, num_steps),
        bench.augment,
        train_fn=norm and norm.train_fn,
        fold=norm and norm.fold,
    )
    init_keys, keys = jax.vmap(jax.random.split, out_axes=1)(jax.random.split(key, members))

    def begin(chunk):
        return train.begin(learner, train.init_of(bench.model), init_keys[chunk])

    def advance(chunk, state, start):
        return loop.run_epochs(
            learner,
            mesh.split(state),
            rows,
            size=len(rows),
            epochs=flags.train_epochs,
            batch_size=flags.batch_size,
            key=keys[chunk],
            start=start,
            donate=True,
        )

    config = bench.config(mask) | {"image_shape": bench.model.image_shape, "by": "SalUn's SGD"}
    config |= {"key": jax.random.key_data(key).tolist()}
    return bench.store.fit_members(
        name,
        [config | {"member": i} for i in range(members)],
        begin,
        advance,
        epochs=flags.train_epochs,
        width=loop.member_width(),
        sources=(*bench.sources, Path(__file__)),
    )
