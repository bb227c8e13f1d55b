"""What is measured of a model's features: a table, a row for each quantity and layer."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from famr_jax import attacks, metrics
from famr_jax.evaluation import Measure

EVERY, OF_CLASS = "all_test", "test_forgotten"
"""The sets: all test images, and those of the forgotten class."""


class Seen(NamedTuple):
    """One model as the measures see it, on test images.

    Attributes:
        layers: Features of every layer, `[n, dim]`, averaged over tokens.
        lens: Logits that the head reads in every block, of the forgotten class's images alone.
        labels: Of the test images, `[n]`.
        forgotten: The forgotten class.
        before: The features of the original that it is compared with.
    """

    layers: dict[str, np.ndarray]
    lens: dict[str, np.ndarray]
    labels: np.ndarray
    forgotten: int
    before: dict[str, np.ndarray]


def knows(seen: Seen, others: Sequence[Seen], *, layer: str) -> float:
    """Balanced accuracy of a linear probe that finds the class among all test images."""
    del others
    return attacks.linear_probe(seen.layers[layer], seen.labels == seen.forgotten)


def classes(seen: Seen, others: Sequence[Seen], *, layer: str) -> float:
    """Balanced accuracy of a linear probe that tells all classes apart."""
    del others
    return attacks.linear_probe(seen.layers[layer], seen.labels)


def like_oracles(seen: Seen, others: Sequence[Seen], *, layer: str) -> float:
    """CKA to the retrained models, their mean."""
    return float(np.mean([attacks.cka(seen.layers[layer], each.layers[layer]) for each in others]))


def like_before(seen: Seen, others: Sequence[Seen], *, layer: str) -> float:
    """CKA to the original."""
    del others
    return attacks.cka(seen.layers[layer], seen.before[layer])


def apart(seen: Seen, others: Sequence[Seen], *, layer: str) -> float:
    """How far the class's mean is from the nearest class, over the spread within both."""
    del others
    found = attacks.class_geometry(seen.layers[layer], seen.labels).apart
    return float(found[np.unique(seen.labels) == seen.forgotten][0])


def collapse(seen: Seen, others: Sequence[Seen], *, layer: str) -> float:
    """Spread within the classes against that between them (NC1)."""
    del others
    return attacks.class_geometry(seen.layers[layer], seen.labels).collapse


def reads(seen: Seen, others: Sequence[Seen], *, layer: str) -> float:
    """Share of the class's test images in which the model's own head reads the class."""
    del others
    logits = seen.lens[layer]
    return float(metrics.accuracy(logits, np.full(len(logits), seen.forgotten)))


QUANTITIES: dict[str, tuple[Callable[..., float], str, str, str]] = {
    "knows": (knows, "share", EVERY, "Probe of the class"),
    "classes": (classes, "share", EVERY, "Probe of all classes"),
    "like_oracles": (like_oracles, "", EVERY, "CKA to oracles"),
    "like_before": (like_before, "", EVERY, "CKA to the original"),
    "apart": (apart, "", EVERY, "Class apart"),
    "collapse": (collapse, "", EVERY, "Collapse NC1"),
    "reads": (reads, "share", OF_CLASS, "Logit lens"),
}
"""Function, unit, set and title of each."""


def measures(layers: Sequence[str]) -> tuple[Measure, ...]:
    """A row for each quantity and layer; the head reads blocks alone, whose tokens it can pool."""
    return tuple(
        Measure(f"{name}_{layer}", unit, of, partial(function, layer=layer), f"{title}, {layer}")
        for name, (function, unit, of, title) in QUANTITIES.items()
        for layer in layers
        if name != "reads" or layer.startswith("block_")
    )


def row(table: Sequence[Measure], seen: Seen, others: Sequence[Seen]) -> dict[str, Any]:
    """All measures of one model; an oracle is given the other oracles."""
    function: Any = {measure.name: measure.function for measure in table}
    return {name: each(seen, others) for name, each in function.items()}
