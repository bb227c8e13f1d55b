"""What every experiment compares: an original, and oracles that never saw the forget set."""

import functools
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments import common
from famr_jax import checkpoint, data, forget, loop, mesh, models, train
from famr_jax.data import superclasses
from famr_jax.models import pretrained
from famr_jax.types import Batch, Params, Source, check_count, check_number

DTYPES = ("float32", "bfloat16")
OPTIMIZERS = {"adam": optax.adam, "adamw": optax.adamw, "sgd": optax.sgd}
MARGIN = 256 / 224
USES_OF_KEYS = ("init", "train", "oracle init", "oracle train", "unlearn", "unlearn again")


@dataclass(frozen=True)
class Flags:
    """Data, model and training; the defaults are the demo."""

    dataset: str = "digits"
    """digits; any image classification of TFDS (fashion_mnist, cifar10, cifar100, imagenet100, ...)
    that is prepared in --data-dir; or folder:PATH with PATH/split/class/image."""
    data_dir: Path | None = None
    """Where TFDS keeps its data sets; its own default if not given."""
    classes: int | None = None
    """Keep the first k classes only."""
    image_size: int | None = None
    """Side of what the model sees, as 224; the images' own if not given. Of larger images, training
    takes random resized crops of squares of 8/7 of it, everything else their middle; smaller ones
    are resized on the device."""
    stream: bool = False
    """Read images from disk as they are needed; forget sets are held in memory."""
    model: str = "vit_mu/2"
    """vit_V/PATCH with V of mu, nano, Ti, S, B, L or WIDTHxDEPTH; mlp_SIZExSIZE; or logistic."""
    train_epochs: int = 50
    """Epochs of training, for the original and each oracle."""
    train_lr: float = 4e-3
    """Peak step of training (AdamW, warm-up, cosine)."""
    batch_size: int = 32
    """Images a step, in training and in unlearning."""
    weights: str | None = None
    """What training starts from, of the original and of the oracles: a .npz or .safetensors file, a
    directory with model.safetensors, or hf:owner/name; another number of classes gets a new head,
    another image size new positions. Fresh weights if not given."""
    accumulate: int = 1
    """Micro-batches a step of training, which bound the memory; --batch-size is their sum."""
    ema: float | None = None
    """Decay of a running average of the weights, which then is what training ends in."""
    dtype: str = "float32"
    """Of products and activations in training: float32 or bfloat16; weights stay in float32."""
    oracles: int = 3
    """Models retrained without the forget set; a verdict needs 8."""
    seed: int = 0
    """Of everything random."""
    original: Path | None = None
    """A checkpoint of trained weights, which skips that training; oracles are trained as the flags
    say, so that --weights must be given too where the checkpoint came from them."""
    out: Path | None = None
    """Directory of the results; runs/DATASET-MODEL-SEED if not given."""
    cache: Path = Path("runs/cache")
    """Where phases are kept for --resume, shared by runs and experiments."""
    mesh: str | None = None
    """Devices to run on, as data=4 or data=2,model=2; one if not given."""
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
        return re.sub(r"[^\w.]+", "-", self.spec)


class Start(NamedTuple):
    """The weights of a file, fitted to the model, and their hash."""

    params: Params
    fingerprint: str


@dataclass(frozen=True)
class Workbench:
    """Checked flags, loaded data, the model, and where results go."""

    flags: Flags
    dataset: data.Dataset
    train: Batch | Source
    test: Batch | Source
    model: models.Model
    store: common.Store
    out: Path
    start: Start | None = None
    given: Params | None = None

    @property
    def clock(self) -> common.Clock:
        """Where the seconds of all phases are booked."""
        return self.store.clock

    def key(self, use: str) -> jax.Array:
        """The PRNG key of one use."""
        return jax.random.fold_in(jax.random.key(self.flags.seed), USES_OF_KEYS.index(use))

    @property
    def augment(self):
        """The augmentation of training: mirrored only where a mirrored image keeps its class."""
        if self.model.view is not None:
            return data.random_resized_crop(self.flags.image_size, flip=self.dataset.mirrored)
        return data.crop_and_flip if self.dataset.mirrored else data.crop

    def in_memory(self, rows: np.ndarray) -> Batch:
        """Training images at some rows, read if they are on disk."""
        part = self.train[rows]
        return part.batch() if isinstance(part, Source) else part

    def config(self, mask: np.ndarray) -> dict[str, Any]:
        """What determines a model trained on the rows of `mask`, for the store."""
        names = ("model", "image_size", "train_epochs", "train_lr", "batch_size", "seed", "mesh")
        names += ("stream", "accumulate", "ema", "dtype")
        chosen = {name: getattr(self.flags, name) for name in names}
        chosen["augment"] = self.augment.__name__
        chosen["start"] = self.start and self.start.fingerprint
        return {
            "data": self.dataset.fingerprint,
            "mask": np.packbits(mask).tobytes().hex(),
            **chosen,
        }

    def on(self, name: str) -> "Workbench":
        """The same, with fresh weights of another model on the same images."""
        model = self.model
        shape = {"num_classes": model.num_classes, "image_shape": model.image_shape}
        other = models.create(name, **shape)
        # A new object is another function to jit.
        other = other if model.view is None else replace(other, view=model.view)
        chosen = replace(self.flags, model=name, weights=None)
        return replace(self, flags=chosen, model=other, start=None, given=None)

    def learner(self, num_rows: int) -> train.Supervised:
        """The training that the flags ask for, of so many images."""
        flags = self.flags
        num_steps = flags.train_epochs * math.ceil(num_rows / flags.batch_size)
        narrow = flags.dtype != "float32"
        apply_fn = (
            models.computing_in(self.model.apply, flags.dtype) if narrow else self.model.apply
        )
        return train.Supervised(
            apply_fn,
            train.adamw(num_steps=num_steps, lr=flags.train_lr),
            self.augment,
            accumulate=flags.accumulate,
            ema=flags.ema,
        )

    def begin(self) -> Params:
        """The weights that the original starts from."""
        if self.start is not None:
            return self.start.params
        return jax.jit(self.model.init)(self.key("init"))

    def original(
        self, name: str = "original", *, watch: Callable[[Params], dict] | None = None
    ) -> common.Fitted:
        """The model trained on everything, or the checkpoint that `--original` names.

        Args:
            name: For progress and seconds.
            watch: Measures the weights after each epoch; its numbers join the log.
        """
        if self.given is not None:
            return common.Fitted(self.given, [], {})
        everything = np.ones(len(self.train), bool)
        return self._fit(name, everything, self.key("init"), self.key("train"), watch)

    def oracles(self, case: Case, *, same_start: bool = False) -> list[Params]:
        """Models trained without the forget set: seeds, in one program.

        From the weights of the file or fresh ones; with `same_start`, from those that the original
        started from.
        """
        members, name = self.flags.oracles, f"oracles {case.name}"
        init_keys, keys = (
            jax.random.split(self.key(use), members) for use in ("oracle init", "oracle train")
        )
        if same_start:
            init_keys, name = jax.numpy.stack([self.key("init")] * members), f"{name} same start"
        stacked = self._fit(name, ~case.mask, init_keys, keys).params
        return common.members(stacked)

    def clear(self) -> None:
        """Removes what an earlier run left in `out`, but for what `--original` names."""
        spared = self.flags.original and self.flags.original.resolve()
        old = [self.out / "metrics.json", self.out / "report.html"]
        old += [
            path.parent.parent for path in (self.out / "checkpoints").rglob("_CHECKPOINT_METADATA")
        ]
        for path in old:
            kept = spared and path.resolve().is_relative_to(spared)
            if not kept and path.exists():
                common.discard(path)

    def keep(self, role: str, params: Params, config: dict[str, Any]) -> None:
        """Writes weights to checkpoints/ROLE, with the configuration that made them."""
        directory = self.out / "checkpoints" / role
        common.discard(directory)
        record = common.plain(config | self.identity() | {"role": role})
        checkpoint.save(directory, params, epoch=0, config=record)

    def describe(self, original: common.Fitted) -> dict[str, Any]:
        """Data set, model and the original's training, for the JSON."""
        dataset = self.dataset
        return {
            "dataset": {
                "name": dataset.name,
                "num_classes": dataset.num_classes,
                "class_names": dataset.class_names,
                "image_shape": dataset.image_shape,
                "num_train": len(dataset.train),
                "num_test": len(dataset.test),
                "duplicates": data.count_duplicates(dataset.train, dataset.test),
            },
            "model": {
                "name": self.model.name,
                "num_params": sum(leaf.size for leaf in jax.tree.leaves(original.params)),
            },
            "original": {
                "history": {k: [entry[k] for entry in original.log] for k in ("loss", "accuracy")}
            },
        }

    def identity(self) -> dict[str, Any]:
        """What weights must agree on to be exchanged: data set, model and shapes."""
        model = self.model
        shape = {"num_classes": model.num_classes, "image_shape": list(model.image_shape)}
        return {"dataset": self.dataset.name, "model": model.name, **shape}

    def _fit(self, name, mask, init_key, key, watch=None):
        flags, rows = self.flags, self.train[np.flatnonzero(mask)]
        sizes = {"size": len(rows), "epochs": flags.train_epochs, "batch_size": flags.batch_size}
        learner = self.learner(len(rows))

        def begin(key, given):
            def one(key):
                params = self.model.init(key) if given is None else given
                return learner.init(jax.tree.map(jnp.copy, params))  # a donated state owns its own

            return (jax.vmap(one) if key.ndim else one)(key)

        return self.store.fit(
            name,
            self.config(mask) | {"members": key.shape[0] if key.ndim else None},
            lambda: jax.jit(begin)(init_key, self.start and self.start.params),
            lambda state, start: loop.run_epochs(
                learner, mesh.split(state), rows, **sizes, key=key, start=start
            ),
            epochs=flags.train_epochs,
            watch=watch,
        )


def open_workbench(
    flags: Flags,
    *,
    change: Callable[[data.Dataset], data.Dataset] = lambda dataset: dataset,
    streams: bool = False,
) -> Workbench:
    """Loads the data and checks every flag, before anything is written.

    Args:
        flags: Data, model and training.
        change: What to make of the loaded data set, as a choice of its classes.
        streams: Whether the experiment can work from disk.

    Raises:
        ValueError: A flag out of range, an unknown name, or bad data.
    """
    for name in ("train_epochs", "batch_size", "oracles", "accumulate"):
        check_count(name, getattr(flags, name))
    if flags.batch_size % flags.accumulate:
        rule = f"must divide `batch_size` {flags.batch_size}"
        raise ValueError(f"`accumulate` {rule}, got {flags.accumulate}.")
    if flags.ema is not None and not 0 <= flags.ema < 1:
        raise ValueError(f"`ema` must be in [0, 1), got {flags.ema!r}.")
    if flags.dtype not in DTYPES:
        raise ValueError(f"`dtype` must be one of {', '.join(DTYPES)}, got {flags.dtype!r}.")
    check_number("train_lr", flags.train_lr, above=0)
    if not 0 <= flags.seed < 2**32:
        raise ValueError(f"`seed` must be in [0, 2^32), got {flags.seed}.")
    if flags.stream and not streams:
        raise ValueError("`stream` must be off: this experiment needs its images in memory.")
    size = flags.image_size
    if size is not None:
        check_count("image_size", size)
    stored = {"image_size": None if size is None else round(size * MARGIN), "stream": flags.stream}
    places = {"data_dir": flags.data_dir, "classes": flags.classes}
    dataset = change(data.load(flags.dataset, **places, **stored))
    shape = dataset.image_shape if size is None else (size, size, dataset.image_shape[-1])
    model = models.create(flags.model, num_classes=dataset.num_classes, image_shape=shape)
    if size is not None and min(dataset.image_shape[:2]) > size:
        model = replace(model, view=data.centre_crop(size))
    name = f"{dataset.name}-{flags.model}-{flags.seed}".replace("/", "-").replace(":", "-")
    store = common.Store(flags.cache, resume=flags.resume, clock=common.Clock())
    out = flags.out or Path("runs") / name
    train_set, test_set = (
        split if flags.stream else split.batch() for split in (dataset.train, dataset.test)
    )
    if (most := min(flags.batch_size, len(train_set))) % flags.accumulate:
        raise ValueError(f"`accumulate` must divide all {most} images, got {flags.accumulate}.")
    start = None if flags.weights is None else _start(flags.weights, model)
    bench = Workbench(flags, dataset, train_set, test_set, model, store, out, start)
    if flags.original is None:
        return bench
    like = jax.eval_shape(model.init, bench.key("init"))
    given = checkpoint.load(flags.original, like, expect=bench.identity()).tree
    return replace(bench, given=given)


def _start(weights: str, model: models.Model) -> Start:
    shape = {"num_classes": model.num_classes, "image_shape": model.image_shape}
    found, params = pretrained.load(weights, **shape)
    if found.name != model.name:
        rule = f"must be that of `weights`, {found.name}"
        raise ValueError(f"`model` {rule}, got {model.name}.")
    return Start(params, common.fingerprint(params))


def parse_cases(specs: Sequence[str], dataset: data.Dataset, *, seed: int) -> list[Case]:
    """The forget sets that a command line names, each with its exact duplicates.

    Raises:
        ValueError: No set, the same set twice, or whatever `forget.parse` refuses.
    """
    known = None
    if any(spec.startswith("superclass:") for spec in specs):
        known = {"superclass": superclasses.of_each(dataset.train, dataset)}
    sets = forget.parse_all(
        specs, dataset.train, num_classes=dataset.num_classes, seed=seed, attributes=known
    )
    return [Case(each.spec, each.classes, each.mask, each.duplicates) for each in sets]


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
