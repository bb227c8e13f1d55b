"""One forgetting case measured: the original, the unlearned model and the oracles side by side."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

from experiments.workbench import Case
from famr_jax import curvature, losses, metrics, statistics
from famr_jax.attacks import loss_attack, svc_confidence
from famr_jax.types import ApplyFn, Batch, Context, Objective, Pair, Params, Source

GRID_SIZE = 12
HISTOGRAM_EDGES = np.linspace(0, 1, 21)
AVERAGE_GAP_OF = ("For-Acc (train)", "Ret-Acc (train)", "Test-Acc", "SVC attack")


class Outputs(NamedTuple):
    """Logits of one model on the whole training and test sets."""

    train: np.ndarray
    test: np.ndarray


class Labels(NamedTuple):
    """Labels of the training and the test set."""

    train: np.ndarray
    test: np.ndarray


class Comparison(NamedTuple):
    """A forget set and the outputs of the three kinds of model that are set side by side."""

    case: Case
    labels: Labels
    original: Outputs
    famr: Outputs
    oracles: tuple[Outputs, ...]

    @property
    def gone(self) -> np.ndarray:
        """The test images of the forgotten classes, `[n]`; none when samples are forgotten."""
        return np.isin(self.labels.test, self.case.classes)


def outputs(
    apply_fn: ApplyFn, params: Params, train: Batch | Source, test: Batch | Source
) -> Outputs:
    """Evaluates one model on both splits."""
    images = (split if isinstance(split, Source) else split.x for split in (train, test))
    return Outputs(*(np.asarray(metrics.predict(apply_fn, params, x)) for x in images))


def rows(shown: Comparison) -> list[dict[str, Any]]:
    """The table: every metric of the original, FAMR and the oracles, with band, null and gap."""
    oracles, table = shown.oracles, []
    for metric, what, unit, n, function in _measures(shown):
        others = [[o for o in oracles if o is not oracle] for oracle in oracles]
        values = [function(oracle, rest) for oracle, rest in zip(oracles, others, strict=True)]
        mine = {name: function(getattr(shown, name), oracles) for name in ("original", "famr")}
        table.append({"metric": metric, "what": what, "unit": unit, "n": n, **mine})
        if None not in values:
            table[-1] |= _against(values, mine, unit, n)
    if shown.case.kind == "sample":
        table += _average_gaps(table)
    return table


def _against(values: list[float], mine: dict[str, float], unit: str, n: int) -> dict[str, Any]:
    band = statistics.prediction_interval(values) if len(values) > 1 else None
    resolution = 1 / n if unit == "share" else 0.0
    return {
        "oracle": {
            "values": values,
            "mean": float(np.mean(values)),
            "band": band,
            "n": len(values),
        },
        "null": statistics.null_gap(values),
        "gap": {name: statistics.gap(value, values) for name, value in mine.items()},
        "verdict": statistics.verdict(
            mine["famr"], mine["original"], values, resolution=resolution
        ),
    }


def _average_gaps(table: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """SalUn's average gap in both its readings: to the oracles' mean, and mean over the oracles."""
    parts = [row for row in table if row["metric"] in AVERAGE_GAP_OF]
    oracles = np.array([part["oracle"]["values"] for part in parts])
    to_mean = lambda values, others: np.abs(values - others.mean(1)).mean()  # noqa: E731
    to_each = lambda values, others: np.abs(values[:, None] - others).mean()  # noqa: E731
    rows = []
    for function, what in ((to_mean, "to the mean oracle"), (to_each, "to each oracle, averaged")):
        row = {
            "metric": f"Average Gap, {what.split(',')[0]}",
            "what": f"mean distance of {', '.join(AVERAGE_GAP_OF)} {what}",
            "unit": "share",
            "n": None,
        }
        for name in ("original", "famr"):
            row[name] = float(function(np.array([part[name] for part in parts]), oracles))
        members = range(oracles.shape[1]) if oracles.shape[1] > 1 else ()
        null = [function(oracles[:, i], np.delete(oracles, i, axis=1)) for i in members]
        rows.append(row | ({"null": float(np.mean(null))} if null else {}))
    return rows


def _measures(shown: Comparison) -> list[tuple[str, str, str, int, Callable]]:
    """Name, meaning, unit, N and function `(outputs, oracles) -> number` of each metric."""
    labels, gone, forget = shown.labels, shown.gone, shown.case.mask
    retain, everything = ~forget, np.ones(len(shown.labels.test), bool)

    # Values of every example first, the mask after: one shape, hence one compilation, for all.
    def accuracy(split, mask):
        y = getattr(labels, split)
        return lambda out, _: _mean(metrics.hits(getattr(out, split), y), mask)

    def divergence(split, mask):
        def from_oracles(out, oracles):
            mine = getattr(out, split)
            each = [_mean(metrics.kl(getattr(oracle, split), mine), mask) for oracle in oracles]
            return float(np.mean(each)) if each else None

        return from_oracles

    def each(function, out):
        return (np.asarray(function(*pair)) for pair in zip(out, labels, strict=True))

    def svc(out, _):
        train, test = each(metrics.confidence, out)
        return svc_confidence(train[retain], test, train[forget])

    def loss(out, _):
        train, test = each(losses.cross_entropy, out)
        return loss_attack(train[forget], test)

    if shown.case.kind == "class":
        tests = [
            ("For-Acc (test)", "test images of the forgotten class", gone),
            ("Ret-Acc (test)", "test images of the other classes", ~gone),
        ]
    else:
        tests = [("Test-Acc", "all test images", everything)]
    kept = tests[-1]
    measures = [
        ("For-Acc (train)", "accuracy on the forget set", "share", forget,
         accuracy("train", forget)),
        ("Ret-Acc (train)", "accuracy on the retained training images", "share", retain,
         accuracy("train", retain)),
        *((name, f"accuracy on {what}", "share", mask, accuracy("test", mask))
          for name, what, mask in tests),
        ("Entropy", "mean entropy on the forget set", "nats", forget,
         lambda out, _: _mean(metrics.entropy(out.train), forget)),
        ("KL(u||p)", "mean divergence from uniform on the forget set", "nats", forget,
         lambda out, _: _mean(losses.uniform_kl(out.train), forget)),
        ("KL to oracle, forget", "mean KL(oracle||model) on the forget set", "nats", forget,
         divergence("train", forget)),
        ("KL to oracle, test", f"mean KL(oracle||model) on {kept[1]}", "nats", kept[2],
         divergence("test", kept[2])),
    ]  # fmt: skip
    if shown.case.kind == "sample":
        measures.append(("SVC attack", "share of the forget set that the confidence attack calls "
                         "non-member", "share", forget, svc))  # fmt: skip
        if min(forget.sum(), len(everything)) >= 10:
            measures.append(("Loss attack", "balanced accuracy of telling forget from test images "
                             "by their loss", "share", forget, loss))  # fmt: skip
    counted = [(*words, int(mask.sum()), function) for *words, mask, function in measures]
    return [measure for measure in counted if measure[3]]


def _mean(values: jax.Array, mask: np.ndarray) -> float:
    return float(np.asarray(values, np.float64)[mask].mean())


def confusion(shown: Comparison) -> dict[str, Any] | None:
    """Where the test images of the forgotten classes go: share of each predicted class."""
    gone = shown.gone
    if not gone.any():
        return None
    share = lambda out: np.asarray(metrics.votes(out.test[gone]).mean(0))  # noqa: E731
    values = [share(oracle) for oracle in shown.oracles]
    return {
        "original": share(shown.original),
        "famr": share(shown.famr),
        "oracle": np.mean(values, axis=0),
        "oracle_values": values,
        "n": int(gone.sum()),
    }


def grid(shown: Comparison) -> dict[str, Any]:
    """Evenly spaced forgotten images with each model's prediction and its confidence."""
    rows = np.flatnonzero(shown.case.mask)
    rows = rows[np.unique(np.linspace(0, len(rows) - 1, GRID_SIZE).astype(int))]

    def predictions(out):
        p = np.asarray(jax.nn.softmax(out.train[rows]))
        return [[int(c), float(p[i, c])] for i, c in enumerate(p.argmax(1))]

    three = {name: predictions(out) for name, out in _three(shown).items()}
    return {"indices": rows, "labels": shown.labels.train[rows], **three}


def histograms(shown: Comparison) -> dict[str, Any] | None:
    """Shares of the confidence p_y of forget, retained and test images, for samples."""
    labels, mask = shown.labels, shown.case.mask
    if shown.case.kind == "class":
        return None

    def shares(out):
        train = np.asarray(metrics.confidence(out.train, labels.train))
        test = np.asarray(metrics.confidence(out.test, labels.test))
        sets = {"forget": train[mask], "retain": train[~mask], "test": test}
        return {name: np.histogram(p, HISTOGRAM_EDGES)[0] / len(p) for name, p in sets.items()}

    three = {name: shares(out) for name, out in _three(shown).items()}
    return {"edges": HISTOGRAM_EDGES, **three}


def _three(shown: Comparison) -> dict[str, Outputs]:
    return {"original": shown.original, "famr": shown.famr, "oracle": shown.oracles[0]}


def targets(table: list[dict[str, Any]], num_classes: int) -> dict[str, Any]:
    """Chance, maximal entropy, and the oracle's mean and band of what the curves show."""
    result = {"chance": 1 / num_classes, "max_entropy": float(np.log(num_classes))}
    curves = {"for_acc": "For-Acc (train)", "ret_acc": "Ret-Acc (train)", "entropy": "Entropy"}
    by_name = {row["metric"]: row for row in table}
    for curve, metric in curves.items():
        oracle = by_name[metric]["oracle"]
        result |= {f"oracle_{curve}": oracle["mean"], f"oracle_{curve}_band": oracle["band"]}
    return result


@jax.jit
def gradient_norm(
    objective: Objective, params: Params, anchor: Params, pair: Pair, key: jax.Array
) -> jax.Array:
    """||grad J(params)|| on whole sets: how far a point is from stationary."""
    return optax.tree.norm(jax.grad(lambda p: objective(p, Context(anchor), pair, key)[0])(params))


def largest_curvature(apply_fn: ApplyFn, params: Params, forget: Batch, *, batch_size: int):
    """Largest eigenvalue of the Hessian of the mean forget loss, to one per mille."""

    def loss_fn(params, batch):
        return losses.uniform_kl(apply_fn(params, batch.x))

    hessian = curvature.Hessian(loss_fn, params, forget, batch_size)
    found = curvature.eigenvalues(hessian, params, k=1, tol=1e-3, key=jax.random.key(0))
    return float(found.values[0])
