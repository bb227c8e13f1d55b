"""What every experiment compares: an original, and oracles that never saw the forget set."""

import functools
import math
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

from experiments import common
from famr_jax import checkpoint, data, forget, loop, models, train
from famr_jax.types import Batch, Params, check_count, check_number

OPTIMIZERS = {"adam": optax.adam, "adamw": optax.adamw, "sgd": optax.sgd}
USES_OF_KEYS = ("init", "train", "oracle init", "oracle train", "unlearn", "unlearn again")


@dataclass(frozen=True)
class Flags:
    """Data, model and training; the defaults are the demo."""

    dataset: str = "digits"
    """digits; any image classification of TFDS (fashion_mnist, cifar10, cifar100, ...) that is
    prepared in --data-dir; or folder:PATH with PATH/split/class/image."""
    data_dir: Path | None = None
    """Where TFDS keeps its data sets; its own default if not given."""
    classes: int | None = None
    """Keep the first k classes only."""
    model: str = "vit_mu/2"
    """vit_V/PATCH with V of mu, nano, Ti, S, B, L; mlp_SIZExSIZE; or logistic."""
    train_epochs: int = 50
    """Epochs of training, for the original and each oracle."""
    train_lr: float = 4e-3
    """Peak step of training (AdamW, warm-up, cosine)."""
    batch_size: int = 32
    """Images a step, in training and in unlearning."""
    oracles: int = 3
    """Models retrained without the forget set; a verdict needs 8."""
    seed: int = 0
    """Of everything random."""
    original: Path | None = None
    """A checkpoint of trained weights, which skips training."""
    out: Path | None = None
    """Directory of the results; runs/DATASET-MODEL-SEED if not given."""
    cache: Path = Path("runs/cache")
    """Where phases are kept for --resume, shared by runs and experiments."""
    resume: bool = False
    """Reuse what a run of the same settings finished, and go on where it was killed."""


class Case(NamedTuple):
    """A forget set over the training set.

    Attributes:
        spec: The words that describe it, as `class:3`.
        classes: The forgotten classes; empty when samples are forgotten.
        mask: Forget set, `[n]`, exact duplicates taken along.
        duplicates_taken: How many were taken along.
    """

    spec: str
    classes: tuple[int, ...]
    mask: np.ndarray
    duplicates_taken: int

    @property
    def kind(self) -> str:
        """What is forgotten: a "class" or a "sample"."""
        return "class" if self.classes else "sample"

    @property
    def name(self) -> str:
        """The spec as a file name."""
        return self.spec.replace(":", "-").replace("/", "-").replace(",", "-")


@dataclass(frozen=True)
class Workbench:
    """Checked flags, loaded data, the model, and where results go."""

    flags: Flags
    dataset: data.Dataset
    train: Batch
    test: Batch
    model: models.Model
    store: common.Store
    out: Path

    @property
    def clock(self) -> common.Clock:
        """Where the seconds of all phases are booked."""
        return self.store.clock

    def key(self, use: str) -> jax.Array:
        """The PRNG key of one use."""
        return jax.random.fold_in(jax.random.key(self.flags.seed), USES_OF_KEYS.index(use))

    def config(self, mask: np.ndarray) -> dict[str, Any]:
        """What determines a model trained on the rows of `mask`, for the store."""
        names = ("model", "train_epochs", "train_lr", "batch_size", "seed")
        chosen = {name: getattr(self.flags, name) for name in names}
        return {
            "data": self.dataset.fingerprint,
            "mask": np.packbits(mask).tobytes().hex(),
            **chosen,
        }

    def original(self) -> common.Fitted:
        """The model trained on everything, or the checkpoint that `--original` names."""
        if self.flags.original is None:
            everything = np.ones(len(self.train), bool)
            return self._fit("original", everything, self.key("init"), self.key("train"))
        like = jax.eval_shape(self.model.init, self.key("init"))
        loaded = checkpoint.load(self.flags.original, like, expect=self._identity())
        return common.Fitted(loaded.tree, [], {"run": 0.0, "compile": 0.0})

    def oracles(self, case: Case) -> list[Params]:
        """Models trained from fresh weights without the forget set: seeds, in one program."""
        uses = ("oracle init", "oracle train")
        keys = [jax.random.split(self.key(use), self.flags.oracles) for use in uses]
        stacked = self._fit(f"oracles {case.name}", ~case.mask, *keys).params
        return [jax.tree.map(lambda leaf, i=i: leaf[i], stacked) for i in range(self.flags.oracles)]

    def keep(self, role: str, params: Params) -> None:
        """Writes weights to checkpoints/ROLE, for `--original` and for other programs."""
        directory = self.out / "checkpoints" / role
        shutil.rmtree(directory, ignore_errors=True)
        config = self._identity() | {"dataset": self.flags.dataset, "role": role}
        checkpoint.save(directory, params, epoch=0, config=config)

    def _identity(self) -> dict[str, Any]:
        model = self.model
        shape = {"num_classes": model.num_classes, "image_shape": list(model.image_shape)}
        return {"model": model.name, **shape}

    def _fit(self, name: str, mask: np.ndarray, init_key: jax.Array, key: jax.Array):
        flags, rows = self.flags, self.train[np.flatnonzero(mask)]
        sizes = {"size": len(rows), "epochs": flags.train_epochs, "batch_size": flags.batch_size}
        num_steps = flags.train_epochs * math.ceil(len(rows) / flags.batch_size)
        augment = data.crop_and_flip if self.dataset.mirrored else data.crop
        optimizer = train.recipe(num_steps=num_steps, lr=flags.train_lr)
        learner = train.Supervised(self.model.apply, optimizer, augment)
        init = lambda key: learner.init(self.model.init(key))  # noqa: E731
        return self.store.fit(
            name,
            self.config(mask) | {"members": key.shape[0] if key.ndim else None},
            lambda: jax.jit(jax.vmap(init) if key.ndim else init)(init_key),
            lambda state, start: loop.run_epochs(
                learner, state, rows, **sizes, key=key, start=start
            ),
            epochs=flags.train_epochs,
        )


def open_workbench(flags: Flags) -> Workbench:
    """Loads the data and checks every flag, before anything is written.

    Raises:
        ValueError: A flag out of range, an unknown name, or bad data.
    """
    for name in ("train_epochs", "batch_size", "oracles"):
        check_count(name, getattr(flags, name))
    check_number("train_lr", flags.train_lr, above=0)
    dataset = data.load(flags.dataset, data_dir=flags.data_dir, classes=flags.classes)
    shape = {"num_classes": dataset.num_classes, "image_shape": dataset.image_shape}
    model = models.create(flags.model, **shape)
    name = f"{dataset.name}-{flags.model}-{flags.seed}".replace("/", "-").replace(":", "-")
    store = common.Store(flags.cache, resume=flags.resume, clock=common.Clock())
    out = flags.out or Path("runs") / name
    train_set, test_set = dataset.train.batch(), dataset.test.batch()
    return Workbench(flags, dataset, train_set, test_set, model, store, out)


def parse_cases(specs: Sequence[str], dataset: data.Dataset, *, seed: int) -> list[Case]:
    """The forget sets that a command line names, each with its exact duplicates.

    Raises:
        ValueError: No case, a case named twice, or whatever `forget.parse` refuses.
    """
    if not specs or len(set(specs)) < len(specs):
        raise ValueError(f"`forget` must name each case once, got {' '.join(specs) or 'none'}.")
    groups, _ = data.duplicate_groups(dataset.train.x, dataset.test.x)
    cases = []
    for spec in specs:
        parse = functools.partial(forget.parse, num_classes=dataset.num_classes, seed=seed)
        mask = parse(spec, labels=dataset.train.labels)
        whole = forget.check(forget.with_duplicates(mask, groups), name=spec)
        kind, _, words = spec.partition(":")
        classes = tuple(int(word) for word in words.split(",")) if kind == "class" else ()
        shown = f"index:{Path(words).name}" if kind == "index" else spec
        cases.append(Case(shown, classes, whole, int(whole.sum() - mask.sum())))
    return cases


@functools.cache
def make_optimizer(name: str, lr: float) -> optax.GradientTransformation:
    """An optimizer by name; the same words give the same object, which jit relies on.

    Raises:
        ValueError: Unknown name, or `lr` not positive.
    """
    if name not in OPTIMIZERS:
        raise ValueError(f"`optimizer` must be one of {', '.join(OPTIMIZERS)}, got {name!r}.")
    check_number("lr", lr, above=0)
    return OPTIMIZERS[name](lr)
