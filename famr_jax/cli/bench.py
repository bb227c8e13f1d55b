"""What every comparison starts from: data, model, an original, and oracles."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from famr_jax import checkpoint, data, forget, loop, mesh, models, train
from famr_jax.cli.flags import BenchFlags
from famr_jax.data import superclasses
from famr_jax.evaluation import MEASURES, Evaluator, Measure, Part, parts, sampled_parts
from famr_jax.files import plain
from famr_jax.forget import ForgetSet
from famr_jax.store import TRAINING, Clock, Fitted, Store, fingerprint
from famr_jax.train import Recipe
from famr_jax.types import Batch, Params, Source, Unlearner
from famr_jax.unlearn import begin, run_epochs

ON_TOP = {
    "trivial": data.trivial_augment,
    "rand": data.rand_augment,
    "erasing": data.random_erasing,
    "augmix": data.augmix,
}
"""Words of `--augment` for what comes after the data set's own crop."""

WATCHED_RETAIN = 2000
"""Retained images that a model is measured on between epochs, at most."""


class Keys(NamedTuple):
    """PRNG keys by use; each is the seed's, folded in with its position here."""

    init: jax.Array
    train: jax.Array
    oracle_init: jax.Array
    oracle_train: jax.Array
    unlearn: jax.Array
    unlearn_again: jax.Array
    probes: jax.Array


class Start(NamedTuple):
    """The weights of a file, fitted to the model, and their hash."""

    params: Params
    fingerprint: str


@dataclass(frozen=True)
class Bench:
    """Checked flags, loaded data, the model, and where results go."""

    flags: BenchFlags
    dataset: data.Dataset
    train: Batch | Source
    test: Batch | Source
    model: models.Model
    store: Store
    out: Path
    start: Start | None = None
    given: Params | None = None

    @property
    def clock(self) -> Clock:
        """Where the seconds of all phases are booked."""
        return self.store.clock

    @property
    def keys(self) -> Keys:
        """The PRNG keys of every use."""
        root = jax.random.key(self.flags.seed)
        return Keys(*(jax.random.fold_in(root, i) for i in range(len(Keys._fields))))

    @property
    def setting(self) -> str:
        """Model and data in words, for claims."""
        return f"{self.model.name} on {self.dataset.name} ({self.dataset.num_classes} classes)"

    @property
    def recipe(self) -> Recipe:
        """The training that the flags ask for."""
        flags = self.flags
        return Recipe(
            epochs=flags.train_epochs,
            batch_size=flags.batch_size,
            lr=flags.train_lr,
            augment=self.augment,
            accumulate=flags.accumulate,
            ema=flags.ema,
            dtype=flags.dtype,
        )

    @property
    def augment(self) -> Callable | None:
        """The augmentation of training: mirrored only where a mirrored image keeps its class.

        That is, unless `--augment crop` or `crop_flip` says so; None for `--augment none`.
        """
        word = self.flags.augment
        if word == "none":
            return None
        mirrored = {"crop": False, "crop_flip": True}.get(word or "", self.dataset.mirrored)
        if self.model.view is not None:
            own = data.random_resized_crop(self.flags.image_size, flip=mirrored)
        else:
            own = data.crop_and_flip if mirrored else data.crop
        return data.in_turn(own, ON_TOP[word]) if word in ON_TOP else own

    def in_memory(self, rows: np.ndarray) -> Batch:
        """Training images at some rows or of a mask, read if they are on disk."""
        part = self.train[rows]
        return part.batch() if isinstance(part, Source) else part

    def forget_sets(
        self, specs: Sequence[str], attributes: dict[str, np.ndarray] | None = None
    ) -> list[ForgetSet]:
        """The forget sets that words name, each with its exact duplicates.

        Raises:
            ValueError: No set, the same set twice, or whatever `forget.parse` refuses.
        """
        dataset = self.dataset
        if any(spec.startswith("superclass:") for spec in specs):
            known = superclasses.of_each(dataset.train, dataset)
            attributes = {"superclass": known} | (attributes or {})
        if any(spec.startswith("name:") for spec in specs):
            names = np.array(dataset.class_names, object)[dataset.train.labels]
            attributes = {"name": names} | (attributes or {})
        return forget.parse_all(
            specs,
            dataset.train,
            num_classes=dataset.num_classes,
            seed=self.flags.seed,
            attributes=attributes,
            class_names=dataset.class_names,
            files=dataset.files,
        )

    def evaluator(
        self,
        gone: ForgetSet,
        original: Params | None = None,
        oracles: Sequence[Params] = (),
        *,
        measures: Sequence[Measure] = MEASURES,
        sampled: bool = False,
        more: dict[str, Part] | None = None,
    ) -> Evaluator:
        """The evaluator of one case on this data and model.

        Args:
            gone: What is forgotten.
            original: The trained weights.
            oracles: Weights retrained without the forget set.
            measures: What to take.
            sampled: Whether to take them on sets of their own, with at most `WATCHED_RETAIN`
                retained images, which is cheap enough between epochs.
            more: Further sets by name.
        """
        if sampled:
            sets = sampled_parts(
                self.train, self.test, gone, retain=WATCHED_RETAIN, seed=self.flags.seed
            )
        else:
            sets = parts(self.train, self.test, gone)
        return Evaluator(
            self.model,
            self.train,
            self.test,
            gone,
            original,
            oracles,
            measures=measures,
            sets=sets | (more or {}),
        )

    def config(self, mask: np.ndarray) -> dict[str, Any]:
        """What determines a model trained on the rows of `mask`, for the store."""
        names = ("model", "image_size", "train_epochs", "train_lr", "batch_size", "seed")
        names += ("stream", "accumulate", "ema", "dtype")
        chosen = {name: getattr(self.flags, name) for name in names}
        chosen["augment"] = self.augment.__name__ if self.augment else None
        chosen["start"] = self.start and self.start.fingerprint
        return {
            "data": self.dataset.fingerprint,
            "mask": np.packbits(mask).tobytes().hex(),
            **chosen,
        }

    @property
    def sources(self) -> tuple[str, ...]:
        """The modules that training imports, and what makes images of stored bytes, for the store.

        Images in memory are known by their pixels, those on disk by their encoded bytes.
        """
        pixels = "famr_jax.data.encoded" if self.flags.stream else "famr_jax.data.stream"
        augment = [] if self.augment is None else [self.augment.__module__]
        if self.flags.augment in ON_TOP:
            augment.append("famr_jax.data.augment")
        return (*TRAINING, "famr_jax.models", pixels, *augment)

    def on(self, name: str) -> "Bench":
        """The same, with fresh weights of another model on the same images."""
        model = self.model
        other = models.create(name, num_classes=model.num_classes, image_shape=model.image_shape)
        # A new object is another function to jit.
        other = other if model.view is None else replace(other, view=model.view)
        chosen = replace(self.flags, model=name, weights=None)
        return replace(self, flags=chosen, model=other, start=None, given=None)

    def begin(self) -> Params:
        """The weights that the original starts from."""
        if self.start is not None:
            return self.start.params
        return jax.jit(self.model.init)(self.keys.init)

    def original(
        self, name: str = "original", *, watch: Callable[[Params], dict] | None = None
    ) -> Fitted:
        """The model trained on everything, or the checkpoint that `--original` names.

        Args:
            name: For progress and seconds.
            watch: Measures the weights after each epoch; its numbers join the log.
        """
        if self.given is not None:
            return Fitted(self.given, [], {})
        everything = np.ones(len(self.train), bool)
        learner, rows = self._learner(self.train), self.train
        keys, epochs = self.keys, self.flags.train_epochs
        return self.store.fit(
            name,
            self.config(everything),
            lambda: self._begin(learner, keys.init),
            lambda state, start: self._advance(learner, rows, keys.train, state, start),
            epochs=epochs,
            sources=self.sources,
            watch=watch,
        )

    def oracles(self, gone: ForgetSet, *, same_start: bool = False) -> list[Params]:
        """Models trained without the forget set, one for each seed, each kept on its own.

        From the weights of the file or fresh ones; with `same_start`, from those that the original
        started from.
        """
        members, name = self.flags.oracles, f"oracles {gone.name}"
        init_keys = jax.random.split(self.keys.oracle_init, members)
        keys = jax.random.split(self.keys.oracle_train, members)
        if same_start:
            init_keys, name = jnp.stack([self.keys.init] * members), f"{name} same start"
        rows = self.train[~gone.mask]
        learner = self._learner(rows)
        config = self.config(~gone.mask)
        found = self.store.fit_members(
            name,
            [config | {"member": i} for i in range(members)],
            lambda chunk: self._begin(learner, init_keys[chunk]),
            lambda chunk, state, start: self._advance(learner, rows, keys[chunk], state, start),
            epochs=self.flags.train_epochs,
            width=loop.member_width(),
            sources=self.sources,
        )
        return [fitted.params for fitted in found]

    def unlearn(
        self,
        name: str,
        method: Unlearner,
        original: Params,
        gone: ForgetSet,
        *,
        config: dict[str, Any],
        sources: Sequence[str | Path],
        epochs: int,
        key: jax.Array,
        batch_size: int | None = None,
        uses_retain: bool = False,
        watch: Callable[[Params], dict] | None = None,
    ) -> Fitted:
        """A resumable run of an unlearning method on one forget set.

        Args:
            name: For progress and seconds.
            method: The method.
            original: The trained weights.
            gone: What is forgotten.
            config: What determines the method: its name and numbers.
            sources: The modules of the method, or its file.
            epochs: Epochs of unlearning.
            key: PRNG key.
            batch_size: Images a step; that of training if not given.
            uses_retain: Whether it is given retained images; if its epochs pass over them it is.
            watch: Measures the weights after each epoch; its numbers join the log.
        """
        forgotten = self.in_memory(gone.mask)
        uses_retain = uses_retain or method.epoch_over == "retain"
        retain = self.train[~gone.mask] if uses_retain else None
        batch_size = batch_size or self.flags.batch_size
        return self.store.fit(
            name,
            self.made_by(gone, original, {**config, "batch_size": batch_size}),
            lambda: begin(method, original, forgotten, retain, key=key),
            lambda state, start: run_epochs(
                method,
                mesh.split(state),
                forgotten,
                retain,
                epochs=epochs,
                batch_size=batch_size,
                key=key,
                start=start,
                donate=True,
            ),
            epochs=epochs,
            sources=(*self.sources, "famr_jax.unlearn", *sources),
            watch=watch,
        )

    def made_by(self, gone: ForgetSet, original: Params, config: Any) -> dict[str, Any]:
        """What determines all that is made of an original and a forget set, for the store."""
        return self.config(gone.mask) | {"original": fingerprint(original), "unlearn": config}

    def keep(self, role: str, params: Params, config: dict[str, Any]) -> None:
        """Writes weights to checkpoints/ROLE, with the configuration that made them."""
        directory = self.out / "checkpoints" / role
        record = plain(config | self.identity() | {"role": role})
        checkpoint.save(directory, params, epoch=0, config=record)

    def describe(self, original: Fitted) -> dict[str, Any]:
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

    def _learner(self, rows):
        return self.recipe.learner(self.model.apply, len(rows), self.model.batch_norm)

    def _begin(self, learner, key):
        return train.begin(
            learner, train.init_of(self.model), key, self.start and self.start.params
        )

    def _advance(self, learner, rows, key, state, start):
        return loop.run_epochs(
            learner,
            mesh.split(state),
            rows,
            size=len(rows),
            epochs=self.flags.train_epochs,
            batch_size=self.flags.batch_size,
            key=key,
            start=start,
            donate=True,
        )
