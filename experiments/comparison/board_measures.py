"""What the leaderboard takes of many models of a kind: arrays in, numbers out."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from scipy.special import log_softmax, softmax

from experiments.comparison.leaks import LEAST_MODELS, game
from famr_jax import attacks, metrics, statistics

SETS = ("forget", "retain", "test")
KLOM = tuple(f"klom_{name}" for name in SETS)
ACCURACIES = ("for_acc", "ret_acc", "test_acc", "for_acc_test")
ATTACKS = (*KLOM, "u_lira", "told_apart", "svc_mia", "mia_nn", "kl_forget", "kl_test", "relearn")
"""Measures that know more of a model than its accuracy."""
UNITS = dict.fromkeys((*ACCURACIES, "mislabelled", "svc_mia", "mia_nn"), "share")
RANKED = (*ATTACKS, "average_gap", "tow")
SAMPLES, DEALS, TOLD_DEALS = 100, 200, 20
"""Bootstrap samples of the models, and deals of the oracles to two sides, of which nulls are."""


@dataclass(frozen=True)
class Case:
    """What a cell measures on.

    Attributes:
        labels: Of the training images, `[n]`.
        gone: The forget set, `[n]`.
        test_labels: Of the test images that choosing did not see, `[m]`.
        lost: Those of forgotten classes, `[m]`.
        wrong: Training images whose label is known to be wrong, `[n]`; None where none is.
    """

    labels: np.ndarray
    gone: np.ndarray
    test_labels: np.ndarray
    lost: np.ndarray
    wrong: np.ndarray | None = None

    @property
    def forgotten(self) -> int | None:
        """The forgotten class; None for samples, and for several classes."""
        found = np.unique(self.test_labels[self.lost])
        return int(found[0]) if len(found) == 1 else None

    def rows(self, name: str) -> np.ndarray:
        """The rows of a set in its split."""
        known = {"forget": self.gone, "retain": ~self.gone, "test": ~self.lost, "lost": self.lost}
        return known[name]


@dataclass(frozen=True)
class Outputs:
    """What is seen of K models.

    Attributes:
        train: Logits on the training images, `[K, n, num_classes]`.
        test: On the test images, `[K, m, num_classes]`.
        steps: Steps until a forgotten class is relearned, `[K]`; None for samples.
    """

    train: np.ndarray
    test: np.ndarray
    steps: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.train)

    def of(self, case: Case, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Logits and labels of a set."""
        rows = case.rows(name)
        if name in ("forget", "retain"):
            return self.train[:, rows], case.labels[rows]
        return self.test[:, rows], case.test_labels[rows]

    def margins(self, case: Case, name: str) -> np.ndarray:
        """Log-odds of the labels of a set, `[K, size]`."""
        return attacks.margin(*self.of(case, name))


class Judges:
    """The oracles of a cell, and what all models are measured beside.

    Attributes:
        each: Measures of every oracle beside the others, `[N]` by name.
        null: Of measures of ensembles, what deals of all 2N oracles to two sides give: the mean,
            and the end of the interval in which one more deal falls with 95 %.
    """

    def __init__(self, case: Case, oracles: Outputs, again: Outputs):
        self.case, self.oracles, self.again, self.near = case, oracles, again, None
        if case.forgotten is not None:
            seen = [oracles.test, case.test_labels]
            self.near = attacks.neighbour(*seen, forgotten=case.forgotten)
        self.own = own(oracles, case, self.near)
        self.divergences = {name: Divergence(*oracles.of(case, name)) for name in SETS[::2]}
        self.each = self.own | self._beside(self.own, oracles, leave=True)
        self.margins = {name: oracles.margins(case, name) for name in SETS}
        self.null = self._nulls()

    def one_by_one(self, outputs: Outputs) -> dict[str, Any]:
        """Measures of single models, by name: mean, error, and `samples` of the distance.

        Samples are of the models and of the oracles, the same of both in every measure.
        """
        mine, found = own(outputs, self.case, self.near), {}
        pairs = self._pairs(outputs)
        for name, values in (mine | self._beside(mine, outputs)).items():
            goals = self.each[name]
            drawn = [(values[a].mean(), goals[b].mean()) for a, b in pairs]
            samples = [distance(name, value, goal) for value, goal in drawn]
            error = values.std(ddof=1) / len(values) ** 0.5
            found[name] = {"value": values.mean(), "error": error, "samples": samples}
        return found

    def row(self, outputs: Outputs) -> dict[str, Any]:
        """All but U-LiRA on shadows: what `one_by_one` gives, and the same of ensembles."""
        found, case = self.one_by_one(outputs), self.case
        for name, part in zip(KLOM, SETS, strict=True):
            margins, theirs = outputs.margins(case, part), self.margins[part]
            samples = attacks.klom_resampled(margins, theirs, samples=SAMPLES)
            value = attacks.percentile(attacks.klom(margins, theirs))
            found[name] = {"value": value, "error": samples.std(ddof=1), "samples": samples}
        told = self._told(outputs.margins(case, "forget"), self._pairs(outputs))
        return found | {"told_apart": told}

    def _pairs(self, outputs):
        return attacks.bootstrap_pairs(len(outputs), len(self.oracles), samples=SAMPLES)

    def _told(self, margins, pairs):
        """U-LiRA's game between whole ensembles, every model in turn under test."""
        if not np.isfinite(margins).all():
            return broken()
        scores, _ = game(margins, self.margins["forget"])
        count = len(margins)
        areas = [area(scores[:count][a], scores[count:][b]) for a, b in pairs]
        value = area(scores[:count], scores[count:])
        samples = [distance("told_apart", each, 0.5) for each in areas]
        return {"value": value, "error": np.std(areas, ddof=1), "samples": samples}

    def _nulls(self):
        case, found = self.case, {}
        for name, part in zip(KLOM, SETS, strict=True):
            found[name] = attacks.klom_dealt(
                self.margins[part], self.again.margins(case, part), deals=DEALS
            )
        pool = np.concatenate([self.margins["forget"], self.again.margins(case, "forget")])
        generator, count, dealt = np.random.default_rng(0), len(self.oracles), []
        for _ in range(TOLD_DEALS):
            mixed = generator.permutation(pool)
            scores, _ = game(mixed[:count], mixed[count:])
            dealt.append(area(scores[:count], scores[count:]))
        found["told_apart"] = np.array(dealt)
        return {
            name: {"mean": values.mean(), "most": statistics.prediction_interval(values)[1]}
            for name, values in found.items()
        }

    def _beside(self, mine, outputs, *, leave=False):
        """Measures that need the oracles; of these themselves each beside the others."""
        gapped = [name for name in (*ACCURACIES[:3], "svc_mia") if name in mine]
        theirs = {name: others(self.own[name], leave) for name in gapped}
        gaps = {name: np.abs(mine[name] - theirs[name]) for name in gapped}
        found = {"average_gap": np.mean(list(gaps.values()), axis=0)}
        found["tow"] = np.prod([1 - gaps[name] for name in ACCURACIES[:3]], axis=0)
        for name, divergence in self.divergences.items():
            found[f"kl_{name}"] = divergence(outputs.of(self.case, name)[0], leave=leave)
        return found


def own(outputs: Outputs, case: Case, near: int | None) -> dict[str, np.ndarray]:
    """Measures of each of K models that need no other model, `[K]` by name."""
    found = {}
    for name, part in zip(ACCURACIES, (*SETS, "lost"), strict=True):
        logits, labels = outputs.of(case, part)
        if not len(labels):
            continue
        found[name] = _accuracies(logits, labels)
    if case.wrong is not None and (rows := case.gone & case.wrong).any():
        found["mislabelled"] = _accuracies(outputs.train[:, rows], case.labels[rows])
    if not case.lost.any():  # a class is told from others by its looks, whoever was trained on it
        shown = [_confidences(*outputs.of(case, part)) for part in ("retain", "test", "forget")]
        attacked = map(attacks.svc_confidence, *shown)
        found["svc_mia"] = np.array(list(attacked))
    if near is not None and case.forgotten is not None:
        profile = partial(
            attacks.class_profile,
            labels=case.test_labels,
            forgotten=case.forgotten,
            against=(near,),
            seeds=1,
        )
        each = [profile(z).accuracy[0] if np.isfinite(z).all() else np.nan for z in outputs.test]
        found["mia_nn"] = np.array(each)
    if outputs.steps is not None:
        found["relearn"] = np.asarray(outputs.steps, float)
    return found


def _accuracies(logits, labels):
    """Of K models, `[K]`."""
    flat = logits.reshape(-1, logits.shape[-1])
    hits = np.asarray(metrics.hits(flat, np.tile(labels, len(logits))), np.float64)
    return hits.reshape(len(logits), -1).mean(1)


def _confidences(logits, labels):
    return softmax(logits, axis=-1)[:, np.arange(len(labels)), labels]


class Divergence:
    """Mean KL(oracle||model) over a set and the oracles, of which the probabilities are kept."""

    def __init__(self, logits: np.ndarray, labels: np.ndarray):
        del labels
        log_p = log_softmax(logits.astype(np.float64), axis=-1)
        self.p = np.exp(log_p)
        self.entropies = (self.p * log_p).sum(-1).mean(-1)
        """Mean of p log p over the set, of every oracle."""

    def __call__(self, logits: np.ndarray, *, leave: bool = False) -> np.ndarray:
        """Of K models, `[K]`; with `leave` these are the oracles, each beside the others."""
        log_q, count, total = log_softmax(logits.astype(np.float64), axis=-1), len(self.p), 0
        total = self.p.sum(0)
        found = []
        for i, each in enumerate(log_q):
            mean = (total - self.p[i]) / (count - 1) if leave else total / count
            found.append(-(mean * each).sum(-1).mean())
        return np.array(found) + others(self.entropies, leave)


def others(values: np.ndarray, leave: bool) -> np.ndarray:
    """The mean of the values, or that of the others beside each."""
    if not leave:
        return np.asarray(values.mean())
    return (values.sum() - values) / (len(values) - 1)


def shadowed(margins: np.ndarray, members: np.ndarray) -> dict[str, Any]:
    """U-LiRA on shadows that unlearned a half each, every one in turn under test.

    Args:
        margins: Of K shadows on the forget set, in pairs of complements, `[K, n]`.
        members: Which of it each was trained on, and unlearned, likewise.
    """
    if not np.isfinite(margins).all():
        return broken()
    scores = attacks.in_turn(attacks.u_lira, margins, margins, members)
    generator, count, areas = np.random.default_rng(0), len(margins) // 2, []
    for _ in range(SAMPLES):
        first = 2 * generator.integers(0, count, count)
        rows = np.concatenate([first, first + 1])
        areas.append(attacks.auc(scores[rows], members[rows]).value)
    samples = [distance("u_lira", each, 0.5) for each in areas]
    value = attacks.auc(scores, members).value
    return {"value": value, "error": np.std(areas, ddof=1), "samples": samples}


def broken() -> dict[str, Any]:
    """What is kept of models that are not finite."""
    return {"value": np.nan, "error": np.nan, "samples": [np.nan] * SAMPLES}


def area(mine: np.ndarray, theirs: np.ndarray) -> float:
    """Area under the curve of scores that shall be high for the first."""
    members = np.repeat([True, False], [mine.size, theirs.size])
    return attacks.auc(np.concatenate([mine.ravel(), theirs.ravel()]), members).value


def distance(name: str, value: float, goal: float) -> float:
    """How far a value is from what retraining gives: what models are ranked by, small is near."""
    if name in KLOM or name == "average_gap":
        return value
    return 1 - value if name == "tow" else abs(value - goal)


def goals(means: Mapping[str, float]) -> dict[str, float]:
    """What retraining gives, from the oracles' means."""
    return {name: means[name] for name in (*ACCURACIES, *RANKED) if name in means} | {
        "u_lira": 0.5, "told_apart": 0.5
    }  # fmt: skip


LEAST = LEAST_MODELS
"""Models of a kind, of which a game can leave one out."""
