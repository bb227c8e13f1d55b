"""What is measured of every model: a table, one row a measure."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import jax
import numpy as np

from famr_jax import attacks, losses, mesh, metrics
from famr_jax.evaluation.views import Absent, View

LEAST_ATTACKED = 10
"""Examples from which on the attack on losses has a threshold to choose."""


class Measure(NamedTuple):
    """A number that is taken of every model.

    Attributes:
        name: Its key in a row, as `for_acc`.
        unit: "share", "nats", or another unit in words.
        set: The set that it is taken on, whose size is reported as N.
        function: `function(view, oracles) -> float`, both as `View`s; an oracle is given the other
            oracles. Raises `Absent` where its input is missing.
        title: Its name in tables; `name` if empty.
        what: What it is, in words.
    """

    name: str
    unit: str
    set: str
    function: Callable[[View, Sequence[View]], float]
    title: str = ""
    what: str = ""


class Ensemble(NamedTuple):
    """Many models of each kind, for measures of distributions.

    Attributes:
        unlearned: Models unlearned from different originals, or under different keys.
        oracles: Models retrained without the forget set.
        shadows: Models trained, and unlearned, on random halves, with their masks.
    """

    unlearned: Sequence[View]
    oracles: Sequence[View]
    shadows: Sequence[tuple[np.ndarray, View]] = ()


class EnsembleMeasure(NamedTuple):
    """A number that is taken of ensembles, by `function(ensemble)`; else as `Measure`."""

    name: str
    unit: str
    set: str
    function: Callable[[Ensemble], float]
    title: str = ""
    what: str = ""


def accuracy(view: View, oracles: Sequence[View], *, name: str) -> float:
    """Share of right predictions on a set."""
    del oracles
    return view.mean(metrics.hits, name)


def entropy(view: View, oracles: Sequence[View]) -> float:
    """Mean entropy of the predictions on the forget set."""
    del oracles
    return view.mean(_entropy, "forget")


def uniform_kl(view: View, oracles: Sequence[View]) -> float:
    """Mean divergence of the predictions on the forget set from uniform ones, KL(u || p)."""
    del oracles
    return view.mean(_uniform_kl, "forget")


def kl_to_oracles(view: View, oracles: Sequence[View], *, name: str) -> float:
    """Mean KL(oracle || model) over a set and the oracles."""
    return view.divergence(metrics.kl, oracles, name)


def distance(view: View, oracles: Sequence[View]) -> float:
    """Euclidean distance of the weights from the trained ones."""
    del oracles
    if view.original is None:
        raise Absent("the trained weights are not given")
    ends = mesh.fetch((view.params, view.original))
    leaves = zip(*map(jax.tree.leaves, ends), strict=True)
    return float(np.sqrt(sum(np.sum(np.square(np.subtract(a, b, dtype=float))) for a, b in leaves)))


def svc_attack(view: View, oracles: Sequence[View]) -> float:
    """Share of the forget set that the attack on confidence calls non-member."""
    del oracles
    only_samples(view)
    retain, test, forget = (
        view.each(metrics.confidence, name) for name in ("retain", "test", "forget")
    )
    if not _finite(retain, test, forget):
        return math.nan
    return attacks.svc_confidence(retain, test, forget)


def loss_attack(view: View, oracles: Sequence[View]) -> float:
    """Balanced accuracy of telling the forget set from test images by their loss."""
    del oracles
    only_samples(view)
    forget, test = (view.each(losses.cross_entropy, name) for name in ("forget", "test"))
    if min(len(forget), len(test)) < LEAST_ATTACKED:
        raise Absent(f"it needs at least {LEAST_ATTACKED} examples on both sides")
    if not _finite(forget, test):
        return math.nan
    return attacks.loss_attack(forget, test)


def _entropy(logits, labels):
    del labels
    return metrics.entropy(logits)


def _uniform_kl(logits, labels):
    del labels
    return losses.uniform_kl(logits)


def _finite(*values):
    """Whether an attack can be fitted; scikit-learn refuses NaN and infinity."""
    return all(np.all(np.isfinite(each)) for each in values)


def only_samples(view: View) -> None:
    """Raises `Absent` where a whole class is forgotten, which is told from others by its looks."""
    if "test_forgotten" in view.parts:
        raise Absent("a forgotten class differs from the test images by more than membership")


MEASURES = (
    Measure("for_acc", "share", "forget", partial(accuracy, name="forget"),
            "For-Acc (train)", "accuracy on the forget set"),
    Measure("ret_acc", "share", "retain", partial(accuracy, name="retain"),
            "Ret-Acc (train)", "accuracy on the retained training images"),
    Measure("for_acc_test", "share", "test_forgotten", partial(accuracy, name="test_forgotten"),
            "For-Acc (test)", "accuracy on test images of the forgotten classes"),
    Measure("test_acc", "share", "test", partial(accuracy, name="test"),
            "Test-Acc", "accuracy on test images of the classes that are kept"),
    Measure("entropy", "nats", "forget", entropy,
            "Entropy", "mean entropy on the forget set"),
    Measure("uniform_kl", "nats", "forget", uniform_kl,
            "KL(u||p)", "mean divergence from uniform on the forget set"),
    Measure("kl_forget", "nats", "forget", partial(kl_to_oracles, name="forget"),
            "KL to oracle, forget", "mean KL(oracle||model) on the forget set"),
    Measure("kl_test", "nats", "test", partial(kl_to_oracles, name="test"),
            "KL to oracle, test", "mean KL(oracle||model) on test images of kept classes"),
    Measure("svc_attack", "share", "forget", svc_attack,
            "SVC attack", "share of the forget set that the confidence attack calls non-member"),
    Measure("loss_attack", "share", "forget", loss_attack,
            "Loss attack", "balanced accuracy of telling forget from test images by their loss"),
)  # fmt: skip
"""What is taken of every model."""

DISTANCE = Measure(
    "distance", "", "forget", distance, "Distance", "of the weights from the trained"
)


def named(*names: str) -> tuple[Measure, ...]:
    """Some rows of `MEASURES`, in the order of their names here.

    Raises:
        ValueError: There is no measure of that name.
    """
    known = {measure.name: measure for measure in (*MEASURES, DISTANCE)}
    for name in names:
        if name not in known:
            raise ValueError(f"`measure` must be one of {', '.join(known)}, got {name!r}.")
    return tuple(known[name] for name in names)
