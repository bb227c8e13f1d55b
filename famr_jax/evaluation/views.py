"""One model as measures see it: its outputs on sets of examples, computed when asked for."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import jax
import numpy as np

from famr_jax import attacks, metrics
from famr_jax.forget import ForgetSet
from famr_jax.models.vit import ViT
from famr_jax.types import ApplyFn, Batch, Params, Source, images_of


class Absent(Exception):
    """Raised by a measure whose input is missing; its text is the reason that is reported."""


class Part(NamedTuple):
    """A set of examples to measure on.

    Attributes:
        images: A whole split; parts of one split share its outputs.
        mask: The examples of the split that belong to the part, `[n]`; None for all.
    """

    images: Batch | Source
    mask: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.images) if self.mask is None else int(self.mask.sum())

    def take(self, values: Any) -> np.ndarray:
        """The part's rows of values of the whole split."""
        values = np.asarray(values)
        return values if self.mask is None else values[self.mask]


class View:
    """One model as measures see it: outputs on each part, computed when first asked for.

    Attributes:
        params: The weights.
        parts: The evaluator's sets by name.
        original: The trained weights, or None.
    """

    def __init__(
        self,
        model: Any,
        params: Params,
        parts: Mapping[str, Part],
        original: Params | None = None,
    ):
        self.params, self.parts, self.original = params, parts, original
        self._model, self._logits, self._values, self._features = model, {}, {}, {}
        self._layers, self._lens = {}, {}

    def part(self, name: str) -> Part:
        """One of the sets.

        Raises:
            Absent: There is none of that name, or nothing is in it.
        """
        if name not in self.parts or not len(self.parts[name]):
            raise Absent(f"there are no examples in the set {name!r}")
        return self.parts[name]

    def labels(self, name: str) -> np.ndarray:
        """Labels of the examples of a set, `[n]`."""
        part = self.part(name)
        return part.take(part.images.labels)

    def logits(self, name: str) -> np.ndarray:
        """Logits on a set, `[n, num_classes]`."""
        return self.part(name).take(self._of_split(name))

    def each(self, function: Callable, name: str) -> np.ndarray:
        """`function(logits, labels)` of every example of a set, `[n]`, in its own dtype."""
        part = self.part(name)
        at = (function, id(part.images))
        if at not in self._values:
            # Of the whole split, the part after: one shape, hence one compilation, for all parts.
            labels = np.asarray(part.images.labels)
            self._values[at] = np.asarray(function(self._of_split(name), labels))
        return part.take(self._values[at])

    def mean(self, function: Callable, name: str) -> float:
        """The mean of `function(logits, labels)` over a set, taken in float64."""
        return float(self.each(function, name).mean(dtype=np.float64))

    def divergence(self, function: Callable, others: Sequence["View"], name: str) -> float:
        """The mean of `function(other logits, logits)` over a set and over other models.

        Raises:
            Absent: There is no other model.
        """
        if not others:
            raise Absent("there is no other retrained model to compare with")
        part = self.part(name)
        mine = self._of_split(name)
        values = [part.take(function(other._of_split(name), mine)) for other in others]
        return float(np.mean([np.asarray(each, np.float64).mean() for each in values]))

    def features(self, name: str, layer: str) -> np.ndarray:
        """Activations of a layer on a set, `[n, ...]`.

        Raises:
            Absent: The model names no features, or not this layer.
        """
        if not hasattr(self._model, "features"):
            raise Absent("the model has no `features`")
        part, at = self.part(name), (layer, id(self.part(name).images))
        if at not in self._features:
            images = images_of(part.images)
            first = images[:1].batch().x if isinstance(images, Source) else images[:1]
            if layer not in jax.eval_shape(self._model.features, self.params, first):
                raise Absent(f"the model has no layer {layer!r}")
            of_layer = _Layer(self._model.features, layer)
            self._features[at] = np.asarray(metrics.predict(of_layer, self.params, images))
        return part.take(self._features[at])

    def layers(self, name: str) -> dict[str, np.ndarray]:
        """Activations of every layer on a set, `[n, dim]`, averaged over tokens or pixels.

        Raises:
            Absent: The model names no features.
        """
        if not hasattr(self._model, "features"):
            raise Absent("the model has no `features`")
        part = self.part(name)
        if id(part.images) not in self._layers:
            self._layers[id(part.images)] = attacks.layer_features(
                self._model.features, self.params, images_of(part.images)
            )
        return {layer: part.take(each) for layer, each in self._layers[id(part.images)].items()}

    def lens(self, name: str) -> dict[str, np.ndarray]:
        """Logits that the head reads in every block on a set, `[n, num_classes]`.

        Raises:
            Absent: The model is no Vision Transformer.
        """
        part, module = self.part(name), getattr(self._model, "module", None)
        if not isinstance(module, ViT):
            raise Absent("the model is no Vision Transformer")
        if name not in self._lens:
            images = part.images[part.take(np.arange(len(part.images.labels)))]
            self._lens[name] = attacks.logit_lens(self._model, self.params, images_of(images))
        return self._lens[name]

    @cached_property
    def before(self) -> "View":
        """The original on the same sets.

        Raises:
            Absent: The trained weights are not given.
        """
        if self.original is None:
            raise Absent("the trained weights are not given")
        return View(self._model, self.original, self.parts, self.original)

    def _of_split(self, name):
        images = self.part(name).images
        if id(images) not in self._logits:
            logits = metrics.predict(apply_of(self._model), self.params, images_of(images))
            self._logits[id(images)] = np.asarray(logits)
        return self._logits[id(images)]


@dataclass(frozen=True)
class _Layer:
    """One layer of a model as a function, equal to another of its kind: jit compiles it once."""

    features: Callable
    name: str

    def __call__(self, params, x):
        return self.features(params, x)[self.name]


def apply_of(model: Any) -> ApplyFn:
    """The `apply_fn` of a model: its `apply`, or itself where it is a bare function."""
    return getattr(model, "apply", model)


def parts(train: Batch | Source, test: Batch | Source, gone: ForgetSet) -> dict[str, Part]:
    """The sets of a case: forget, retain, and the test images of kept and of forgotten classes."""
    labels = np.asarray(test.labels)
    lost = np.isin(labels, gone.classes)
    found = {"forget": Part(train, gone.mask), "retain": Part(train, ~gone.mask)}
    if not gone.classes:
        return found | {"test": Part(test)}
    return found | {"test": Part(test, ~lost), "test_forgotten": Part(test, lost)}


def sampled_parts(
    train: Batch | Source,
    test: Batch | Source,
    gone: ForgetSet,
    *,
    retain: int,
    seed: int,
) -> dict[str, Part]:
    """The sets of a case, each on its own, to measure between epochs at little cost.

    The forget set and the drawn retained images are in memory, test images where their split is.

    Args:
        train: The training set.
        test: The test set.
        gone: What is forgotten.
        retain: Retained images to draw, at most.
        seed: Of the draw.
    """
    retained = np.flatnonzero(~gone.mask)
    order = np.random.default_rng(seed).permutation(len(retained))
    kept = np.sort(retained[order[:retain]])
    lost = np.isin(np.asarray(test.labels), gone.classes)
    found = {
        "forget": _in_memory(train, np.flatnonzero(gone.mask)),
        "retain": _in_memory(train, kept),
        "test": Part(test[np.flatnonzero(~lost)]),
    }
    if gone.classes:
        found["test_forgotten"] = Part(test[np.flatnonzero(lost)])
    return found


def _in_memory(split, rows):
    part = split[rows]
    return Part(part.batch() if isinstance(part, Source) else part)
