"""The audit of a model beside the one before and retrained ones: measures, bands, one verdict."""

import os
from collections.abc import Sequence
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from famr_jax import attacks, checkpoint, evaluation, statistics
from famr_jax.audit.reading import Given, check_apart, check_same_rows, read
from famr_jax.evaluation import (
    ATTACKS,
    ENSEMBLE_MEASURES,
    MEASURES,
    Absent,
    Evaluator,
    Measure,
    Part,
    View,
)
from famr_jax.forget import ForgetSet
from famr_jax.statistics import ORACLES_FOR_A_VERDICT
from famr_jax.types import Batch, Params, Source

FEATURES = "pre_logits"
PROBED = "all_test"
"""The set of all test images, forgotten or not, that the probe is fitted and scored on."""
FOLDS = 5
BASE = 2**12


class Audit(NamedTuple):
    """What an audit found.

    Attributes:
        verdict: "left the band" if one measure at least did, "inside the band" if none did and one
            at least can tell retraining from doing nothing, else "not resolved".
        words: The verdict in a sentence or two.
        lines: Of `evaluation.verdicts`: each measure beside doing nothing, band and null.
        models: The rows of the original, the audited model and every oracle.
        sizes: Examples of each set by its name.
        held_out: For each oracle, in how many measures it leaves the band of the others; empty
            with fewer oracles than a verdict needs.
    """

    verdict: Literal["left the band", "inside the band", "not resolved"]
    words: str
    lines: list[dict[str, Any]]
    models: list[dict[str, Any]]
    sizes: dict[str, int]
    held_out: list[int]


def arrays(before: Given, after: Given, oracles: Sequence[Given] = ()) -> Audit:
    """Audits a model of any framework by its logits, beside those before and of retrained models.

    Each model is a `.npz` file, or a mapping, of the same examples in the same order:

        logits   [n, num_classes], floating; not probabilities
        labels   [n], integer
        split    [n], "train" or "test"
        forget   [n], boolean: the training rows that are to be forgotten
        ids      [n], optional: a name of each example, to see that the rows are the same
        features [n, dim], optional: what the last layer is given, for the probe

    Args:
        before: The trained model.
        after: The model that is said to have forgotten.
        oracles: Models retrained without the forget set; a verdict needs 8.

    Raises:
        ValueError: What cannot be read, or is not such arrays; two models are the same.
    """
    roles = _roles(len(oracles))
    models = [read(role, one) for role, one in zip(roles, (before, after, *oracles), strict=True)]
    first, table = models[0]
    for name, other in models[1:]:
        check_same_rows(first, table, name, other)
    check_apart([(name, model["logits"]) for name, model in models])
    is_train, labels = table["split"] == "train", jnp.asarray(table["labels"])
    rows = _Recorded.images(len(labels))
    train, test = (Batch(rows[part], labels[part]) for part in (is_train, ~is_train))
    mask = table["forget"][is_train]
    forgotten = np.unique(np.asarray(train.labels)[mask])
    whole = np.array_equal(mask, np.isin(np.asarray(train.labels), forgotten))
    gone = ForgetSet("forget", mask, tuple(forgotten.tolist()) if whole else ())
    params = [
        {key: jnp.asarray(model[key]) for key in ("logits", "features") if key in model}
        for _, model in models
    ]
    # The trained model is no `original` of the evaluator: that is weights, and there are none.
    evaluate = _evaluator(_Recorded, train, test, gone, params[2:])
    return _audited(evaluate, *(evaluate.view(each) for each in params[:2]))


def checkpoints(
    model: Any,
    before: Params | str | os.PathLike,
    after: Params | str | os.PathLike,
    oracles: Sequence[Params | str | os.PathLike],
    train: Batch | Source,
    test: Batch | Source,
    gone: ForgetSet,
) -> Audit:
    """Audits weights of a model beside those before and those of retrained models.

    Args:
        model: With `init`, `apply` and, for the probe, `features`.
        before: The trained weights, or the directory that `checkpoint.save` wrote them to.
        after: Those that are said to have forgotten.
        oracles: Those retrained without the forget set; a verdict needs 8.
        train: The training set.
        test: The test set.
        gone: What is forgotten.

    Raises:
        ValueError: What `checkpoint.load` refuses; two models give the same logits.
    """
    weights = [
        checkpoint.load(os.fspath(one), jax.eval_shape(model.init, jax.random.key(0))).tree
        if isinstance(one, str | os.PathLike)
        else one
        for one in (before, after, *oracles)
    ]
    evaluate = _evaluator(model, train, test, gone, weights[2:], weights[0])
    trained, view = map(evaluate.view, weights[:2])
    views = zip(_roles(len(oracles)), (trained, view, *evaluate.oracles), strict=True)
    check_apart([(role, view.logits("forget")) for role, view in views])
    return _audited(evaluate, trained, view)


def _roles(count):
    return ["`before`", "`after`", *(f"`oracle` {i}" for i in range(count))]


class _Recorded:
    """A model whose weights are its own outputs on all examples; its images tell their rows.

    An image has two pixels in [0, 1), the row's digits to the base of `BASE`: exact in float32.
    """

    @staticmethod
    def images(count):
        rows = np.arange(count)
        return jnp.asarray(np.stack(np.divmod(rows, BASE), axis=1)[:, None, None] / BASE, "float32")

    @staticmethod
    def apply(params, x):
        return params["logits"][_rows(x)]

    @staticmethod
    def features(params, x):
        return {FEATURES: params["features"][_rows(x)]} if "features" in params else {}


def _rows(x):
    digits = jnp.round(x[:, 0, 0] * BASE).astype(int)
    return digits[:, 0] * BASE + digits[:, 1]


def probe(view: View, oracles: Sequence[View], *, classes: Sequence[int]) -> float:
    """Balanced accuracy of a linear probe that finds the forgotten classes among test images."""
    del oracles
    if not classes:
        raise Absent("no whole class is forgotten")
    features = view.features(PROBED, FEATURES)
    lost = np.isin(view.labels(PROBED), classes)
    if min(lost.sum(), (~lost).sum()) < FOLDS:
        raise Absent(f"it needs {FOLDS} test images of forgotten and of kept classes")
    if not np.isfinite(features).all():
        return float("nan")
    return attacks.linear_probe(features.reshape(len(lost), -1), lost, folds=FOLDS)


def _evaluator(model, train, test, gone, oracles, original=None):
    what = "balanced accuracy of a linear probe on features that finds the class in test images"
    probing = Measure("probe", "share", PROBED, partial(probe, classes=gone.classes), "Probe", what)
    return Evaluator(
        model,
        train,
        test,
        gone,
        original,
        oracles,
        measures=(*MEASURES, *ATTACKS, probing),
        sets=evaluation.parts(train, test, gone) | {PROBED: Part(test)},
    )


def _audited(evaluate: Evaluator, before: View, after: View) -> Audit:
    rows = [*evaluate.references(), {"model": "after"} | evaluate(after)]
    if evaluate.trained is None:
        rows.insert(0, {"model": "original"} | evaluate(before))
    oracles = [row for row in rows if row["model"] == "oracle"]
    whats = {measure.name: measure.what for measure in evaluate.measures}
    lines = evaluation.verdicts(rows, evaluate.measures)
    lines = [line | {"what": whats[line["measure"]]} for line in lines]
    for measure in ENSEMBLE_MEASURES:
        title, why = measure.title or measure.name, "it compares many models, each unlearned anew"
        lines.append({"measure": measure.name, "title": title, "model": "after", "absent": why})
    models = [{k: v for k, v in row.items() if k not in ("n", "absent")} for row in rows]
    sizes = {name: len(part) for name, part in evaluate.sets.items() if name != PROBED}
    held_out = _held_out(lines, oracles)
    verdict, words = _judged(lines, len(oracles), held_out)
    return Audit(verdict, words, lines, models, sizes, held_out)


def _judged(lines, count, held_out):
    """The verdict of all measures together, and its words."""
    if count < ORACLES_FOR_A_VERDICT:
        several = "no oracle" if not count else f"{count} oracle{'s' * (count > 1)}"
        words = f"{several[0].upper()}{several[1:]}: a verdict needs {ORACLES_FOR_A_VERDICT}."
        return "not resolved", words
    told: dict[str, list[str]] = {}
    for line in lines:
        if "verdict" in line and line["oracles"] >= ORACLES_FOR_A_VERDICT:
            told.setdefault(line["verdict"], []).append(line["title"])
    inside, same = (len(told.get(verdict, ())) for verdict in ("inside band", "not resolved"))
    left = [*told.get("outside band", ()), *told.get("not finite", ())]
    of = f"of {sum(map(len, told.values()))} measures beside {count} oracles"
    if not left and not inside:
        return "not resolved", f"In all {of} doing nothing lies in the band too."
    blind = f" In {same} doing nothing lies in the band too, which says nothing." * bool(same)
    too = [out for out in held_out if out]
    ending = f", in {max(too)} at most" if too else ""
    known = f" Of the oracles, each held out, {len(too)} left the band of the others{ending}."
    if left:
        told_of = f"Outside in {len(left)} {of}: {', '.join(left)}."
        return "left the band", f"{told_of}{blind}{known}"
    return "inside the band", f"Inside in {inside} {of}, outside in none.{blind}{known}"


def _held_out(lines, oracles):
    """In how many measures each oracle leaves the band of the others."""
    found = [0] * (len(oracles) if len(oracles) >= ORACLES_FOR_A_VERDICT else 0)
    for line in lines:
        values = [row[line["measure"]] for row in oracles if line["measure"] in row]
        if "verdict" not in line or len(values) < len(oracles) or not np.isfinite(values).all():
            continue
        by = statistics.resolution_of(line["unit"], line["n"])
        for i in range(len(found)):
            others = values[:i] + values[i + 1 :]
            low, high = statistics.prediction_interval(others, resolution=by)
            found[i] += not low <= values[i] <= high
    return found
