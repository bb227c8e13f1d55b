"""One forget set as the JSON has it: every method beside the original and the oracles."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from famr_jax import evaluation, metrics
from famr_jax.cli.bench import WATCHED_RETAIN, Bench
from famr_jax.cli.choosing import Chosen
from famr_jax.evaluation import Evaluator, View
from famr_jax.forget import ForgetSet
from famr_jax.store import Fitted, NonFiniteError
from famr_jax.types import Params

CURVES = ("for_acc", "ret_acc", "entropy")
GRID_SIZE = 12
HISTOGRAM_EDGES = np.linspace(0, 1, 21)
WHAT = {measure.name: measure.what for measure in evaluation.MEASURES} | {
    "average_gap": "mean distance of For-Acc, Ret-Acc, Test-Acc and SVC attack to the mean oracle",
    "average_gap_each": "the same to each oracle, averaged",
}


class Done(NamedTuple):
    """A method that ran on one forget set, to its end or to the epoch that was not finite."""

    chosen: Chosen
    fitted: Fitted | None
    failed: NonFiniteError | None = None


def measured_case(
    bench: Bench,
    gone: ForgetSet,
    original: Params,
    oracles: Sequence[Params],
    done: Sequence[Done],
) -> dict[str, Any]:
    """One forget set as the JSON has it; of a method that failed there is its entry alone."""
    evaluate, show = bench.evaluator(gone, original, oracles), bench.clock.show
    views = {
        each.chosen.name: evaluate.view(each.fitted.params)
        for each in done
        if each.fitted is not None
    }
    trained: Any = evaluate.trained  # a view, as the original is given

    def models() -> list[dict[str, Any]]:
        rows = [{"model": name} | evaluate(view) for name, view in views.items()]
        return [*evaluate.references(), *rows]

    rows = show(f"evaluate {gone.name}", models)
    table = [*evaluation.verdicts(rows), *evaluation.average_gap(rows)]
    known: dict[str, View] = {"original": trained, **views}
    shown = known | {"oracle": evaluate.oracles[0]}
    retained, num_classes = int((~gone.mask).sum()), bench.dataset.num_classes
    return {
        "forget": gone.spec,
        "kind": gone.kind,
        "title": title(bench.dataset.class_names, gone),
        "classes": gone.classes,
        "num_forget": int(gone.mask.sum()),
        "num_retain": retained,
        "num_forget_test": len(evaluate.sets.get("test_forgotten", ())),
        "num_test": len(bench.test),
        "duplicates_taken": gone.duplicates,
        "ret_acc_n": min(WATCHED_RETAIN, retained),
        "methods": [method_entry(each) for each in done],
        "models": [{k: v for k, v in row.items() if k not in ("n", "absent")} for row in rows],
        "rows": [line | {"what": WHAT.get(line["measure"], "")} for line in table],
        "targets": {"chance": 1 / num_classes, "max_entropy": float(np.log(num_classes))},
        "confusion": confusion(evaluate, known),
        "grid": grid(shown, gone),
        "histograms": None if gone.classes else histograms(shown),
    }


def method_entry(done: Done) -> dict[str, Any]:
    """What ran: its settings, the data it saw, curves from epoch 0 on and its terms from 1 on."""
    chosen, fitted = done.chosen, done.fitted
    entry = {
        "name": chosen.name,
        **chosen.settings,
        "uses_retain": chosen.uses_retain,
        "epoch_over": chosen.unlearner.epoch_over,
        "finite": fitted is not None,
    }
    if fitted is None:
        return entry | {"epoch": done.failed and done.failed.epoch}
    terms = [name for name in fitted.log[-1] if name not in CURVES]
    return entry | {
        "curves": {name: [each[name] for each in fitted.log] for name in CURVES},
        "terms": {name: [each[name] for each in fitted.log[1:]] for name in terms},
    }


def title(class_names: Sequence[str], gone: ForgetSet) -> str:
    """What is forgotten, in words."""
    names = [class_names[c] for c in gone.classes]
    if names:
        return f"Forgetting class {', '.join(names)}"
    return f"Forgetting {gone.mask.sum()} samples ({gone.spec})"


def confusion(evaluate: Evaluator, views: Mapping[str, View]) -> dict[str, Any] | None:
    """Where the test images of the forgotten classes go: share of each predicted class."""
    count = len(evaluate.sets.get("test_forgotten", ()))
    if not count:
        return None

    def shares(view: View) -> np.ndarray:
        return np.asarray(metrics.votes(jnp.asarray(view.logits("test_forgotten"))).mean(0))

    members = [shares(oracle) for oracle in evaluate.oracles]
    rows = [
        *({"model": name, "shares": shares(view)} for name, view in views.items()),
        {"model": "oracle", "shares": np.mean(members, axis=0), "members": members},
    ]
    return {"n": count, "rows": rows}


def grid(shown: Mapping[str, View], gone: ForgetSet) -> dict[str, Any]:
    """Evenly spaced forgotten images with each model's prediction and its confidence."""
    size = int(gone.mask.sum())
    places = np.unique(np.linspace(0, size - 1, GRID_SIZE).astype(int))
    rows = []
    for name, view in shown.items():
        p = np.asarray(jax.nn.softmax(view.logits("forget")[places]))
        rows.append({"model": name, "predicted": p.argmax(1), "confidence": p.max(1)})
    labels = next(iter(shown.values())).labels("forget")[places]
    return {"indices": np.flatnonzero(gone.mask)[places], "labels": labels, "rows": rows}


def histograms(shown: Mapping[str, View]) -> dict[str, Any]:
    """Shares of the confidence p_y of forget, retained and test images, for samples."""

    def shares(view: View, part: str) -> np.ndarray:
        p = view.each(metrics.confidence, part)
        return np.histogram(p, HISTOGRAM_EDGES)[0] / len(p)

    rows = [
        {"model": name} | {part: shares(view, part) for part in ("forget", "retain", "test")}
        for name, view in shown.items()
    ]
    return {"edges": HISTOGRAM_EDGES, "rows": rows}
