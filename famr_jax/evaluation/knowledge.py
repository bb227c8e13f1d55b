"""What the features of every layer still know of a forgotten class: measures, a row a layer."""

import math
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from famr_jax import attacks, metrics
from famr_jax.evaluation.measures import Measure
from famr_jax.evaluation.views import Absent, View

EVERY, OF_CLASS = "all_test", "test_forgotten"
"""The sets: all test images, `Part(test)`, and those of the forgotten classes."""


def knows(view: View, oracles: Sequence[View], *, layer: str) -> float:
    """Balanced accuracy of a linear probe that finds the class among all test images."""
    del oracles
    return _taken(attacks.linear_probe, _features(view, layer), _forgotten(view))


def classes(view: View, oracles: Sequence[View], *, layer: str) -> float:
    """Balanced accuracy of a linear probe that tells all classes apart."""
    del oracles
    return _taken(attacks.linear_probe, _features(view, layer), view.labels(EVERY))


def like_oracles(view: View, oracles: Sequence[View], *, layer: str) -> float:
    """CKA to the retrained models, their mean."""
    if not oracles:
        raise Absent("there is no other retrained model to compare with")
    mine = _features(view, layer)
    return float(np.mean([_taken(attacks.cka, mine, _features(each, layer)) for each in oracles]))


def like_before(view: View, oracles: Sequence[View], *, layer: str) -> float:
    """CKA to the original."""
    del oracles
    return _taken(attacks.cka, _features(view, layer), _features(view.before, layer))


def apart(view: View, oracles: Sequence[View], *, layer: str) -> float:
    """How far the class's mean is from the nearest class, over the spread within both."""
    del oracles
    lost = np.isin(np.unique(view.labels(EVERY)), view.labels(OF_CLASS))

    def of_class(features, labels):
        return np.mean(attacks.class_geometry(features, labels).apart[lost])

    return _taken(of_class, _features(view, layer), view.labels(EVERY))


def collapse(view: View, oracles: Sequence[View], *, layer: str) -> float:
    """Spread within the classes against that between them (NC1)."""
    del oracles

    def of_all(features, labels):
        return attacks.class_geometry(features, labels).collapse

    return _taken(of_all, _features(view, layer), view.labels(EVERY))


def reads(view: View, oracles: Sequence[View], *, layer: str) -> float:
    """Share of the class's test images in which the model's own head reads the class."""
    del oracles
    logits = _of_layer(view.lens(OF_CLASS), layer)
    return _taken(metrics.accuracy, logits, view.labels(OF_CLASS))


QUANTITIES: dict[str, tuple[Callable[..., float], str, str, str]] = {
    "knows": (knows, "share", EVERY, "Probe of the class"),
    "classes": (classes, "share", EVERY, "Probe of all classes"),
    "like_oracles": (like_oracles, "", EVERY, "CKA to oracles"),
    "like_before": (like_before, "", EVERY, "CKA to the original"),
    "apart": (apart, "", EVERY, "Class apart"),
    "collapse": (collapse, "", EVERY, "Collapse NC1"),
    "reads": (reads, "share", OF_CLASS, "Logit lens"),
}
"""Function, unit, set and title of each quantity."""


def of_layers(layers: Sequence[str]) -> tuple[Measure, ...]:
    """A row for each quantity and layer, to be added to an evaluator's measures.

        Evaluator(..., measures=(*MEASURES, *of_layers(("block_0", "pre_logits"))),
                  sets=parts(train, test, gone) | {"all_test": Part(test)})

    The logit lens has rows of blocks alone, whose tokens the head can pool. Relearning, which
    trains, is no row: see `attacks.relearn`.

    Args:
        layers: Names among the model's `features`.
    """
    return tuple(
        Measure(
            f"{name}_{layer}",
            unit,
            of,
            partial(function, layer=layer),
            f"{title}, {layer}",
            str(function.__doc__).rstrip(".").lower(),
        )
        for name, (function, unit, of, title) in QUANTITIES.items()
        for layer in layers
        if name != "reads" or layer.startswith("block_")
    )


def _features(view, layer):
    """Those of all test images, `[n, dim]`, averaged over tokens."""
    return _of_layer(view.layers(EVERY), layer)


def _of_layer(found, layer):
    if layer not in found:
        raise Absent(f"the model has no layer {layer!r}")
    return found[layer]


def _forgotten(view):
    """Which of all test images are of a forgotten class, `[n]`."""
    return np.isin(view.labels(EVERY), view.labels(OF_CLASS))


def _taken(score, features, other):
    """A score of features; NaN where they are not finite, absent where it refuses them."""
    if not np.isfinite(features).all():
        return math.nan
    try:
        return float(score(features, other))
    except ValueError as reason:
        raise Absent(str(reason)) from reason
